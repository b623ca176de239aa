package daemon

import (
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"capd/ctl/wire"
)

// clockWatch notices that somebody has set the wall clock. That clock and the monotonic one
// go at the same pace, also while NTP slews them; they part only where the wall clock is
// set, or where the machine has slept, which the monotonic clock does not count
// (clock_gettime(2)).
type clockWatch struct {
	read  func() (wall, monotonic time.Duration) // each since a moment of its own
	ahead time.Duration                          // of the wall clock against the monotonic one, at the last look
}

func newClockWatch(read func() (wall, monotonic time.Duration)) clockWatch {
	w := clockWatch{read: read}
	w.ahead = w.parted()
	return w
}

// bothClocks reads the machine's.
func bothClocks() func() (wall, monotonic time.Duration) {
	base := time.Now()
	return func() (wall, monotonic time.Duration) {
		now := time.Now()
		return time.Duration(now.UnixNano()), now.Sub(base)
	}
}

const (
	// stepOver is the least that counts as a step: NTP programs slew less than this.
	stepOver = 100 * time.Millisecond
	// codeClockSet is the code of the warning that the clock was set during a capture.
	codeClockSet = "clock_set"
	// maxClockWarnings bounds what a clock that is set again and again does to a record.
	maxClockWarnings = 10
)

// look gives by how much the wall clock was set since the last look, 0 for not at all.
func (w *clockWatch) look() time.Duration {
	step := w.parted() - w.ahead
	if step.Abs() < stepOver {
		return 0
	}
	// The clocks are read one after the other, and a process can be held up between the
	// two: only what the next reading says too was a step.
	again := w.parted() - w.ahead
	if (again - step).Abs() >= stepOver {
		return 0
	}
	w.ahead += again
	return again
}

// parted is how far the wall clock is ahead of the monotonic one.
func (w *clockWatch) parted() time.Duration {
	wall, monotonic := w.read()
	return wall - monotonic
}

// tellClock notes in the journal and in the records of running captures that the wall
// clock was set: the times in their files follow the clock.
func (d *Daemon) tellClock(step time.Duration, captures []*capture) {
	if step == 0 {
		return
	}
	by := step.Round(time.Millisecond).String()
	if step > 0 {
		by = "+" + by
	}
	d.log.Warn("the clock of this box was set, or the box slept", slog.String("by", by))
	w := wire.Warning{Code: codeClockSet, Message: fmt.Sprintf("the clock of this box was set by %s (or the box slept), before %s by its new time: "+
		"times of packets, files and of this record follow the clock; limits do not", by, time.Now().UTC().Format(time.RFC3339))}
	for _, c := range captures {
		c.mu.Lock()
		told := 0
		for _, old := range c.record.Capture.Warnings {
			if old.Code == codeClockSet {
				told++
			}
		}
		if c.running != nil && told < maxClockWarnings {
			c.warnLocked(w)
		}
		c.mu.Unlock()
	}
}

// readClock asks the kernel; unprivileged reads are allowed.
func readClock() wire.ClockState {
	out := wire.ClockState{Time: wire.Time{Time: time.Now().UTC()}}
	var tx unix.Timex
	state, err := unix.Adjtimex(&tx)
	if err != nil {
		return out
	}
	out.Synchronized = state != unix.TIME_ERROR && tx.Status&unix.STA_UNSYNC == 0
	out.MaxErrorUS = int64(tx.Maxerror)
	out.OffsetNS = int64(tx.Offset)
	if tx.Status&unix.STA_NANO == 0 {
		out.OffsetNS *= 1000
	}
	return out
}
