package api

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"capd/ctl/wire"
)

// Peer is the process at the other end of a connection, as the kernel knew it when it
// connected.
type Peer struct {
	UID      uint32
	GID      uint32
	Groups   []uint32 // supplementary groups
	PID      int32    // 0 where the process is not visible from here
	User     string   // the name of UID; "" where it has none
	LoginUID *uint32  // who logged in before su and sudo; nil where no login stands behind it
}

// Requester is the peer as records and answers name it.
func (p Peer) Requester() wire.Requester {
	return wire.Requester{UID: p.UID, User: p.User, LoginUID: p.LoginUID, PID: p.PID}
}

// In says whether the peer is in a group.
func (p Peer) In(gid uint32) bool { return p.GID == gid || slices.Contains(p.Groups, gid) }

// String names the peer in a text for people.
func (p Peer) String() string {
	if p.User == "" {
		return fmt.Sprintf("uid %d", p.UID)
	}
	return fmt.Sprintf("user %s (uid %d)", p.User, p.UID)
}

type peerKey struct{}

// peerResult is what ConnContext found.
type peerResult struct {
	peer Peer
	err  error
}

// ConnContext reads the credentials of a connection's peer, once, for peerFrom to find.
// It is made for http.Server.ConnContext. A connection whose credentials cannot be read
// is not refused here, but every call on it is.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	peer, err := readPeer(c)
	return context.WithValue(ctx, peerKey{}, peerResult{peer, err})
}

// peerFrom gives the peer of the connection that a request came by.
func peerFrom(ctx context.Context) (Peer, error) {
	result, ok := ctx.Value(peerKey{}).(peerResult)
	if !ok {
		return Peer{}, errors.New("the connection was not examined")
	}
	return result.peer, result.err
}

// readPeer asks the kernel who connected (unix(7), SO_PEERCRED; socket(7), SO_PEERGROUPS).
func readPeer(c net.Conn) (Peer, error) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return Peer{}, fmt.Errorf("%T has no peer credentials", c)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return Peer{}, fmt.Errorf("peer credentials: %w", err)
	}
	var p Peer
	var failure error
	if err := raw.Control(func(fd uintptr) { p, failure = readPeerFD(int(fd)) }); err != nil {
		return Peer{}, fmt.Errorf("peer credentials: %w", err)
	}
	if failure != nil {
		return Peer{}, failure
	}
	if u, err := user.LookupId(strconv.FormatUint(uint64(p.UID), 10)); err == nil {
		p.User = u.Username
	}
	return p, nil
}

func readPeerFD(fd int) (Peer, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return Peer{}, fmt.Errorf("getsockopt SO_PEERCRED: %w", err)
	}
	p := Peer{UID: cred.Uid, GID: cred.Gid, PID: cred.Pid}
	if p.Groups, err = peerGroups(fd); err != nil {
		return Peer{}, fmt.Errorf("getsockopt SO_PEERGROUPS: %w", err)
	}
	p.LoginUID = peerLogin(fd, p.PID)
	return p, nil
}

// peerGroups reads SO_PEERGROUPS, whose answer has any length up to NGROUPS_MAX (65536):
// the kernel says ERANGE and the length where the buffer is too short.
func peerGroups(fd int) ([]uint32, error) {
	buf := make([]byte, 4*64)
	for {
		size := uint32(len(buf))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0)
		if errno == unix.ERANGE && int(size) > len(buf) {
			buf = make([]byte, size)
			continue
		}
		if errno != 0 {
			return nil, errno
		}
		groups := make([]uint32, size/4)
		for i := range groups {
			groups[i] = binary.NativeEndian.Uint32(buf[4*i:])
		}
		return groups, nil
	}
}

// noLogin is what the kernel shows as loginuid where nobody logged in.
const noLogin = 1<<32 - 1

// peerLogin reads who logged in before the peer became what it is. It is told for the
// record, not relied on: a pid may be somebody else's by now, which a pidfd of the peer
// (SO_PEERPIDFD, Linux 6.5) rules out where the kernel has it.
func peerLogin(fd int, pid int32) *uint32 {
	if pid <= 0 {
		return nil
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/loginuid", pid))
	if err != nil {
		return nil
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	if err != nil || n == noLogin {
		return nil
	}
	switch pidfd, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD); {
	case err == nil:
		defer unix.Close(pidfd)
		if unix.PidfdSendSignal(pidfd, 0, nil, 0) == unix.ESRCH {
			return nil
		}
	case err != unix.ENOPROTOOPT:
		return nil
	}
	uid := uint32(n)
	return &uid
}
