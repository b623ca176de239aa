package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"

	"capd/ctl/wire"
)

// StreamOptions says how a live stream travels.
type StreamOptions struct {
	// Via is the TCP connection through which the stream leaves the box that it comes
	// from (an SSH connection); capd keeps it out of every capture meanwhile. nil = none.
	Via *wire.Flow
}

func (o StreamOptions) query() string {
	if o.Via == nil {
		return ""
	}
	end := func(address string, port wire.Port) string {
		return net.JoinHostPort(address, strconv.Itoa(int(port)))
	}
	return "?" + url.Values{wire.ParamVia: {end(o.Via.Source, o.Via.SourcePort) + "," + end(o.Via.Destination, o.Via.DestinationPort)}}.Encode()
}

// Stream gives the packets of a running capture from now on, as pcapng. The stream ends
// with io.EOF when the capture does, and in io.ErrUnexpectedEOF where it is cut. The
// caller closes it; cancelling ctx ends it.
func (c *Client) Stream(ctx context.Context, ref string, o StreamOptions) (io.ReadCloser, error) {
	path, err := capturePath(ref, "/stream"+o.query())
	if err != nil {
		return nil, err
	}
	resp, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// StartStream begins a capture without files, which lives as long as the stream is open,
// and gives its id and its packets as pcapng. See Stream for the stream's end; closing it
// before stops the capture.
func (c *Client) StartStream(ctx context.Context, req wire.StartRequest, o StreamOptions) (id string, r io.ReadCloser, err error) {
	resp, err := c.do(ctx, http.MethodPost, wire.PathStream+o.query(), req)
	if err != nil {
		return "", nil, err
	}
	return resp.Header.Get(wire.HeaderCapture), resp.Body, nil
}

// Events listens to what happens to captures from now on. It must be closed.
func (c *Client) Events(ctx context.Context) (*Events, error) {
	ctx, cancel := context.WithCancel(ctx)
	resp, err := c.do(ctx, http.MethodGet, wire.PathEvents, nil) //nolint:bodyclose // Events.Close does
	if err != nil {
		cancel()
		return nil, err
	}
	return &Events{client: c, ctx: ctx, cancel: cancel, body: resp.Body, lines: bufio.NewReader(resp.Body)}, nil
}

// Events is a stream of events. One goroutine may call Next at a time; Close may be
// called from another.
type Events struct {
	client *Client
	ctx    context.Context
	cancel context.CancelFunc
	body   io.Closer
	lines  *bufio.Reader
}

// Next waits for the next event. io.EOF says that capd has stopped; an event of type
// wire.EventLagged that some are missing, because they were read too slowly.
func (e *Events) Next() (wire.Event, error) {
	var event wire.Event
	line, err := e.lines.ReadBytes('\n')
	switch {
	case errors.Is(err, io.EOF) && len(line) == 0:
		return event, io.EOF
	case err != nil:
		return event, e.client.transportError(e.ctx, err)
	}
	if err := json.Unmarshal(bytes.TrimSpace(line), &event); err != nil {
		return event, fmt.Errorf("the event from %s is not capd's: %w", e.client.where(), err)
	}
	return event, nil
}

// Close ends the stream, and a Next that waits.
func (e *Events) Close() error {
	e.cancel()
	return e.body.Close()
}
