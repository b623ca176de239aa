package daemon

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// The slices are short between the two calls, where the kernel tells slices at all (Linux
// 6.12), and nothing else about the thread's rank changes.
func TestTakeShortSlices(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	look := func() unix.SchedAttr {
		a, err := unix.SchedGetAttr(0, 0)
		if err != nil {
			t.Fatal(err)
		}
		return *a
	}
	before := look()
	restore := takeShortSlices()
	during := look()
	restore()
	after := look()
	want := before
	if before.Runtime != 0 {
		want.Runtime = uint64(shortSlice)
	}
	if during != want {
		t.Errorf("the thread is scheduled by %+v, want %+v", during, want)
	}
	if after != before {
		t.Errorf("restored to %+v, want %+v", after, before)
	}
}
