package daemon

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"

	"capd/ctl/wire"
	"capd/daemon/api"
	"capd/daemon/deliver"
)

// maxStreams bounds the live streams of the box, each of which takes tapSize bytes.
const maxStreams = 16

// stream is a live copy of a capture for one reader (api.Live).
type stream struct {
	c   *capture
	r   *running
	tap *tap
	end func() // gives its place back
	own bool   // the capture ends with it
}

var _ api.Live = (*stream)(nil)

// Next waits for more of the stream (api.Live).
func (s *stream) Next(ctx context.Context) ([]byte, error) { return s.tap.next(ctx) }

// Done is closed when the capture has ended (api.Live).
func (s *stream) Done() <-chan struct{} { return s.tap.ended }

// Close ends the stream, and a capture that lives by it (api.Live).
func (s *stream) Close() {
	if s.own {
		_ = s.c.stopNow(context.Background(), wire.StopRequested) // fails with its context only
	}
	s.r.engine.leave(s.tap)
	s.end()
}

// Stream copies the packets of a running capture from now on (api.Daemon).
func (d *Daemon) Stream(ref string, via *wire.Flow) (api.Live, error) {
	c, err := d.find(ref)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	r, status := c.running, c.record.Capture.Status
	c.mu.Unlock()
	if r == nil {
		return nil, notRunning(c, status)
	}
	end, err := d.beginStream(via)
	if err != nil {
		return nil, err
	}
	tap, err := newTap(newStreamEncoder(c.id, r.plan, d))
	if err == nil && !r.engine.join(tap) {
		tap.memory.Free()
		err = notRunning(c, wire.StatusComplete)
	}
	if err != nil {
		end()
		return nil, startProblem(err)
	}
	return &stream{c: c, r: r, tap: tap, end: end}, nil
}

func notRunning(c *capture, status string) error {
	return &wire.Error{Status: http.StatusConflict, Code: wire.CodeConflict,
		Message: fmt.Sprintf("the capture is not running (%s): there is nothing to follow", status), Hint: "fetch its files: capctl download " + c.id[:8]}
}

// StartStream begins a capture without files, which ends when the stream is closed
// (api.Daemon).
func (d *Daemon) StartStream(ctx context.Context, req wire.StartRequest, who wire.Requester, via *wire.Flow) (wire.Capture, api.Live, error) {
	if err := checkStream(&req); err != nil {
		return wire.Capture{}, nil, err
	}
	p, err := d.plan(req)
	if err != nil {
		return wire.Capture{}, nil, err
	}
	p.stream = true
	end, err := d.beginStream(via)
	if err != nil {
		return wire.Capture{}, nil, err
	}
	c, r, err := d.begin(ctx, p, who)
	if err != nil {
		end()
		return wire.Capture{}, nil, err
	}
	return c.snapshot(), &stream{c: c, r: r, tap: r.tap, end: end, own: true}, nil
}

// checkStream refuses what only files can have.
func checkStream(r *wire.StartRequest) *wire.Error {
	const hint = "leave it out, or start a capture with files"
	switch {
	case r.Destination != "":
		return invalid("destination", "a live stream goes to whoever asks for it and is not delivered", hint)
	case r.Format == wire.FormatPcap:
		return invalid("format", "a live stream is pcapng", hint)
	case r.SegmentSize != nil && *r.SegmentSize != 0:
		return invalid("segment_size", "a live stream has no files", hint)
	case r.SegmentTime != nil && *r.SegmentTime != 0:
		return invalid("segment_time", "a live stream has no files", hint)
	case r.Ring != nil && *r.Ring != 0:
		return invalid("ring", "a live stream has no files", hint)
	}
	return nil
}

// beginStream takes a place for a stream, and leaves the connection that carries it, where
// one is named, out of every capture. What it gives takes both back.
func (d *Daemon) beginStream(via *wire.Flow) (end func(), err error) {
	d.mu.Lock()
	if d.streams >= maxStreams {
		d.mu.Unlock()
		return nil, &wire.Error{Status: http.StatusTooManyRequests, Code: wire.CodeLimit,
			Message: fmt.Sprintf("%d live streams are open already, as many as capd serves", maxStreams), Hint: "end one of them, or let the capture write files"}
	}
	d.streams++
	d.mu.Unlock()
	release := func() {}
	end = func() {
		release()
		d.mu.Lock()
		d.streams--
		d.mu.Unlock()
	}
	if via == nil {
		return end, nil
	}
	// The api room has seen to it that these are addresses.
	source, _ := netip.ParseAddr(via.Source)
	destination, _ := netip.ParseAddr(via.Destination)
	flow := deliver.Flow{Local: netip.AddrPortFrom(source, uint16(via.SourcePort)), Remote: netip.AddrPortFrom(destination, uint16(via.DestinationPort))}
	leave, err := d.own.leaveOut(context.Background(), "", flow)
	if err != nil {
		end()
		return nil, startProblem(fmt.Errorf("leave out the connection of the stream: %w", err))
	}
	release = leave
	return end, nil
}

// newStreamEncoder encodes the packets of a capture for a live stream: pcapng, whatever
// its files are.
func newStreamEncoder(id string, p *plan, d *Daemon) *encoder {
	e := newEncoder(id, p, d)
	e.classic = false
	return e
}
