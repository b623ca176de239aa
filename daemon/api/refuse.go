package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"

	"capd/ctl/wire"
)

// net/http answers what it cannot read as HTTP by itself, in plain text, before there is a
// request that a handler could have: a request line that is none, headers that are too
// long, an Expect that nobody knows. A jsonConn puts a wire.ErrorBody in the place of
// that answer, so that a client always finds JSON.

// jsonListener makes jsonConns.
type jsonListener struct {
	net.Listener
	unheard *atomic.Int64 // connections of which no handler has had a request yet
	crowd   *crowd
}

// Accept implements net.Listener. A connection for which there is no room is answered here.
func (l jsonListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		unix, ok := c.(*net.UnixConn)
		if !ok {
			return c, nil
		}
		leave, refusal := l.crowd.enter(ownerOf(unix))
		if leave == nil {
			turnAway(unix, refusal)
			continue
		}
		l.unheard.Add(1)
		return &jsonConn{UnixConn: unix, unheard: l.unheard, leave: leave}, nil
	}
}

// jsonConn is a connection whose answers are the handler's, or else JSON.
type jsonConn struct {
	*net.UnixConn
	handled atomic.Bool // a handler has the request: what is written is its answer
	heard   atomic.Bool // a handler has had a request, or there will be none
	unheard *atomic.Int64
	leave   func() // the crowd; only the first call counts
}

// hear notes that the connection waits no longer for its first request to be read.
func (c *jsonConn) hear() {
	if !c.heard.Swap(true) {
		c.unheard.Add(-1)
	}
}

// Close implements net.Conn.
func (c *jsonConn) Close() error {
	c.hear()
	defer c.leave()
	return c.UnixConn.Close()
}

// Write implements net.Conn. Net/http writes an answer of its own in one piece.
func (c *jsonConn) Write(b []byte) (int, error) {
	if c.handled.Load() {
		return c.UnixConn.Write(b)
	}
	status, ok := ownAnswer(b)
	if !ok {
		return c.UnixConn.Write(b)
	}
	if _, err := c.UnixConn.Write(refusalOf(status)); err != nil {
		return 0, err
	}
	return len(b), nil
}

// ownAnswer reads the status of an error that begins with "HTTP/1.1 400 ".
func ownAnswer(b []byte) (status int, ok bool) {
	rest, ok := bytes.CutPrefix(b, []byte("HTTP/1.1 "))
	if !ok || len(rest) < 3 {
		return 0, false
	}
	status, err := strconv.Atoi(string(rest[:3]))
	return status, err == nil && status >= 400
}

// refusalOf is the whole answer to something that is no request.
func refusalOf(status int) []byte {
	e := wire.Error{Code: wire.CodeBadRequest, Message: "this is not a request that can be read as HTTP/1.1", Hint: "use capctl, or curl --unix-socket"}
	switch status {
	case http.StatusRequestHeaderFieldsTooLarge:
		e.Code, e.Message, e.Hint = wire.CodeTooLarge, fmt.Sprintf("the request's headers are larger than %d KiB", maxHeader>>10), ""
	case http.StatusExpectationFailed:
		e.Message, e.Hint = "the header Expect asks for what nobody knows", `leave it out, or write "Expect: 100-continue"`
	case http.StatusNotImplemented:
		e.Message, e.Hint = "the body is encoded for transfer in a way that is not known", "send it with Content-Length, or chunked"
	case http.StatusHTTPVersionNotSupported:
		e.Message = "this is another version of HTTP: HTTP/1.1 is spoken here"
	}
	return rawAnswer(status, e)
}

// fullAnswer is the whole answer to a connection for which there is no room.
func fullAnswer(why string) []byte {
	return rawAnswer(http.StatusServiceUnavailable, wire.Error{Code: wire.CodeUnavailable, Message: why, Hint: "close some of them, or try again"})
}

// rawAnswer is an answer that ends the connection, written without net/http.
func rawAnswer(status int, e wire.Error) []byte {
	body, _ := json.Marshal(wire.ErrorBody{Error: e}) // of strings: cannot fail
	return fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s\n",
		status, http.StatusText(status), len(body)+1, body)
}

type connKey struct{}

// connContext is ConnContext, and lets a handler find its jsonConn.
func connContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ConnContext(ctx, c), connKey{}, c)
}

// handle marks the connection of a request as the handler's.
func handle(ctx context.Context) {
	if c, ok := ctx.Value(connKey{}).(*jsonConn); ok {
		c.handled.Store(true)
		c.hear()
	}
}

// connState takes the mark away when an answer is out and another request may come.
func connState(c net.Conn, state http.ConnState) {
	if c, ok := c.(*jsonConn); ok && state == http.StateIdle {
		c.handled.Store(false)
	}
}
