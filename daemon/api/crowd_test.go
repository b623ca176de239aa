package api

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"capd/ctl/wire"
	"capd/testbed"
)

func TestCrowd(t *testing.T) {
	var c crowd
	var leave []func()
	for uid := uint32(1); len(leave) < mostTogether; uid++ {
		for range mostPerUser {
			l, refusal := c.enter(uid)
			if l == nil {
				t.Fatalf("uid %d with %d there: %s", uid, len(leave), refusal)
			}
			leave = append(leave, l)
		}
		if l, _ := c.enter(uid); l != nil {
			t.Fatalf("uid %d has more than %d", uid, mostPerUser)
		}
	}
	if l, refusal := c.enter(1 << 20); l != nil || refusal == "" {
		t.Errorf("more than %d together: %q", mostTogether, refusal)
	}
	if l, refusal := c.enter(0); l == nil {
		t.Errorf("root is kept out: %s", refusal)
	}
	for _, l := range leave {
		l()
		l() // counts once
	}
	if c.together != 0 || len(c.of) != 0 {
		t.Errorf("%d are left: %v", c.together, c.of)
	}
}

// TestAUserCannotFillTheSocket: a user without any right opens connections without end;
// others and root are answered all the same, and so is the user when some are closed.
func TestAUserCannotFillTheSocket(t *testing.T) {
	testbed.NeedRoot(t)
	dir, err := os.MkdirTemp("", "capd-crowd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	_, server, served := listening(t, socket)
	t.Cleanup(func() {
		server.Close()
		<-served
	})

	// dialAs connects as another user: the kernel takes the credentials of the thread.
	dialAs := func(uid int) net.Conn {
		t.Helper()
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		seteuid := func(uid int) {
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
				t.Fatal(errno)
			}
		}
		seteuid(uid)
		defer seteuid(0)
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(time.Minute))
		return c
	}
	answered := func(c net.Conn) (int, wire.Error) {
		t.Helper()
		_, _ = io.WriteString(c, "GET /v1/status HTTP/1.1\r\nHost: capd\r\n\r\n") // it may be closed already, with the answer sent
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var body wire.ErrorBody
		_ = json.NewDecoder(resp.Body).Decode(&body) // the status itself has no error in it
		return resp.StatusCode, body.Error
	}

	const user, other = 65533, 65532
	conns := make([]net.Conn, mostPerUser)
	for i := range conns {
		conns[i] = dialAs(user)
		defer conns[i].Close()
	}
	one := dialAs(user)
	defer one.Close()
	if status, e := answered(one); status != http.StatusServiceUnavailable || e.Code != wire.CodeUnavailable || e.Message != "uid 65533 has 64 connections to capd already" {
		t.Errorf("one more than %d: %d %+v", mostPerUser, status, e)
	}
	if status, _ := answered(conns[0]); status != http.StatusForbidden {
		t.Errorf("the user's first connection: %d, want 403", status)
	}
	another, root := dialAs(other), dialAs(0)
	defer another.Close()
	defer root.Close()
	if status, _ := answered(another); status != http.StatusForbidden {
		t.Errorf("another user: %d, want 403", status)
	}
	if status, _ := answered(root); status != http.StatusOK {
		t.Errorf("root: %d, want 200", status)
	}
	conns[1].Close()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		c := dialAs(user)
		status, _ := answered(c)
		c.Close()
		if status == http.StatusForbidden {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after one was closed: %d, want 403", status)
		}
	}
}
