package testbed

import (
	"testing"

	"golang.org/x/sys/unix"
)

// NewTun makes a device in a namespace whose packets begin with the IP header. What is
// written to the descriptor comes in by the device; both last as long as the test.
func NewTun(t testing.TB, ns, name string) (fd int) {
	t.Helper()
	In(t, ns, func() (err error) {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	})
	return fd
}
