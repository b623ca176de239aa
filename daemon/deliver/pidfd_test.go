package deliver_test

import (
	"errors"

	"golang.org/x/sys/unix"
)

// pidfdOpen gives a descriptor that becomes readable when a process has ended.
func pidfdOpen(pid int) (int, error) { return unix.PidfdOpen(pid, 0) }

// pollExit waits for the end of a process, at most a minute.
func pollExit(fd int) error {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 60_000)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return errors.New("it is still there after a minute")
		default:
			return nil
		}
	}
}
