package ctl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"capd/ctl/client"
	"capd/ctl/wire"
)

// look is one answer to the question how a capture is.
type look struct {
	capture wire.Capture
	err     error
}

// wait shows a capture's way until it is delivered, and returns it as it was last seen.
// The first signal stops the capture, the second leaves it to capd, as soon as capd has
// heard of the first.
func (a *app) wait(ctx context.Context, c wire.Capture, signals <-chan os.Signal) (wire.Capture, error) {
	ctx, cancel := context.WithCancel(ctx)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel()

	looks := make(chan look)
	tasks.Go(func() { a.follow(ctx, c, looks) })
	stopErrs := make(chan error, 1)

	p := a.newProgress()
	p.show(c)
	stopping, stopped := false, false
	for !finished(c) {
		select {
		case l := <-looks:
			switch {
			case l.err == nil:
				c = l.capture
				p.show(c)
			case errors.Is(l.err, client.ErrUnreachable):
				p.say("capd does not answer; asking again")
			default:
				p.end()
				return c, l.err
			}
			if l.err != nil && l.capture.ID == "" { // given up
				p.end()
				return c, l.err
			}
		case <-signals:
			if stopping {
				p.end()
				if !stopped { // what was asked for first is not taken back
					select {
					case err := <-stopErrs:
						stopped = err == nil || isConflict(err)
					case <-signals:
					case <-time.After(a.timing.quick):
					}
				}
				left := failf("left before the capture was %s", before(c))
				if !stopped {
					return c, left.withHint("capd has not said that it stops: capctl stop %s", short(c.ID))
				}
				return c, left.withHint("capd goes on with it: capctl show %s", short(c.ID))
			}
			stopping = true
			p.say("stopping; Ctrl-C again leaves the delivery to capd")
			id := c.ID
			tasks.Go(func() {
				_, err := a.client().Stop(ctx, id)
				stopErrs <- err
			})
		case err := <-stopErrs:
			if stopped = err == nil || isConflict(err); !stopped {
				stopping = false // a further signal tries again
				p.say("it could not be stopped: " + err.Error())
			}
		}
	}
	p.end()
	return c, a.outcome(c)
}

// follow asks for a capture again and again and hands on each answer. Where capd is
// away, it keeps asking; at the end of its patience it hands on the error with an empty
// capture and ends.
func (a *app) follow(ctx context.Context, c wire.Capture, looks chan<- look) {
	id := c.ID
	var away time.Time
	for pause := a.timing.poll / 8; ; pause = min(pause*2, a.timing.poll) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		quick, cancel := a.soon(ctx)
		got, err := a.client().Get(quick, id)
		cancel()
		if ctx.Err() != nil {
			return
		}
		switch {
		case err == nil:
			away = time.Time{}
		case errors.Is(err, context.DeadlineExceeded):
			err = hangs()
			fallthrough
		case errors.Is(err, client.ErrUnreachable):
			got = c // not the last word yet
			if away.IsZero() {
				away = time.Now()
			} else if time.Since(away) > a.timing.patience {
				got = wire.Capture{}
			}
		}
		select {
		case <-ctx.Done():
			return
		case looks <- look{got, err}:
		}
		if err != nil && got.ID == "" {
			return
		}
	}
}

// outcome judges a finished capture: an error where it failed or lost packets.
func (a *app) outcome(c wire.Capture) error {
	packets := plural(c.Packets.Captured, "packet", "packets")
	if c.Status == wire.StatusFailed {
		e := &exitError{exit: exitDelivery, message: "the capture failed"}
		if c.Error != nil {
			e.message += ": " + c.Error.Message
			e.hint = c.Error.Hint
		}
		if e.hint == "" {
			e.hint = "capctl show " + short(c.ID)
		}
		return e
	}
	done := "kept here"
	if c.Destination != "" {
		done = "delivered"
	}
	a.note("%s: %s, %s%s", done, packets, written(c), limited(c.Packets))
	if lossUnknown(c) {
		e := &exitError{exit: exitLoss, message: done + ", but capd ended while the capture ran: what was lost is not known"}
		return e.withHint("capctl show %s tells what there is", short(c.ID))
	}
	if n := lost(c.Packets); n > 0 {
		e := &exitError{exit: exitLoss, message: fmt.Sprintf("%s, but %s of %s were lost", done,
			plural(n, "packet", "packets"), count(told(c.Packets)))}
		return e.withHint("a tighter filter, --snaplen or --sample makes less to carry; capctl show %s tells where it was lost", short(c.ID))
	}
	return nil
}

// finished reports whether nothing more happens to a capture.
func finished(c wire.Capture) bool {
	return c.Status == wire.StatusComplete || c.Status == wire.StatusFailed
}

// before says what is still to come.
func before(c wire.Capture) string {
	if c.Destination == "" || c.Status == wire.StatusPending || c.Status == wire.StatusRunning {
		return "finished"
	}
	return "delivered"
}

func isConflict(err error) bool {
	var answered *wire.Error
	return errors.As(err, &answered) && answered.Code == wire.CodeConflict
}
