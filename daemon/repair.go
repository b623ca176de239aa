package daemon

import (
	"os"

	"capd/daemon/spool"
)

func repairPcapng(f *os.File, size int64) (spool.Repaired, error) { return spool.Repaired{}, nil }

func repairPcap(f *os.File, size int64) (spool.Repaired, error) { return spool.Repaired{}, nil }
