package testbed

import (
	"io"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Clock is the machine's wall clock in the hands of a test, which should run alone on the
// machine: everything on it sees the steps. When the test ends the clock is right again.
type Clock struct {
	t     testing.TB
	ahead time.Duration // of the monotonic clock, when it is right
}

// guardScript puts the clock right by /proc/uptime should the test die before it can: its
// input ends without a line then.
const guardScript = `read -r begun rest </proc/uptime
wall=$(date +%s.%N)
echo ready
read -r line && exit
read -r now rest </proc/uptime
date -s "@$(echo "$wall $now $begun" | awk '{ printf "%.3f", $1 + $2 - $3 }')"`

// NewClock takes the clock.
func NewClock(t testing.TB) *Clock {
	t.Helper()
	NeedRoot(t)
	NeedCommand(t, "awk", "date")
	c := &Clock{t: t}
	c.ahead = c.read(unix.CLOCK_REALTIME) - c.read(unix.CLOCK_MONOTONIC)

	guard := exec.Command("sh", "-c", guardScript)
	guard.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is not for it
	told, err := guard.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	ready, err := guard.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := guard.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if c.set(0) == nil {
			_, _ = io.WriteString(told, "done\n")
		}
		told.Close() // without the line the guard sets it
		if err := guard.Wait(); err != nil {
			t.Errorf("the guard of the clock: %v", err)
		}
	})
	if _, err := ready.Read(make([]byte, 8)); err != nil {
		t.Fatalf("the guard of the clock: %v", err)
	}
	if err := c.set(0); err != nil {
		Lacking(t, "the right to set the clock")
	}
	return c
}

// Set makes the clock wrong by so much; 0 is the true time.
func (c *Clock) Set(wrong time.Duration) {
	c.t.Helper()
	if err := c.set(wrong); err != nil {
		c.t.Fatalf("set the clock: %v", err)
	}
}

func (c *Clock) set(wrong time.Duration) error {
	to := unix.NsecToTimespec(int64(c.read(unix.CLOCK_MONOTONIC) + c.ahead + wrong))
	return unix.ClockSettime(unix.CLOCK_REALTIME, &to)
}

func (c *Clock) read(clock int32) time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(clock, &now); err != nil {
		c.t.Fatalf("read the clock: %v", err)
	}
	return time.Duration(now.Nano())
}
