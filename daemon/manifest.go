package daemon

import (
	"encoding/json"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"capd/ctl/wire"
)

// States of record.Manifest.
const (
	manifestSpooled   = "spooled"
	manifestSigning   = "signing" // the manifest is there, its signature is not
	manifestDelivered = "delivered"
)

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

// kernelRelease is `uname -sr`.
func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
}

// buildManifest describes a capture that has stopped and whose files are delivered.
func (d *Daemon) buildManifest(rec *record) ([]byte, error) {
	m := wire.Manifest{Capd: d.version, Kernel: d.kernel, Clock: readClock(), Ruleset: rec.Ruleset, Capture: rec.Capture}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	return append(data, '\n'), nil
}
