package daemon

import (
	"context"
	"errors"
	"fmt"
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

// expireLater forgets a capture that has just finished when limits.retention is over, by
// the monotonic clock: a wall clock that is set ends nothing early. What is not delivered
// stays, unless limits.drop_undelivered says otherwise. c.mu is held.
func (d *Daemon) expireLater(c *capture) {
	d.expireAfter(c, *c.record.Capture.Completed, time.Now(), d.config().Limits.Retention.Duration())
}

// expireKept is expireLater for a capture that was finished under an earlier capd: its
// age is what the wall clock says, once capd has run for a while.
func (d *Daemon) expireKept(c *capture) {
	retention, completed := d.config().Limits.Retention.Duration(), *c.record.Capture.Completed
	d.expireAfter(c, completed, completed.Time, max(time.Until(completed.Add(retention)), min(retention, settling)))
}

// expireAfter looks after wait, or after a whole retention where that is less (the clock
// was set back), whether the capture has been complete for so long: since then, which the
// record calls completed.
func (d *Daemon) expireAfter(c *capture, completed wire.Time, since time.Time, wait time.Duration) {
	wait = max(time.Second, min(wait, d.config().Limits.Retention.Duration()))
	time.AfterFunc(wait, func() {
		lim := d.config().Limits
		c.mu.Lock()
		rec := c.record.Capture
		c.mu.Unlock()
		if !finished(rec.Status) || rec.Completed == nil || !rec.Completed.Equal(completed.Time) {
			return // retried meanwhile: expireLater is called again at its end
		}
		if rest := lim.Retention.Duration() - time.Since(since); rest > 0 {
			d.expireAfter(c, completed, since, rest) // the clock was set, or a reload has made it longer
			return
		}
		if err := d.Remove(context.Background(), c.id, lim.DropUndelivered); err == nil {
			c.log.Info("capture is forgotten, its retention is over")
		}
	})
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
