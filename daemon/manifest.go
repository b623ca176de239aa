package daemon

import (
	"encoding/json"
	"fmt"

	"golang.org/x/sys/unix"

	"capd/ctl/wire"
)

// States of record.Manifest.
const (
	manifestSpooled   = "spooled"
	manifestSigning   = "signing" // the manifest is there, its signature is not
	manifestDelivered = "delivered"
)

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
