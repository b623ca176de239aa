package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"capd/ctl/wire"
	"capd/daemon/spool"
)

// bounds are limits.spool_size and limits.min_free_space in bytes; they can be shares of
// the spool's file system, or of memory.
func (d *Daemon) bounds() (size, keep int64, err error) {
	total, _, err := d.spool.Space()
	lim := d.config().Limits
	return int64(lim.SpoolSize.Of(wire.Size(total))), int64(lim.MinFreeSpace.Of(wire.Size(total))), err
}

// admitBytes grants a capture n more bytes of the spool, within its bounds.
func (d *Daemon) admitBytes(n int64) error {
	size, keep, err := d.bounds()
	if err != nil {
		return err
	}
	return d.spool.Admit(n, size, keep)
}

// anyRoom tells why the spool has no room for another capture, or nil.
func (d *Daemon) anyRoom() error {
	err := d.admitBytes(1)
	if err == nil {
		d.spool.Written(1)
		d.spool.Release(1)
	}
	return err
}

// settling is how long a capd that has just started deletes nothing that an earlier one
// kept: the clock of a box that has just booted may be wrong by years until it hears of
// the time.
const settling = time.Hour

// expiry is when a finished capture is forgotten; under its capture's mu.
type expiry struct {
	timer     *time.Timer // nil = not finished yet
	completed wire.Time   // the end that it belongs to: after a retry there is another
	since     time.Time   // limits.retention counts from here
	notBefore time.Time
}

// expireLater forgets a capture that has just finished when limits.retention is over, by
// the monotonic clock: a wall clock that is set ends nothing early. What is not delivered
// stays, unless limits.drop_undelivered says otherwise. c.mu is held.
func (d *Daemon) expireLater(c *capture) {
	d.expireAt(c, expiry{completed: *c.record.Capture.Completed, since: time.Now()})
}

// expireKept is expireLater for a capture that was finished under an earlier capd: its
// age is what the wall clock says, once capd has run for a while.
func (d *Daemon) expireKept(c *capture) {
	completed := *c.record.Capture.Completed
	d.expireAt(c, expiry{completed: completed, since: completed.Time, notBefore: time.Now().Add(settling)})
}

// expireAt looks when e says, or after a whole retention where that is less (the clock was
// set back), whether the capture is due. c.mu is held.
func (d *Daemon) expireAt(c *capture, e expiry) {
	if c.expiry.timer != nil {
		c.expiry.timer.Stop()
	}
	retention := d.config().Limits.Retention.Duration()
	wait := max(time.Second, min(retention, max(retention-time.Since(e.since), time.Until(e.notBefore))))
	e.timer = time.AfterFunc(wait, func() { d.expire(c) })
	c.expiry = e
}

// expire forgets the capture if it is still finished, and its retention over.
func (d *Daemon) expire(c *capture) {
	lim := d.config().Limits
	c.mu.Lock()
	rec, e := c.record.Capture, c.expiry
	if !finished(rec.Status) || rec.Completed == nil || !rec.Completed.Equal(e.completed.Time) {
		c.mu.Unlock()
		return // retried meanwhile: expireLater is called again at its end
	}
	if time.Since(e.since) < lim.Retention.Duration() {
		d.expireAt(c, e) // the clock was set, or a reload has made it longer
		c.mu.Unlock()
		return
	}
	c.mu.Unlock()
	if err := d.Remove(context.Background(), c.id, lim.DropUndelivered); err == nil {
		c.log.Info("capture is forgotten, its retention is over")
	}
}

// expireAnew puts a changed limits.retention and limits.drop_undelivered in force for the
// captures that are finished already.
func (d *Daemon) expireAnew() {
	d.mu.Lock()
	captures := slices.Collect(maps.Values(d.captures))
	d.mu.Unlock()
	for _, c := range captures {
		c.mu.Lock()
		if c.expiry.timer != nil {
			d.expireAt(c, c.expiry)
		}
		c.mu.Unlock()
	}
}

// mayAllocate grants that a segment of n bytes is allocated before it is filled
// (spool.Options.Ahead).
func (d *Daemon) mayAllocate(n int64) bool {
	if d.spool.InMemory() {
		return false // memory is taken as it is needed
	}
	_, keep, err := d.bounds()
	return err == nil && d.spool.Reserve(n, keep) == nil
}

// refusal remembers for a moment that there was no room, so that a flood does not ask for
// each packet.
type refusal struct {
	until time.Time
	err   error
}

const refusalLasts = 10 * time.Millisecond

// errNoRoomNow is admit's where room may come: until then packets are lost, and the
// capture goes on.
var errNoRoomNow = errors.New("the spool has no room at the moment")

// admit grants the capture n more bytes of the spool (spool.Options.Admit). A ring lets
// its oldest segments go for that. Only the engine calls it.
func (c *capture) admit(n int64) error {
	if c.refused.err != nil && time.Now().Before(c.refused.until) {
		return c.refused.err
	}
	err := c.d.admitBytes(n)
	for errors.Is(err, spool.ErrFull) && c.length() > 0 && c.letGo(false) {
		err = c.d.admitBytes(n)
	}
	if errors.Is(err, spool.ErrFull) && (c.d.spool.InMemory() || c.giveUpDelivery()) {
		err = fmt.Errorf("%w: %w", errNoRoomNow, err)
	}
	c.refused = refusal{time.Now().Add(refusalLasts), err}
	return err
}
