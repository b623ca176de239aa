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

// expireLater forgets a finished capture when limits.retention is over. What is not
// delivered stays, unless limits.drop_undelivered says otherwise.
func (d *Daemon) expireLater(c *capture, completed time.Time) {
	wait := max(time.Second, time.Until(completed.Add(d.config().Limits.Retention.Duration())))
	time.AfterFunc(wait, func() {
		lim := d.config().Limits
		c.mu.Lock()
		rec := c.record.Capture
		c.mu.Unlock()
		if !finished(rec.Status) {
			return // retried meanwhile: expireLater is called again at its end
		}
		if time.Since(completed) < lim.Retention.Duration() {
			d.expireLater(c, completed) // a reload has made it longer
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
