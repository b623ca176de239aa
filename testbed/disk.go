package testbed

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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
		unmount(t, folder)
	})
	if prepare != nil {
		prepare()
	}
	start()
	return &Disk{t: t, mount: folder}
}

// unmount waits for processes that outlive those that a test has stopped for a moment: a
// server's sessions, a child of capd's.
func unmount(t testing.TB, folder string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	err := unix.Unmount(folder, 0)
	for ; errors.Is(err, unix.EBUSY) && time.Now().Before(deadline); err = unix.Unmount(folder, 0) {
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		t.Errorf("unmount %s: %v", folder, err)
	}
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

// LoopDisk is an ext4 file system of its own, on a loop device.
type LoopDisk struct {
	Dir string

	t      testing.TB
	folder *os.File
	frozen bool
}

// NewLoopDisk makes a file system on a disk of size bytes, until the end of the test.
func NewLoopDisk(t testing.TB, size int64) *LoopDisk {
	t.Helper()
	NeedRoot(t)
	NeedCommand(t, "mkfs.ext4", "mount")
	image := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, size); err != nil {
		t.Fatal(err)
	}
	Run(t, "mkfs.ext4", "-q", "-F", image)
	d := &LoopDisk{t: t, Dir: t.TempDir()}
	if out, err := exec.Command("mount", "-o", "loop", image, d.Dir).CombinedOutput(); err != nil {
		Lacking(t, fmt.Sprintf("loop devices: %v: %s", err, out))
	}
	t.Cleanup(func() { unmount(t, d.Dir) }) // the loop device goes with it
	var err error
	if d.folder, err = os.Open(d.Dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.folder.Close() })
	return d
}

// Free is how many bytes are free for those who are not privileged.
func (d *LoopDisk) Free() int64 {
	d.t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(d.Dir, &st); err != nil {
		d.t.Fatal(err)
	}
	return int64(st.Bavail) * int64(st.Bsize)
}

const (
	fiFreeze    = 0xc0045877 // FIFREEZE (include/uapi/linux/fs.h)
	fiThaw      = 0xc0045878 // FITHAW
	extShutdown = 0x8004587d // EXT4_IOC_SHUTDOWN (fs/ext4/ext4.h)
)

// Freeze makes every write wait until Thaw: what a disk that hangs looks like from above.
func (d *LoopDisk) Freeze() {
	d.t.Helper()
	if err := unix.IoctlSetInt(int(d.folder.Fd()), fiFreeze, 0); err != nil {
		d.t.Fatalf("FIFREEZE: %v", err)
	}
	d.frozen = true
}

// Thaw ends Freeze; it may be called without it.
func (d *LoopDisk) Thaw() {
	if !d.frozen {
		return
	}
	if err := unix.IoctlSetInt(int(d.folder.Fd()), fiThaw, 0); err != nil {
		d.t.Errorf("FITHAW: %v", err)
	}
	d.frozen = false
}

// Die makes every write fail from now on, as a disk that is broken does.
func (d *LoopDisk) Die() {
	d.t.Helper()
	const noLogFlush = 2 // EXT4_GOING_FLAGS_NOLOGFLUSH
	if err := unix.IoctlSetPointerInt(int(d.folder.Fd()), extShutdown, noLogFlush); err != nil {
		d.t.Fatalf("EXT4_IOC_SHUTDOWN: %v", err)
	}
}

// TurnReadOnly makes the file system read-only under its writers, as ext4 does by itself
// when it finds an error (errors=remount-ro).
func (d *LoopDisk) TurnReadOnly() {
	d.t.Helper()
	Run(d.t, "mount", "-o", "remount,abort", d.Dir)
}
