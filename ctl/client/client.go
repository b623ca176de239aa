// Package client speaks to capd: HTTP and JSON over its Unix socket, or over whatever
// connection Client.Dial gives (a pipe through SSH, for one).
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"capd/ctl/wire"
)

// connectTimeout bounds the wait for a connection. A Unix socket answers at once unless
// its daemon hangs; nothing after the connection is bounded but by the caller's context,
// since a destination check or a download takes as long as it takes.
const connectTimeout = 5 * time.Second

// maxAnswer bounds a JSON answer, in bytes: the largest list that makes sense (some
// 10,000 finished captures) is a tenth of it.
const maxAnswer = 256 << 20

// host is what requests name as their host. A browser that was lured to the socket's
// HTTP interface could not send it.
const host = "capd"

// Client is a connection to one capd. The zero value speaks to wire.DefaultSocket. It is
// safe for concurrent use; its fields must not be changed after the first call.
//
// Errors are a *wire.Error where capd answered with one, an *UnreachableError (which is
// ErrUnreachable) where it did not answer, and the context's error where that ended first.
type Client struct {
	// Socket is the path of capd's Unix socket; "" means wire.DefaultSocket.
	Socket string

	// Dial makes a connection to capd, in place of Socket. Its errors reach the caller
	// inside an *UnreachableError, or as they are where they are one already.
	Dial func(ctx context.Context) (net.Conn, error)

	// UserAgent names the program to capd, for its log: "capctl/1.2.0".
	UserAgent string

	once sync.Once
	http *http.Client
}

// Start asks for a capture and returns it as it then is: running, or pending.
func (c *Client) Start(ctx context.Context, req wire.StartRequest) (wire.Capture, error) {
	return call[wire.Capture](ctx, c, http.MethodPost, wire.PathCaptures, req)
}

// List returns captures, newest first: those that are not finished and the last 20, or all.
func (c *Client) List(ctx context.Context, all bool) ([]wire.Capture, error) {
	path := wire.PathCaptures
	if all {
		path += "?all=true"
	}
	list, err := call[wire.CaptureList](ctx, c, http.MethodGet, path, nil)
	return list.Captures, err
}

// Get returns one capture. Ref is an id, the beginning of one (4 characters or more) or
// a name, here and in the calls below.
func (c *Client) Get(ctx context.Context, ref string) (wire.Capture, error) {
	return callCapture(ctx, c, http.MethodGet, ref, "")
}

// Stop ends a capture and returns it with its final counts. Stopping one that has ended
// already does nothing.
func (c *Client) Stop(ctx context.Context, ref string) (wire.Capture, error) {
	return callCapture(ctx, c, http.MethodPost, ref, "/stop")
}

// Retry has capd deliver again, at once, what is not delivered.
func (c *Client) Retry(ctx context.Context, ref string) (wire.Capture, error) {
	return callCapture(ctx, c, http.MethodPost, ref, "/retry")
}

// Remove forgets a finished capture and deletes what is left of it on the box. Without
// force, undelivered data makes it fail with wire.CodeUndelivered.
func (c *Client) Remove(ctx context.Context, ref string, force bool) error {
	path, err := capturePath(ref, "")
	if err != nil {
		return err
	}
	if force {
		path += "?force=true"
	}
	resp, err := c.do(ctx, http.MethodDelete, path, nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// File opens one file of a capture as it lies on the box. The size is its length in
// bytes, or -1 where capd does not say; a shorter stream ends in io.ErrUnexpectedEOF.
// The caller closes the reader; cancelling ctx ends it.
func (c *Client) File(ctx context.Context, ref, name string) (r io.ReadCloser, size int64, err error) {
	if err := segment(name, wire.CodeNoSuchFile, "file"); err != nil {
		return nil, 0, err
	}
	path, err := capturePath(ref, "/files/"+url.PathEscape(name))
	if err != nil {
		return nil, 0, err
	}
	resp, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, 0, err
	}
	return resp.Body, resp.ContentLength, nil
}

// Destinations returns the delivery profiles, without their secrets.
func (c *Client) Destinations(ctx context.Context) ([]wire.Destination, error) {
	list, err := call[wire.DestinationList](ctx, c, http.MethodGet, wire.PathDestinations, nil)
	return list.Destinations, err
}

// CheckDestination tries every step of a delivery to a profile. A step that fails is no
// error: see wire.Check.OK.
func (c *Client) CheckDestination(ctx context.Context, name string) (wire.Check, error) {
	if err := segment(name, wire.CodeNoSuchDestination, "destination"); err != nil {
		return wire.Check{}, err
	}
	return call[wire.Check](ctx, c, http.MethodPost, wire.PathDestinations+"/"+url.PathEscape(name)+"/check", nil)
}

// Explain returns the rules and settings that Start would use for the same request.
func (c *Client) Explain(ctx context.Context, req wire.StartRequest) (wire.Explain, error) {
	return call[wire.Explain](ctx, c, http.MethodPost, wire.PathExplain, req)
}

// Status returns the daemon's version, kernel features and limits.
func (c *Client) Status(ctx context.Context) (wire.Status, error) {
	return call[wire.Status](ctx, c, http.MethodGet, wire.PathStatus, nil)
}

// Doctor returns what capd found where it runs. It does not try destinations.
func (c *Client) Doctor(ctx context.Context) (wire.Doctor, error) {
	return call[wire.Doctor](ctx, c, http.MethodGet, wire.PathDoctor, nil)
}

// Close closes idle connections. The client may be used again.
func (c *Client) Close() { c.client().CloseIdleConnections() }

// capturePath gives the path of a capture, or of something below it.
func capturePath(ref, below string) (string, error) {
	if err := segment(ref, wire.CodeNoSuchCapture, "capture"); err != nil {
		return "", err
	}
	return wire.PathCaptures + "/" + url.PathEscape(ref) + below, nil
}

// segment refuses what can not be one element of a path, as capd would if it could be
// asked: HTTP servers fold "." and ".." away.
func segment(name, code, what string) error {
	if name == "" || name == "." || name == ".." {
		return &wire.Error{Status: http.StatusNotFound, Code: code, Message: fmt.Sprintf("no such %s: %q", what, name)}
	}
	return nil
}

func callCapture(ctx context.Context, c *Client, method, ref, below string) (wire.Capture, error) {
	path, err := capturePath(ref, below)
	if err != nil {
		return wire.Capture{}, err
	}
	return call[wire.Capture](ctx, c, method, path, nil)
}

// call makes one request and decodes its answer.
func call[T any](ctx context.Context, c *Client, method, path string, body any) (T, error) {
	var answer T
	resp, err := c.do(ctx, method, path, body)
	if err != nil {
		return answer, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return answer, c.transportError(ctx, err)
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return answer, fmt.Errorf("the answer from %s to %s %s is not capd's: %w", c.where(), method, path, err)
	}
	return answer, nil
}

// restartWait bounds how long a request waits for a capd that is being restarted.
const (
	restartWait  = 30 * time.Second
	restartPause = 200 * time.Millisecond
)

// do makes one request. The answer is a success, its body open. While a capd that is
// stopping refuses it, which it does before anything is done, it is made again: the next
// capd will take it.
func (c *Client) do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	until := time.Now().Add(restartWait)
	for {
		resp, err := c.try(ctx, method, path, body)
		var refused *wire.Error
		if !errors.As(err, &refused) || refused.Code != wire.CodeStopping || time.Now().After(until) {
			return resp, err
		}
		c.client().CloseIdleConnections() // the next one is to reach the next capd
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(restartPause):
		}
	}
}

// try makes one request, once.
func (c *Client) try(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var reader io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encoding the request: %w", err)
		}
		reader = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+host+path, reader)
	if err != nil {
		return nil, fmt.Errorf("making the request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.UserAgent != "" {
		req.Header.Set("User-Agent", c.UserAgent)
	}
	resp, err := c.client().Do(req)
	if err != nil {
		return nil, c.transportError(ctx, err)
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, answerError(resp)
}

// answerError reads the error that capd answered with.
func answerError(resp *http.Response) error {
	data, _ := io.ReadAll(io.LimitReader(resp.Body, wire.MaxRequestBody))
	var body wire.ErrorBody
	if err := json.Unmarshal(data, &body); err != nil || body.Error.Message == "" {
		// Not capd, or not one that can speak any more: the status is all there is.
		body.Error = wire.Error{Code: wire.CodeInternal, Message: "capd answered " + strings.ToLower(resp.Status) + " and did not say why"}
	}
	body.Error.Status = resp.StatusCode
	return &body.Error
}

// client makes the HTTP client at its first use.
func (c *Client) client() *http.Client {
	c.once.Do(func() {
		c.http = &http.Client{
			Transport: &http.Transport{
				DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
				DisableCompression:  true, // a capture's bytes are wanted as they are
				MaxIdleConnsPerHost: 4,
				IdleConnTimeout:     time.Minute,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	})
	return c.http
}

// Raw connects to capd and leaves what is said to the caller, who closes the connection.
func (c *Client) Raw(ctx context.Context) (net.Conn, error) { return c.dial(ctx) }

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	var conn net.Conn
	var err error
	if c.Dial != nil {
		conn, err = c.Dial(ctx) // takes its time: a person may have to touch a key
	} else {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, connectTimeout)
		defer cancel()
		conn, err = new(net.Dialer).DialContext(ctx, "unix", c.socket())
	}
	if err != nil {
		var already *UnreachableError
		if errors.As(err, &already) {
			return nil, err
		}
		return nil, c.dialError(err)
	}
	return conn, nil
}

func (c *Client) socket() string {
	if c.Socket == "" {
		return wire.DefaultSocket
	}
	return c.Socket
}
