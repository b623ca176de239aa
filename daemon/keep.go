package daemon

import (
	"context"
	"time"

	"capd/ctl/wire"
)

// admitBytes grants a capture n more bytes of the spool, within limits.spool_size and
// limits.min_free_space.
func (d *Daemon) admitBytes(n int64) error {
	total, _, err := d.spool.Space()
	if err != nil {
		return err
	}
	lim := d.config().Limits
	return d.spool.Admit(n, int64(lim.SpoolSize.Of(wire.Size(total))), int64(lim.MinFreeSpace.Of(wire.Size(total))))
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
