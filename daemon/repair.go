package daemon

import (
	"os"
	"time"

	"capd/ctl/wire"
	"capd/daemon/spool"
	"capd/ring/pcapng"
)

// repairer finds the last whole packet of a file in the given format.
func repairer(format string) spool.RepairFunc {
	repair := pcapng.Repair
	if format == wire.FormatPcap {
		repair = pcapng.RepairClassic
	}
	return func(f *os.File, size int64) (spool.Repaired, error) {
		r, err := repair(f, size)
		out := spool.Repaired{Bytes: r.Bytes, Packets: r.Packets, Captured: r.Captured}
		if r.Packets > 0 {
			out.First, out.Last = time.Unix(0, r.First), time.Unix(0, r.Last)
		}
		return out, err
	}
}
