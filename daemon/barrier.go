package daemon

import (
	"time"

	"golang.org/x/sys/unix"
)

// membarrierGlobal is MEMBARRIER_CMD_GLOBAL, include/uapi/linux/membarrier.h.
const membarrierGlobal = 1

// graceperiod returns when no packet can still be inside rules that were replaced
// before the call. Packets traverse rules inside an RCU read-side section, and
// membarrier(2) with MEMBARRIER_CMD_GLOBAL waits for an RCU grace period
// (kernel/sched/membarrier.c calls synchronize_rcu). Where the kernel refuses it (a
// nohz_full box), a pause far longer than any packet's way through the rules stands in.
func graceperiod() {
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); errno != 0 {
		time.Sleep(50 * time.Millisecond)
	}
}
