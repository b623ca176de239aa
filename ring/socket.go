package ring

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// conn is a group's way to the kernel.
type conn interface {
	// receive reads one datagram into b without waiting. It gives the datagram's length,
	// which is more than len(b) if it was cut to that, whether the kernel sent it, and
	// whether there was one.
	receive(b []byte) (n int, kernel, ok bool, err error)
	// send hands a configuration message to the kernel, which has acted on it when the call
	// returns.
	send(b []byte) error
	// readable waits for a datagram for at most the given time.
	readable(wait time.Duration) error
	close() error
}

// socket talks to the kernel about one group.
type socket struct {
	conn          conn
	seq           uint32 // of the last configuration message
	message       configMessage
	receiveBuffer int // as granted, in the kernel's accounting
}

// tell changes a setting without asking for an answer; a refusal comes among the
// datagrams. It allocates nothing.
func (s *socket) tell(number uint16, attr uint16, value uint32) error {
	s.seq++
	return s.conn.send(s.message.buildWord(number, 0, s.seq, attr, value))
}

// ask changes a setting and waits for the kernel's answer, within a second. Datagrams
// that come before it go to other.
func (s *socket) ask(number uint16, attr uint16, value []byte, b []byte, other func([]byte)) error {
	s.seq++
	if err := s.conn.send(s.message.build(number, nlmFlagAck, s.seq, attr, value)); err != nil {
		return err
	}
	deadline := time.Now().Add(time.Second)
	for {
		n, kernel, ok, err := s.conn.receive(b)
		if err != nil {
			return err
		}
		if !ok {
			left := time.Until(deadline)
			if left <= 0 {
				return fmt.Errorf("no answer from the kernel: %w", os.ErrDeadlineExceeded)
			}
			if err := s.conn.readable(left); err != nil {
				return err
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
func answer(datagram []byte) (seq uint32, errno syscall.Errno, ok bool) {
	kind, seq, body, _, ok := cutMessage(datagram)
	if !ok || kind != nlmsgError || len(body) < 4 {
		return 0, 0, false
	}
	return seq, syscall.Errno(-int32(host.Uint32(body))), true
}

// setUp configures a group that is not bound yet; it leaves out of flags what the kernel
// cannot do. EPERM or EBUSY from BIND means that the
// group is somebody's, or that the caller may not bind any.
func (s *socket) setUp(number uint16, copyRange, timeout uint32, flags *uint16, b []byte, other func([]byte)) (taken bool, err error) {
	if err := s.ask(number, configCmd, commandValue(cmdBind), b, other); err != nil {
		return errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EBUSY), fmt.Errorf("NFULNL_CFG_CMD_BIND group %d: %w", number, err)
	}
	for _, setting := range []struct {
		name  string
		attr  uint16
		value []byte
	}{
		{"FLAGS", configFlags, be.AppendUint16(nil, *flags)},
		{"TIMEOUT", configTimeout, be.AppendUint32(nil, timeout)},
		{"MODE", configMode, modeValue(copyRange)},
	} {
		err := s.ask(number, setting.attr, setting.value, b, other)
		if setting.attr == configFlags && *flags&flagConntrack != 0 && errors.Is(err, syscall.EOPNOTSUPP) {
			// No nf_conntrack_netlink here (net/netfilter/nfnetlink_log.c, nfulnl_recv_config).
			*flags &^= flagConntrack
			err = s.ask(number, configFlags, be.AppendUint16(nil, *flags), b, other)
		}
		if err != nil {
			return false, fmt.Errorf("NFULA_CFG_%s group %d: %w", setting.name, number, err)
		}
	}
	return false, nil
}
