package ctl

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// merge -o to a pipe or a device writes to it: replacing it, as --force does with a file,
// would put a file in the place of /dev/stdout.
func TestMergeKeepsPipes(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link") // as /dev/stdout is one
	if err := os.Symlink(pipe, link); err != nil {
		t.Fatal(err)
	}
	for _, force := range []bool{false, true} {
		read := make(chan string)
		go func() {
			got, err := os.ReadFile(pipe)
			read <- string(got) + errorText(err)
		}()
		err := writeNew(link, force, func(w io.Writer) error { _, err := io.WriteString(w, "packets"); return err })
		if got := <-read; err != nil || got != "packets" {
			t.Errorf("force %v: %v, read %q", force, err, got)
		}
	}
	if info, err := os.Lstat(link); err != nil || info.Mode().Type() != os.ModeSymlink {
		t.Errorf("the link is %v, %v", info, err)
	}
	full := errors.New("full")
	if err := writeNew("/dev/null", true, func(io.Writer) error { return full }); !errors.Is(err, full) {
		t.Errorf("%v", err)
	}
	if info, err := os.Stat("/dev/null"); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		t.Fatalf("/dev/null is %v, %v", info, err)
	}
	if err := writeNew(dir, true, func(io.Writer) error { return nil }); err == nil || !strings.Contains(err.Error(), "is a folder") {
		t.Errorf("into a folder: %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".capctl-*")); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
