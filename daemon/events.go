package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"capd/ctl/wire"
	"capd/daemon/api"
	"capd/nft"
)

const (
	// maxListeners bounds those who follow events at the same time.
	maxListeners = 64
	// maxWaiting is how many events wait for a listener; what comes then is left out, and
	// the listener told so.
	maxWaiting = 256
)

// events passes on what happens to captures. Whoever tells it something never waits for
// a listener. The zero value is ready.
type events struct {
	some atomic.Bool // there is a listener: an event is worth its making

	mu        sync.Mutex
	listeners []*listener
	closed    bool
}

// listener is one who follows events: a bounded queue.
type listener struct {
	events *events
	wake   chan struct{} // holds one token: the queue has changed
	done   chan struct{} // closed with the queue

	// Under events.mu.
	waiting [][]byte // lines
	missed  uint64   // left out since the last line of waiting
	closed  bool     // nothing will be added
}

var _ api.Live = (*listener)(nil)

// tell passes an event on to everyone who listens.
func (e *events) tell(event wire.Event) {
	line := eventLine(event)
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, l := range e.listeners {
		l.add(line)
	}
}

// eventLine is an event as it is sent.
func eventLine(event wire.Event) []byte {
	line, err := json.Marshal(event)
	if err != nil { // nothing in an event can fail
		line = fmt.Appendf(nil, `{"time":%q,"type":%q}`, event.Time.UTC().Format(wire.TimeFormat), event.Type)
	}
	return append(line, '\n')
}

func laggedLine(missed uint64) []byte {
	return eventLine(wire.Event{Time: *now(), Type: wire.EventLagged, Missed: missed})
}

// add queues a line, or leaves it out; before the first that finds room again stands how
// many did not.
func (l *listener) add(line []byte) {
	if l.missed > 0 && len(l.waiting)+1 < maxWaiting {
		l.waiting = append(l.waiting, laggedLine(l.missed))
		l.missed = 0
	}
	if l.missed > 0 || len(l.waiting) >= maxWaiting {
		l.missed++
		return
	}
	l.waiting = append(l.waiting, line)
	l.notify()
}

func (l *listener) notify() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// listen adds a listener, which must be closed.
func (e *events) listen() (*listener, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, shuttingDown()
	}
	if len(e.listeners) >= maxListeners {
		return nil, &wire.Error{Status: http.StatusTooManyRequests, Code: wire.CodeLimit,
			Message: fmt.Sprintf("%d clients follow events already, as many as capd serves", maxListeners), Hint: "end one of them (capctl watch), or poll " + wire.PathCaptures}
	}
	l := &listener{events: e, wake: make(chan struct{}, 1), done: make(chan struct{})}
	e.listeners = append(e.listeners, l)
	e.some.Store(true)
	return l, nil
}

// close ends every listener's stream after what waits for it.
func (e *events) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	for _, l := range e.listeners {
		l.closed = true
		l.notify()
		close(l.done)
	}
	e.listeners = nil
	e.some.Store(false)
}

// Next waits for the next line (api.Live).
func (l *listener) Next(ctx context.Context) ([]byte, error) {
	for {
		line, over := l.take()
		if line != nil {
			return line, nil
		}
		if over {
			return nil, io.EOF
		}
		select {
		case <-l.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (l *listener) take() (line []byte, over bool) {
	l.events.mu.Lock()
	defer l.events.mu.Unlock()
	switch {
	case len(l.waiting) > 0:
		line = l.waiting[0]
		l.waiting = slices.Delete(l.waiting, 0, 1)
	case l.missed > 0:
		line = laggedLine(l.missed)
		l.missed = 0
	}
	return line, l.closed
}

// Done is closed when no more events come (api.Live).
func (l *listener) Done() <-chan struct{} { return l.done }

// Close ends the listener (api.Live).
func (l *listener) Close() {
	e := l.events
	e.mu.Lock()
	defer e.mu.Unlock()
	e.listeners = slices.DeleteFunc(e.listeners, func(other *listener) bool { return other == l })
	e.some.Store(len(e.listeners) > 0)
}

// Events follows what happens to captures from now on (api.Daemon).
func (d *Daemon) Events() (api.Live, error) {
	l, err := d.events.listen()
	if err != nil {
		return nil, err
	}
	return l, nil
}

// tellLocked tells those who listen what happened to the capture: to one of its files,
// where one is given.
func (c *capture) tellLocked(kind string, file *wire.File) {
	if !c.d.events.some.Load() {
		return
	}
	capture := c.record.Capture
	capture.Files, capture.Warnings = []wire.File{}, slices.Clone(capture.Warnings)
	if file != nil {
		capture.Files = append(capture.Files, *file)
	} else {
		capture.Files = append(capture.Files, c.record.Capture.Files...)
	}
	if r := c.running; r != nil {
		live := &r.engine.live
		fillArrived(&capture.Packets, arrivedLoss(nft.Counters{}, false, r.reader.Stats().Groups), live)
		capture.Bytes.Captured, capture.Bytes.Written = live.bytes.Load(), live.written.Load()
	}
	c.d.events.tell(wire.Event{Time: wire.Time{Time: time.Now()}, Type: kind, Capture: &capture})
}

// warnedLocked tells whether the record has a warning of this kind.
func (c *capture) warnedLocked(code string) bool {
	return slices.ContainsFunc(c.record.Capture.Warnings, func(w wire.Warning) bool { return w.Code == code })
}

// warnLocked adds a warning to the capture.
func (c *capture) warnLocked(w wire.Warning) {
	c.record.Capture.Warnings = append(slices.Clip(c.record.Capture.Warnings), w)
	c.tellLocked(wire.EventWarning, nil)
}

func (c *capture) tell(kind string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tellLocked(kind, nil)
}

// tellUnstarted tells of a capture that could not be started, and leaves no other trace.
func (c *capture) tellUnstarted(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rec := &c.record.Capture
	rec.Status, rec.Error = wire.StatusFailed, &wire.Problem{Code: wire.CodeInternal, Message: err.Error()}
	var known *wire.Error
	if errors.As(err, &known) {
		rec.Error.Code, rec.Error.Hint = known.Code, known.Hint
	}
	c.tellLocked(wire.EventFailed, nil)
}

// tellEndLocked tells of a capture's last status.
func (c *capture) tellEndLocked() {
	switch c.record.Capture.Status {
	case wire.StatusComplete:
		c.tellLocked(wire.EventComplete, nil)
	case wire.StatusFailed:
		c.tellLocked(wire.EventFailed, nil)
	}
}
