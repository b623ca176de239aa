package spool

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a kill has left half written is gone after the next start, and nothing else is.
func TestUnfinishedFilesAreSwept(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, filepath.Join(dir, "spool"), false)
	if err != nil {
		t.Fatal(err)
	}
	const id = "0f8c0f8c0f8c0f8c0f8c0f8c0f8c0f8c"
	if err := s.Create(id); err != nil {
		t.Fatal(err)
	}
	if err := s.SaveRecord(id, map[string]string{}); err != nil {
		t.Fatal(err)
	}
	if err := s.WriteFile(id, "manifest.json", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	half := []string{filepath.Join(s.records, ".new-123"), filepath.Join(s.records, ".new-456")}
	for _, path := range half {
		if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(dir, filepath.Join(dir, "spool"), false); err == nil || !strings.Contains(err.Error(), "in use by another capd") {
		t.Errorf("two at once in %s: %v", dir, err)
	}
	if _, err := Open(t.TempDir(), filepath.Join(dir, "spool"), false); err == nil || !strings.Contains(err.Error(), "in use by another capd") {
		t.Errorf("two at once in one spool: %v", err)
	}
	s.Close()
	again, err := Open(dir, filepath.Join(dir, "spool"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	for _, path := range half {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
	for _, path := range []string{s.recordPath(id), s.besidePath(id, "manifest.json")} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
}
