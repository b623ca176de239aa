package api

import (
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Every local user can connect, and each connection costs capd some 30 KiB and a
// descriptor before anybody has judged a call. A crowd bounds what users other than root
// can hold of that: mostPerUser connections each, and mostTogether, because one person can
// have many user ids (subuid(5)).
const (
	mostPerUser  = 64
	mostTogether = 1024
)

// crowd counts the open connections of users other than root.
type crowd struct {
	mu       sync.Mutex
	of       map[uint32]int
	together int
}

// enter counts a connection; leave takes it back, once. A refusal's text says why there is
// no room.
func (c *crowd) enter(uid uint32) (leave func(), refusal string) {
	if uid == 0 {
		return func() {}, ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.of[uid] >= mostPerUser:
		return nil, fmt.Sprintf("uid %d has %d connections to capd already", uid, mostPerUser)
	case c.together >= mostTogether:
		return nil, fmt.Sprintf("users other than root have %d connections to capd already", mostTogether)
	}
	if c.of == nil {
		c.of = map[uint32]int{}
	}
	c.of[uid]++
	c.together++
	return sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.together--
		if c.of[uid]--; c.of[uid] == 0 {
			delete(c.of, uid)
		}
	}), ""
}

// nobody is whom a connection is counted for whose owner the kernel does not tell.
const nobody = 65534

// ownerOf gives the user id of the process that connected.
func ownerOf(c *net.UnixConn) uint32 {
	uid := uint32(nobody)
	raw, err := c.SyscallConn()
	if err != nil {
		return uid
	}
	_ = raw.Control(func(fd uintptr) { // uid stays nobody
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			uid = cred.Uid
		}
	})
	return uid
}

// turnAway answers a connection without having read anything, and closes it. The answer
// fits into the empty send buffer, so nobody is waited for.
func turnAway(c *net.UnixConn, why string) {
	_ = c.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = c.Write(fullAnswer(why)) // whoever it was may be gone
	_ = c.CloseWrite()
	c.Close()
}
