package daemon

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"capd/ctl/wire"
	"capd/daemon/api"
	"capd/nft/filter"
)

// maxStreams bounds the live streams of the box, each of which takes tapSize bytes.
const maxStreams = 16

// stream is a live copy of a capture for one reader (api.Live).
type stream struct {
	d   *Daemon
	c   *capture
	r   *running
	tap *tap
	via *filter.Flow // the connection it leaves the box by
	own bool         // the capture ends with it
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
	s.d.endStream(s.via)
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
	flow, err := d.beginStream(via)
	if err != nil {
		return nil, err
	}
	tap, err := newTap(newStreamEncoder(c.id, r.plan, d))
	if err == nil && !r.engine.join(tap) {
		tap.memory.Free()
		err = notRunning(c, wire.StatusComplete)
	}
	if err != nil {
		d.endStream(flow)
		return nil, startProblem(err)
	}
	return &stream{d: d, c: c, r: r, tap: tap, via: flow}, nil
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
	p, err := newPlan(req, d.config())
	if err != nil {
		return wire.Capture{}, nil, err
	}
	p.stream = true
	flow, err := d.beginStream(via)
	if err != nil {
		return wire.Capture{}, nil, err
	}
	c, r, err := d.begin(ctx, p, who)
	if err != nil {
		d.endStream(flow)
		return wire.Capture{}, nil, err
	}
	return c.snapshot(), &stream{d: d, c: c, r: r, tap: r.tap, via: flow, own: true}, nil
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

// beginStream takes a place for a stream, and leaves the connection that carries it out
// of every capture. endStream takes both back.
func (d *Daemon) beginStream(via *wire.Flow) (*filter.Flow, error) {
	var flow *filter.Flow
	if via != nil {
		// The api room has seen to it that these are addresses.
		source, _ := netip.ParseAddr(via.Source)
		destination, _ := netip.ParseAddr(via.Destination)
		flow = &filter.Flow{Source: source, SourcePort: uint16(via.SourcePort), Destination: destination, DestinationPort: uint16(via.DestinationPort)}
	}
	d.mu.Lock()
	if d.streams >= maxStreams {
		d.mu.Unlock()
		return nil, &wire.Error{Status: http.StatusTooManyRequests, Code: wire.CodeLimit,
			Message: fmt.Sprintf("%d live streams are open already, as many as capd serves", maxStreams), Hint: "end one of them, or let the capture write files"}
	}
	d.streams++
	d.mu.Unlock()
	if flow == nil {
		return nil, nil
	}
	if err := d.table.AddExclude(*flow); err != nil {
		d.endStream(nil)
		return nil, startProblem(fmt.Errorf("leave out the connection of the stream: %w", err))
	}
	d.mu.Lock()
	d.leftOut = append(d.leftOut, *flow)
	captures := make([]*capture, 0, len(d.captures))
	for _, c := range d.captures {
		captures = append(captures, c)
	}
	d.mu.Unlock()
	for _, c := range captures {
		c.noteLeftOut(*flow)
	}
	return flow, nil
}

func (d *Daemon) endStream(flow *filter.Flow) {
	d.mu.Lock()
	d.streams--
	if flow != nil {
		i := slices.Index(d.leftOut, *flow)
		d.leftOut = slices.Delete(d.leftOut, i, i+1)
	}
	d.mu.Unlock()
	if flow == nil {
		return
	}
	if err := d.table.RemoveExclude(*flow); err != nil {
		d.log.Error("capture a stream's connection again", "flow", flow.String(), "err", err)
	}
}

// noteLeftOut has a running capture say that it lacks a connection.
func (c *capture) noteLeftOut(flow filter.Flow) {
	const code, message = "stream_connection", "connections by which live streams left this box are in no capture meanwhile: "
	const longest = 500 // bytes of a message that grows
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.isRunning() {
		return
	}
	warnings := c.record.Capture.Warnings
	i := slices.IndexFunc(warnings, func(w wire.Warning) bool { return w.Code == code })
	switch {
	case i < 0:
		c.warnLocked(wire.Warning{Code: code, Message: message + flow.String()})
	case !strings.Contains(warnings[i].Message, flow.String()) && len(warnings[i].Message) < longest:
		warnings = slices.Clone(warnings)
		warnings[i].Message += ", " + flow.String()
		c.record.Capture.Warnings = warnings
	}
}

// warnLocked adds a warning to the capture.
func (c *capture) warnLocked(w wire.Warning) {
	c.record.Capture.Warnings = append(slices.Clone(c.record.Capture.Warnings), w)
	c.tellLocked(wire.EventWarning, nil)
}

// newStreamEncoder encodes the packets of a capture for a live stream: pcapng, whatever
// its files are.
func newStreamEncoder(id string, p *plan, d *Daemon) *encoder {
	e := newEncoder(id, p, d)
	e.classic = false
	return e
}
