package deliver

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"capd/ctl/wire"
)

// Messages between capd and its delivery process: one JSON object per datagram of a
// SOCK_SEQPACKET Unix socket. A put carries the file's descriptor (SCM_RIGHTS), so the
// delivery process needs to see neither the spool nor its paths.
const (
	kindPut        = "put"         // parent: deliver the file that comes along; answered
	kindCheck      = "check"       // parent: go through a destination's steps; answered
	kindChallenge  = "challenge"   // parent: write, read or remove a challenge file; answered
	kindCancel     = "cancel"      // parent: end request ID; it is still answered
	kindAnswer     = "answer"      // child: the end of request ID
	kindProgress   = "progress"    // child: Bytes of request ID sent so far
	kindFlow       = "flow"        // child: may I connect? answered; ID is the child's own
	kindFlowAnswer = "flow_answer" // parent: yes, or Err
	kindFlowClosed = "flow_closed" // child: the connection of flow ID is over
)

// message is every message; Kind says which fields are set.
type message struct {
	Kind    string       `json:"kind"`
	ID      uint64       `json:"id"`
	Profile *Profile     `json:"profile,omitempty"`
	Put     *putRequest  `json:"put,omitempty"`
	File    *challenge   `json:"file,omitempty"`
	Result  *Result      `json:"result,omitempty"`
	Check   *wire.Check  `json:"check,omitempty"`
	Err     *Error       `json:"error,omitempty"`
	Bytes   int64        `json:"bytes,omitempty"`
	Flow    *messageFlow `json:"flow,omitempty"`
}

// putRequest is a Put whose path is made already.
type putRequest struct {
	Path   string `json:"path"`
	Tag    string `json:"tag"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256,omitempty"` // "" = not known yet
}

// challenge is a request about a challenge file, and, with Contents, the answer to
// challengeRead.
type challenge struct {
	Do       challengeDo `json:"do"`
	Path     string      `json:"path"`
	Contents []byte      `json:"contents,omitempty"`
}

type challengeDo string

const (
	challengeWrite  challengeDo = "write"
	challengeRead   challengeDo = "read"
	challengeRemove challengeDo = "remove"
)

type messageFlow struct {
	Destination string `json:"destination"`
	Flow
}

// maxMessage is the largest datagram, in bytes; the kernel's default send buffer holds
// three of them.
const maxMessage = 64 << 10

// socket is one end.
type socket struct{ conn *net.UnixConn }

// newSocket takes over f, which must be a Unix socket that keeps message boundaries.
func newSocket(f *os.File) (*socket, error) {
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("delivery socket: %w", err)
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok || unixConn.LocalAddr().Network() != "unixpacket" {
		conn.Close()
		return nil, errors.New("delivery socket: not a Unix socket of type SOCK_SEQPACKET")
	}
	return &socket{unixConn}, nil
}

// newSocketPair gives the parent's end and the file that becomes the child's.
func newSocketPair() (*socket, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("delivery socket: socketpair: %w", err)
	}
	child := os.NewFile(uintptr(fds[1]), "delivery socket, child's end")
	parent, err := newSocket(os.NewFile(uintptr(fds[0]), "delivery socket, parent's end"))
	if err != nil {
		child.Close()
		return nil, nil, err
	}
	return parent, child, nil
}

// send sends one message, with a file's descriptor where f is not nil. f stays the
// caller's. It may be called from several goroutines.
func (s *socket) send(m message, f *os.File) error {
	data, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(data) > maxMessage {
		return fmt.Errorf("a %s message of %d bytes is too large", m.Kind, len(data))
	}
	if f == nil {
		_, _, err = s.conn.WriteMsgUnix(data, nil, nil)
		return err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	controlErr := raw.Control(func(fd uintptr) {
		_, _, err = s.conn.WriteMsgUnix(data, unix.UnixRights(int(fd)), nil)
	})
	return errors.Join(controlErr, err)
}

// tell sends a message that needs no care: where it does not arrive, the end of the
// connection says the same.
func (s *socket) tell(m message) { _ = s.send(m, nil) }

// receive waits for one message. The file, if any, is the caller's. io.EOF when the
// other side is gone.
func (s *socket) receive(buf []byte) (message, *os.File, error) {
	var m message
	oob := make([]byte, unix.CmsgSpace(4*4))
	n, oobn, flags, _, err := s.conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return m, nil, err
	}
	if n == 0 {
		return m, nil, io.EOF
	}
	f, err := received(oob[:oobn])
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = errors.New("a message was cut")
	}
	if err == nil {
		err = json.Unmarshal(buf[:n], &m)
	}
	if err != nil && f != nil {
		f.Close()
		f = nil
	}
	return m, f, err
}

// received takes the one descriptor out of control data and closes any more.
func received(oob []byte) (*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse control data: %w", err)
	}
	var f *os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // credentials or the like
		}
		for _, fd := range fds {
			if f != nil {
				unix.Close(fd)
				continue
			}
			f = os.NewFile(uintptr(fd), "received segment")
		}
	}
	return f, nil
}
