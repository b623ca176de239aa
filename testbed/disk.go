package testbed

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Disk is a small file system of its own, a tmpfs.
type Disk struct {
	t     testing.TB
	mount string
}

// NewDisk puts a disk under a server's folder, which is empty then. prepare makes what
// the server wants to find there when it starts; it may be nil. The server is stopped
// meanwhile, and at the end of the test.
func NewDisk(t testing.TB, folder string, stop, start, prepare func()) *Disk {
	t.Helper()
	NeedRoot(t)
	stop()
	if err := unix.Mount("capd-test", folder, "tmpfs", 0, "size=192m,mode=755"); err != nil {
		Lacking(t, "the right to mount")
	}
	t.Cleanup(func() {
		stop()
		// A session of the server may outlive it for a moment.
		deadline := time.Now().Add(20 * time.Second)
		err := unix.Unmount(folder, 0)
		for ; errors.Is(err, unix.EBUSY) && time.Now().Before(deadline); err = unix.Unmount(folder, 0) {
			time.Sleep(20 * time.Millisecond)
		}
		if err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	if prepare != nil {
		prepare()
	}
	start()
	return &Disk{t: t, mount: folder}
}

// Fill takes all free room away until room is called.
func (d *Disk) Fill() (room func()) {
	d.t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(d.mount, &st); err != nil {
		d.t.Fatal(err)
	}
	blocks := st.Blocks
	resize := func(to uint64) {
		if err := unix.Mount("capd-test", d.mount, "tmpfs", unix.MS_REMOUNT, fmt.Sprintf("size=%d", to*uint64(st.Bsize))); err != nil {
			d.t.Fatal(err)
		}
	}
	resize(blocks - st.Bfree + 4) // room for folders and the like
	return func() { resize(blocks) }
}
