package deliver

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"capd/testbed"
)

// A key in a folder that the delivery process cannot get through is told by that folder: a
// key whose own mode is right cannot be mended.
func TestClosedFolder(t *testing.T) {
	testbed.NeedRoot(t)
	top, err := os.MkdirTemp("/var/tmp", "capd-test-") // others get there, unlike to t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(top)
	closed := filepath.Join(top, "keys")
	key := filepath.Join(closed, "soc", "key")
	if err := errors.Join(os.Chmod(top, 0o755), os.MkdirAll(filepath.Dir(key), 0o755), os.WriteFile(key, []byte("k"), 0o600), os.Chown(key, 65534, 65534), os.Chmod(closed, 0o700)); err != nil {
		t.Fatal(err)
	}
	read := func(what func(string, string) ([]byte, error)) error {
		out := make(chan error)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			if err := unix.Setfsuid(65534); err != nil {
				out <- err
				return
			}
			_, err := what("private_key", key)
			out <- err
		}()
		return <-out
	}
	for _, what := range []func(string, string) ([]byte, error){ReadSecret, ReadFile} {
		var told *Error
		if err := read(what); !errors.As(err, &told) || told.Hint != "the delivery process must get through "+closed+": chmod o+x "+closed {
			t.Errorf("%#v", err)
		}
	}
	if err := os.Chmod(closed, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := read(ReadFile); err != nil {
		t.Errorf("of an open folder: %v", err)
	}
}
