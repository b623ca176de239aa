package spool

import (
	"errors"
	"math"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
)

// What the spool refuses says how much there is and what bounds it, for people to read.
func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, filepath.Join(dir, "spool"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Admit(123_456_789, 987_654_321, 0); err != nil {
		t.Fatal(err)
	}
	_, free, err := s.Space()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		err  error
		want string
	}{
		{s.Admit(900_000_000, 987_654_321, 0), `^the spool is full: of the 988 MB that limits.spool_size allows it holds 123 MB, and the next block takes 900 MB$`},
		{s.Admit(1<<20, math.MaxInt64, free), `^the spool is full: its file system has [\d.]+ [kMGTPE]?B free, 123 MB of them are granted already, and limits.min_free_space keeps [\d.]+ [kMGTPE]?B$`},
	} {
		if !errors.Is(c.err, ErrFull) || !errors.Is(c.err, syscall.ENOSPC) || !regexp.MustCompile(c.want).MatchString(c.err.Error()) {
			t.Errorf("%v, want %s", c.err, c.want)
		}
	}
	if used := s.Used(); used != 123_456_789 {
		t.Errorf("%d bytes are used after two refusals", used)
	}
}
