package spool

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"capd/testbed"
)

// A folder that cannot be written to is told at the start, with its mend.
func TestAFolderThatCannotBeWrittenTo(t *testing.T) {
	testbed.NeedRoot(t)
	read := t.TempDir()
	if err := unix.Mount("tmpfs", read, "tmpfs", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(read, 0); err != nil {
			t.Error(err)
		}
	})
	for name, dir := range map[string]string{"that is there": read, "to be made": filepath.Join(read, "spool")} {
		s, err := Open(t.TempDir(), dir, false)
		if !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), "ReadWritePaths="+dir+")") {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			s.Close()
		}
	}
	if err := unusable("/srv/spool", os.ErrPermission); !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "-o capd -g capd /srv/spool)") {
		t.Error(err)
	}
	good := t.TempDir()
	s, err := Open(t.TempDir(), good, false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if left, err := filepath.Glob(filepath.Join(good, ".probe-*")); err != nil || len(left) > 0 {
		t.Errorf("it leaves %q, %v", left, err)
	}
}
