package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"capd/ctl/wire"
)

// drainTimeout is how long a client may take for what is left of a stream after its end.
const drainTimeout = 2 * time.Minute

// tail streams a running capture.
func (h *Handler) tail(c *call) error {
	via, err := c.via()
	if err != nil {
		return err
	}
	if err := sealedOnly(c); err != nil {
		return err
	}
	if c.r.Method == http.MethodHead {
		c.w.Header().Set("Content-Type", wire.ContentTypePcapng)
		return nil
	}
	live, err := h.daemon.Stream(c.vars[0], via)
	if err != nil {
		return err
	}
	return h.pour(c, live, wire.ContentTypePcapng)
}

// sealedOnly refuses a caller whose packets may leave the box sealed or not at all: a live
// stream is not sealed.
func sealedOnly(c *call) error {
	if refused := c.grant.reaches(""); refused != nil {
		return refused
	}
	return nil
}

// stream starts a capture that lives as long as this call.
func (h *Handler) stream(c *call) error {
	var req wire.StartRequest
	if err := c.readBody(&req); err != nil {
		return err
	}
	c.account.asks(&req)
	via, err := c.via()
	if err != nil {
		return err
	}
	if e := validateRequest(&req); e != nil {
		return e
	}
	if e := c.grant.fit(&req); e != nil {
		return e
	}
	capture, live, err := h.daemon.StartStream(c.r.Context(), req, c.peer.Requester(), via)
	if err != nil {
		return err
	}
	c.account.is(&capture)
	c.w.Header().Set(wire.HeaderCapture, capture.ID)
	return h.pour(c, live, wire.ContentTypePcapng)
}

// events follows what happens to captures.
func (h *Handler) events(c *call) error {
	if err := c.query(nil); err != nil {
		return err
	}
	if c.r.Method == http.MethodHead {
		c.w.Header().Set("Content-Type", wire.ContentTypeLines)
		return nil
	}
	live, err := h.daemon.Events()
	if err != nil {
		return err
	}
	return h.pour(c, live, wire.ContentTypeLines)
}

// via reads the parameter that names the connection by which a stream leaves the box; nil
// where there is none.
func (c *call) via() (*wire.Flow, error) {
	values, err := url.ParseQuery(c.r.URL.RawQuery)
	if err != nil {
		return nil, &wire.Error{Status: http.StatusBadRequest, Code: wire.CodeBadRequest, Message: "the query is not one: " + err.Error()}
	}
	given := values[wire.ParamVia]
	for name := range values {
		if name != wire.ParamVia {
			e := unknownField(name, name, []string{wire.ParamVia})
			e.Message = fmt.Sprintf("unknown parameter %s", shown(name))
			return nil, e
		}
	}
	if len(given) == 0 {
		return nil, nil
	}
	source, destination, _ := strings.Cut(given[0], ",")
	from, fromErr := netip.ParseAddrPort(source)
	to, toErr := netip.ParseAddrPort(destination)
	from, to = netip.AddrPortFrom(from.Addr().Unmap().WithZone(""), from.Port()), netip.AddrPortFrom(to.Addr().Unmap().WithZone(""), to.Port())
	if len(given) > 1 || fromErr != nil || toErr != nil || from.Port() == 0 || to.Port() == 0 || from.Addr().Is4() != to.Addr().Is4() {
		return nil, invalid(wire.ParamVia, fmt.Sprintf("%s is %s", wire.ParamVia, shown(strings.Join(given, " "))),
			"write the two ends of one TCP connection: via=192.0.2.1:50022,192.0.2.2:22 or via=[2001:db8::1]:50022,[2001:db8::2]:22")
	}
	return &wire.Flow{Source: from.Addr().String(), SourcePort: wire.Port(from.Port()), Destination: to.Addr().String(), DestinationPort: wire.Port(to.Port())}, nil
}

// pour sends what comes to the client until one of the two ends, and closes live. A slow
// client is waited for as long as more can come; then it has drainTimeout for the rest.
// Its audit line is written at its beginning: the end can be a day away.
func (h *Handler) pour(c *call, live Live, contentType string) error {
	defer live.Close()
	ctx, cancel := context.WithCancel(c.r.Context())
	defer cancel()
	control := http.NewResponseController(c.w)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-live.Done():
			_ = control.SetWriteDeadline(time.Now().Add(drainTimeout)) // a recorder in a test has none
		case <-ctx.Done():
		}
	}()
	defer func() { cancel(); <-watched }()

	if c.route.audit != "" {
		h.audit(c, c.route, resultOK, "")
	}
	c.w.Header().Set("Content-Type", contentType)
	c.w.WriteHeader(http.StatusOK)
	if err := control.Flush(); err != nil {
		return nil // gone already
	}
	for {
		piece, err := live.Next(ctx)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case ctx.Err() != nil:
			return nil // the client has what it wanted
		case err != nil:
			return fmt.Errorf("%w: %w", errCut, err)
		}
		if _, err := c.w.Write(piece); err != nil {
			return nil // it went away, or did not take the rest in time
		}
		if err := control.Flush(); err != nil {
			return nil
		}
	}
}
