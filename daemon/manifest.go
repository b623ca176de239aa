package daemon

import (
	"encoding/json"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"capd/ctl/wire"
)

// manifestName is the file that lands last beside a delivered capture: where it is, the
// capture is whole.
const manifestName = "manifest.json"

// States of record.Manifest.
const (
	manifestSpooled   = "spooled"
	manifestSigning   = "signing" // the manifest is there, its signature is not
	manifestDelivered = "delivered"
)

// manifest is what manifest.json holds.
type manifest struct {
	Capd    string       `json:"capd"`    // version
	Kernel  string       `json:"kernel"`  // uname -sr
	Clock   clockState   `json:"clock"`   // when the manifest was written
	Ruleset string       `json:"ruleset"` // the rules that ran, as nft prints them
	Capture wire.Capture `json:"capture"`
}

// clockState is how far the box's clock can be trusted, from adjtimex(2).
type clockState struct {
	Time         wire.Time `json:"time"`
	Synchronized bool      `json:"synchronized"`
	MaxErrorUS   int64     `json:"max_error_us"` // the kernel's own bound, microseconds
	OffsetNS     int64     `json:"offset_ns"`    // what the kernel is still correcting
}

// readClock asks the kernel; unprivileged reads are allowed.
func readClock() clockState {
	out := clockState{Time: wire.Time{Time: time.Now().UTC()}}
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
	m := manifest{Capd: d.version, Kernel: d.kernel, Clock: readClock(), Ruleset: rec.Ruleset, Capture: rec.Capture}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	return append(data, '\n'), nil
}
