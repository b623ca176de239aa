// Package testbed supplies real parts to tests: network namespaces joined by veth
// pairs, traffic, and servers. Nothing outside tests imports it.
package testbed

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// NeedRoot ends the test where it does not run as root: a skip on a developer's
// machine, a failure under CI=true, so that CI never passes by not testing.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Lacking(t, "root")
	}
}

// NeedCommand ends the test, as NeedRoot does, where a program is not installed.
func NeedCommand(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			Lacking(t, "the program "+name+" (contrib/test installs it)")
		}
	}
}

// Lacking skips the test for want of something, or fails it under CI=true.
func Lacking(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("CI lacks %s", what)
	}
	t.Skipf("needs %s", what)
}

var nsCounter atomic.Int32

// NewNS makes a network namespace with lo up, gives its name, and deletes it when the
// test ends. Devices that are made in it later solicit no routers: these packets, which
// come seconds and minutes after, belong to no test.
func NewNS(t testing.TB) string {
	t.Helper()
	NeedRoot(t)
	name := fmt.Sprintf("capd-t%d-%d-%s", os.Getpid(), nsCounter.Add(1), rand.Text()[:6]) // a killed run may have left the same numbers
	Run(t, "ip", "netns", "add", name)
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", name).CombinedOutput(); err != nil {
			t.Errorf("delete namespace %s: %v: %s", name, err, out)
		}
	})
	Run(t, "ip", "-n", name, "link", "set", "lo", "up")
	In(t, name, func() error {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/default/router_solicitations", []byte("0"), 0)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // no IPv6
		}
		return err
	})
	return name
}

// Pair is two namespaces joined by a veth pair: A (device va, 10.9.0.1/24,
// fd00:9::1/64) and B (device vb, 10.9.0.2/24, fd00:9::2/64), links up, duplicate
// address detection off.
type Pair struct{ A, B string }

// NewPair makes a Pair that lasts as long as the test.
func NewPair(t testing.TB) Pair {
	t.Helper()
	p := Pair{A: NewNS(t), B: NewNS(t)}
	Run(t, "ip", "link", "add", "va", "netns", p.A, "type", "veth", "peer", "name", "vb", "netns", p.B)
	for _, end := range []struct{ ns, dev, v4, v6 string }{
		{p.A, "va", "10.9.0.1/24", "fd00:9::1/64"}, {p.B, "vb", "10.9.0.2/24", "fd00:9::2/64"},
	} {
		Run(t, "ip", "-n", end.ns, "addr", "add", end.v4, "dev", end.dev)
		Run(t, "ip", "-n", end.ns, "addr", "add", end.v6, "dev", end.dev, "nodad")
		Run(t, "ip", "-n", end.ns, "link", "set", end.dev, "up")
	}
	return p
}

// In runs f on a thread of its own inside the named namespace and waits for it. The
// thread is thrown away afterwards. f must not call t.FailNow (it runs on another
// goroutine): it returns an error instead.
func In(t testing.TB, ns string, f func() error) {
	t.Helper()
	if err := Do(ns, f); err != nil {
		t.Fatal(err)
	}
}

// Do is In without a test: it returns f's error, or why the namespace was not entered.
func Do(ns string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread with the goroutine
		fd, err := unix.Open("/run/netns/"+ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- fmt.Errorf("open namespace %s: %w", ns, err)
			return
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter namespace %s: %w", ns, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// Run runs a command and fails the test if it fails; it gives the command's output.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// RunIn runs a command inside a namespace, as Run does.
func RunIn(t testing.TB, ns, name string, args ...string) string {
	t.Helper()
	return Run(t, "ip", append([]string{"netns", "exec", ns, name}, args...)...)
}
