package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"capd/ctl/wire"
)

// maxKept is how many captures, running and finished, a box knows at a time. Each has a
// record of some KiB on the disk and in memory, and finished ones stay for
// limits.retention: who starts tiny ones in a loop would else fill both. At one capture in
// five minutes it is two weeks' worth.
const maxKept = 4096

// makePlace forgets the oldest captures that are done with where there are maxKept
// already, so that one more may begin. What still has a file here, or something to
// deliver, is never given up for that: then it refuses.
func (d *Daemon) makePlace(ctx context.Context) error {
	for {
		oldest, full := d.oldestDone()
		if !full {
			return nil
		}
		if oldest == nil {
			return &wire.Error{Status: http.StatusTooManyRequests, Code: wire.CodeLimit,
				Message: fmt.Sprintf("this box keeps %d captures already, as many as it can, and all of them have files here or something to deliver", maxKept),
				Hint:    "capctl list --all shows them; capctl rm those that are not needed, or set a shorter limits.retention"}
		}
		err := d.Remove(ctx, oldest.id, false)
		var gone *wire.Error
		switch {
		case err == nil:
			oldest.log.Info("capture is forgotten: newer ones take its place", "kept", maxKept)
		case errors.As(err, &gone) && gone.Code == wire.CodeNoSuchCapture: // somebody else was faster
		default:
			return fmt.Errorf("make place for another capture: %w", err)
		}
	}
}

// oldestDone tells whether there are maxKept captures and, where there are, which of those
// that are done with ended first; nil where none is.
func (d *Daemon) oldestDone() (oldest *capture, full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.captures)+d.starting <= maxKept { // the one that is to begin is among starting
		return nil, false
	}
	var since time.Time
	for _, c := range d.captures {
		if at, done := c.done(); done && (oldest == nil || at.Before(since)) {
			oldest, since = c, at
		}
	}
	return oldest, true
}

// done tells when the capture ended, if nothing of it is left here but its record and
// nothing is to be delivered.
func (c *capture) done() (at time.Time, done bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rec := &c.record.Capture
	if !finished(rec.Status) || rec.Completed == nil || rec.Destination != "" && c.record.Manifest != manifestDelivered {
		return time.Time{}, false
	}
	for f := range filesHere(rec) {
		if f.Status != wire.FileDelivered {
			return time.Time{}, false
		}
	}
	return rec.Completed.Time, true
}
