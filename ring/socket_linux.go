package ring

import (
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socket is the netlink socket of one group.
type socket struct {
	fd            int
	seq           uint32 // of the last configuration message
	message       configMessage
	receiveBuffer int // as granted, in the kernel's accounting
	from          unix.RawSockaddrNetlink
	fromSize      uint32
}

// defaultReceiveBuffer is shared by the sockets where Config says nothing.
const defaultReceiveBuffer = 4 << 20

// openSocket makes a socket in the calling thread's network namespace.
func openSocket(receiveBuffer int) (s socket, err error) {
	s.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return s, fmt.Errorf("socket NETLINK_NETFILTER: %w", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(s.fd)
		}
	}()
	if err = unix.Bind(s.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return s, fmt.Errorf("bind NETLINK_NETFILTER: %w", err)
	}
	// The kernel doubles what it is given, to account for its own overhead; the sizes that
	// people configure are meant as memory.
	if unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer/2) != nil {
		if err = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer/2); err != nil {
			return s, fmt.Errorf("setsockopt SO_RCVBUF %d: %w", receiveBuffer/2, err)
		}
	}
	if s.receiveBuffer, err = unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF); err != nil {
		return s, fmt.Errorf("getsockopt SO_RCVBUF: %w", err)
	}
	// Without this one lost datagram blocks the socket until it has been read empty, and
	// more is lost (net/netlink/af_netlink.c, NETLINK_S_CONGESTED).
	if err = unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, unix.NETLINK_NO_ENOBUFS, 1); err != nil {
		return s, fmt.Errorf("setsockopt NETLINK_NO_ENOBUFS: %w", err)
	}
	// Any socket with this option makes the kernel stamp all packets as they are received
	// (net/core/sock.c, sock_enable_timestamp); NFULA_TIMESTAMP then is the receive time.
	if err = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		return s, fmt.Errorf("setsockopt SO_TIMESTAMPNS: %w", err)
	}
	return s, nil
}

func (s *socket) close() error {
	if s.fd < 0 {
		return nil
	}
	err := unix.Close(s.fd)
	s.fd = -1
	if err != nil {
		return fmt.Errorf("close netlink socket: %w", err)
	}
	return nil
}

// receive reads one datagram without waiting. It gives the datagram's length, which is
// more than len(b) if the datagram was cut to that, and false where there is none.
//
// One datagram a call: it is a batch of tens to hundreds of packets already, so that
// recvmmsg has nothing left to save (measured with shared rings of 1 and 16: the same to
// 3 %), and datagrams can lie in the ring without gaps. The call does not tell the Go
// scheduler that it may block, because it does not.
func (s *socket) receive(b []byte) (n int, kernel, ok bool, err error) {
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

// send hands a configuration message to the kernel, which acts on it before the call
// returns.
func (s *socket) send(b []byte) error {
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

// tell changes a setting without asking for an answer; a refusal comes among the
// datagrams. It allocates nothing.
func (s *socket) tell(number uint16, attr uint16, value uint32) error {
	s.seq++
	return s.send(s.message.buildWord(number, 0, s.seq, attr, value))
}

// ask changes a setting and waits for the kernel's answer, within a second. Datagrams
// that come before it go to other.
func (s *socket) ask(number uint16, attr uint16, value []byte, b []byte, other func([]byte)) error {
	s.seq++
	if err := s.send(s.message.build(number, nlmFlagAck, s.seq, attr, value)); err != nil {
		return err
	}
	deadline := time.Now().Add(time.Second)
	for {
		n, kernel, ok, err := s.receive(b)
		if err != nil {
			return err
		}
		if !ok {
			left := time.Until(deadline)
			if left <= 0 {
				return fmt.Errorf("no answer from the kernel: %w", os.ErrDeadlineExceeded)
			}
			timeout := unix.NsecToTimespec(int64(left))
			fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}
			if _, err := unix.Ppoll(fds, &timeout, nil); err != nil && !errors.Is(err, unix.EINTR) {
				return fmt.Errorf("ppoll: %w", err)
			}
			continue
		}
		if !kernel {
			continue
		}
		datagram := b[:min(n, len(b))]
		if seq, errno, ok := answer(datagram); ok {
			if seq != s.seq {
				continue
			}
			if errno != 0 {
				return errno
			}
			return nil
		}
		other(datagram)
	}
}

// answer reads an acknowledgement or error: which message it is about, and the errno.
// They come in datagrams of their own.
func answer(datagram []byte) (seq uint32, errno unix.Errno, ok bool) {
	kind, seq, body, _, ok := cutMessage(datagram)
	if !ok || kind != nlmsgError || len(body) < 4 {
		return 0, 0, false
	}
	return seq, unix.Errno(-int32(host.Uint32(body))), true
}

// setUp configures a group that is not bound yet. EPERM or EBUSY from BIND means that the
// group is somebody's, or that the caller may not bind any.
func (s *socket) setUp(number uint16, copyRange uint32, b []byte, other func([]byte)) (taken bool, err error) {
	if err := s.ask(number, configCmd, commandValue(cmdBind), b, other); err != nil {
		return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EBUSY), fmt.Errorf("NFULNL_CFG_CMD_BIND group %d: %w", number, err)
	}
	for _, setting := range []struct {
		name  string
		attr  uint16
		value []byte
	}{
		{"FLAGS", configFlags, be.AppendUint16(nil, flagSeq)},
		{"TIMEOUT", configTimeout, be.AppendUint32(nil, flushTicks)},
		{"MODE", configMode, modeValue(copyRange)},
	} {
		if err := s.ask(number, setting.attr, setting.value, b, other); err != nil {
			return false, fmt.Errorf("NFULA_CFG_%s group %d: %w", setting.name, number, err)
		}
	}
	return false, nil
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

// poll waits until one of the descriptors is readable or the time is up, in nanoseconds;
// it is a system call that the Go scheduler knows may block. A signal ends it early.
func poll(fds []unix.PollFd, wait int64, t *unix.Timespec) error {
	*t = unix.NsecToTimespec(wait)
	_, _, errno := unix.Syscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds[0])), uintptr(len(fds)), uintptr(unsafe.Pointer(t)), 0, 0, 0)
	if errno != 0 && errno != unix.EINTR && errno != unix.EAGAIN {
		return fmt.Errorf("ppoll: %w", errno)
	}
	return nil
}
