package daemon

import (
	"time"

	"golang.org/x/sys/unix"
)

// shortSlice is how long a reader's thread runs at a time where others want the same CPU:
// the least that the kernel takes.
const shortSlice = 100 * time.Microsecond

// takeShortSlices has the calling thread run soon after it is woken, also where another of
// equal rank has the CPU: whoever wants shorter slices may interrupt whoever has longer
// ones, which are some milliseconds (Linux 6.12, kernel/sched/fair.c: RUN_TO_PARITY,
// PREEMPT_SHORT). Its share of the CPU stays as it is. Where the kernel gives no time of its
// own the reader's clock is a packet's stamp, and this keeps that true on a machine with
// other work. Older kernels ignore it; where a sandbox forbids it, it is done without.
// restore takes it back; both are for the goroutine that holds the thread.
func takeShortSlices() (restore func()) {
	was, err := unix.SchedGetAttr(0, 0)
	if err != nil || was.Policy != unix.SCHED_NORMAL {
		return func() {}
	}
	short := *was
	short.Runtime = uint64(shortSlice)
	if unix.SchedSetAttr(0, &short, 0) != nil {
		return func() {}
	}
	return func() { _ = unix.SchedSetAttr(0, was, 0) }
}
