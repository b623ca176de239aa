package ring

import (
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// netlinkConn is a netlink socket.
type netlinkConn struct {
	fd       int
	from     unix.RawSockaddrNetlink
	fromSize uint32
	timespec unix.Timespec
	fds      [1]unix.PollFd
}

var _ conn = (*netlinkConn)(nil)

// defaultReceiveBuffer is shared by the sockets where Config says nothing.
const defaultReceiveBuffer = 4 << 20

// openConn makes a socket in the calling thread's network namespace. It gives the size of
// the receive buffer as granted.
func openConn(receiveBuffer int) (c *netlinkConn, granted int, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, 0, fmt.Errorf("socket NETLINK_NETFILTER: %w", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	if err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, 0, fmt.Errorf("bind NETLINK_NETFILTER: %w", err)
	}
	// The kernel doubles what it is given, to account for its own overhead; the sizes that
	// people configure are meant as memory.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer/2) != nil {
		if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer/2); err != nil {
			return nil, 0, fmt.Errorf("setsockopt SO_RCVBUF %d: %w", receiveBuffer/2, err)
		}
	}
	if granted, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF); err != nil {
		return nil, 0, fmt.Errorf("getsockopt SO_RCVBUF: %w", err)
	}
	// Without this one lost datagram blocks the socket until it has been read empty, and
	// more is lost (net/netlink/af_netlink.c, NETLINK_S_CONGESTED).
	if err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_NO_ENOBUFS, 1); err != nil {
		return nil, 0, fmt.Errorf("setsockopt NETLINK_NO_ENOBUFS: %w", err)
	}
	// Any socket with this option makes the kernel stamp all packets as they are received
	// (net/core/sock.c, sock_enable_timestamp); NFULA_TIMESTAMP then is the receive time.
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		return nil, 0, fmt.Errorf("setsockopt SO_TIMESTAMPNS: %w", err)
	}
	return &netlinkConn{fd: fd}, granted, nil
}

func (s *netlinkConn) close() error {
	if err := unix.Close(s.fd); err != nil {
		return fmt.Errorf("close netlink socket: %w", err)
	}
	return nil
}

// One datagram a call: it is a batch of tens to hundreds of packets already, so that
// recvmmsg has nothing left to save (measured with shared rings of 1 and 16: the same to
// 3 %), and datagrams can lie in the ring without gaps. The call does not tell the Go
// scheduler that it may block, because it does not.
func (s *netlinkConn) receive(b []byte) (n int, kernel, ok bool, err error) {
	for {
		s.fromSize = unix.SizeofSockaddrNetlink
		r, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(s.fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)),
			unix.MSG_DONTWAIT|unix.MSG_TRUNC, uintptr(unsafe.Pointer(&s.from)), uintptr(unsafe.Pointer(&s.fromSize)))
		switch errno {
		case 0:
			return int(r), s.from.Pid == 0, true, nil
		case unix.EAGAIN:
			return 0, false, false, nil
		case unix.EINTR, unix.ENOBUFS: // a full receive buffer shows in the sequence numbers
		default:
			return 0, false, false, fmt.Errorf("recvfrom netlink: %w", errno)
		}
	}
}

func (s *netlinkConn) send(b []byte) error {
	for {
		_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(s.fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return fmt.Errorf("sendto netlink: %w", errno)
		}
	}
}

func (s *netlinkConn) readable(wait time.Duration) error {
	s.fds[0] = unix.PollFd{Fd: int32(s.fd), Events: unix.POLLIN}
	return poll(s.fds[:], int64(wait), &s.timespec, true)
}

// event is what Wake interrupts a wait with.
type event struct{ fd int }

func openEvent() (event, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return event{-1}, fmt.Errorf("eventfd: %w", err)
	}
	return event{fd}, nil
}

func (e event) set() {
	one := [8]byte{}
	host.PutUint64(one[:], 1)
	_, _ = unix.Write(e.fd, one[:]) // full means set
}

func (e event) clear(b *[8]byte) {
	_, _, _ = unix.RawSyscall(unix.SYS_READ, uintptr(e.fd), uintptr(unsafe.Pointer(b)), uintptr(len(b)))
}

func (e event) close() { _ = unix.Close(e.fd) }

// poll waits until one of the descriptors is readable or the time is up, in nanoseconds.
// A signal ends it early. A long wait tells the Go scheduler that the thread blocks. A
// nap, of a few milliseconds at most, does not: handing the processor over and taking it
// back costs several thread switches, more than reading what came meanwhile. So a napping
// reader needs a GOMAXPROCS that leaves the rest of the program a processor of its own.
func poll(fds []unix.PollFd, wait int64, t *unix.Timespec, long bool) error {
	*t = unix.NsecToTimespec(wait)
	var errno unix.Errno
	if long {
		_, _, errno = unix.Syscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds[0])), uintptr(len(fds)), uintptr(unsafe.Pointer(t)), 0, 0, 0)
	} else {
		_, _, errno = unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds[0])), uintptr(len(fds)), uintptr(unsafe.Pointer(t)), 0, 0, 0)
	}
	if errno != 0 && errno != unix.EINTR && errno != unix.EAGAIN {
		return fmt.Errorf("ppoll: %w", errno)
	}
	return nil
}
