package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"capd/ctl/wire"
)

// serve answers on a Unix socket until the test ends.
func serve(t *testing.T, handler http.HandlerFunc) *Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "client") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	c := &Client{Socket: socket, UserAgent: "test/1"}
	t.Cleanup(func() {
		c.Close()
		_ = server.Close()
		<-done
		_ = os.RemoveAll(dir)
	})
	return c
}

func TestCalls(t *testing.T) {
	var method, uri, body, host, agent, kind string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		data, _ := io.ReadAll(r.Body)
		method, uri, body, host, agent, kind = r.Method, r.URL.RequestURI(), string(data), r.Host, r.UserAgent(), r.Header.Get("Content-Type")
		switch {
		case r.Method == http.MethodDelete:
			w.WriteHeader(http.StatusNoContent)
		case r.Method == http.MethodPost && r.URL.Path == wire.PathCaptures:
			w.WriteHeader(http.StatusCreated)
			_, _ = io.WriteString(w, `{"id": "new"}`)
		case r.Method == http.MethodGet && r.URL.Path == wire.PathCaptures:
			_, _ = io.WriteString(w, `{"captures": [{"id": "y"}]}`)
		default:
			_, _ = io.WriteString(w, `{"id": "x", "destinations": [{"name": "soc"}], "ok": true, "kernel": "k"}`)
		}
	})
	ctx := t.Context()
	limit := wire.Seconds(90 * time.Second)
	for _, test := range []struct {
		call              func() (any, error)
		method, uri, body string
		want              string // of the answer as JSON
	}{
		{func() (any, error) {
			v, err := c.Start(ctx, wire.StartRequest{Filter: "udp", TimeLimit: &limit})
			return v.ID, err
		}, "POST", "/v1/captures", `{"filter":"udp","time_limit":90}`, `"new"`},
		{func() (any, error) { v, err := c.List(ctx, false); return v[0].ID, err }, "GET", "/v1/captures", "", `"y"`},
		{func() (any, error) { v, err := c.List(ctx, true); return len(v), err }, "GET", "/v1/captures?all=true", "", `1`},
		{func() (any, error) { v, err := c.Get(ctx, "a b/c"); return v.ID, err }, "GET", "/v1/captures/a%20b%2Fc", "", `"x"`},
		{func() (any, error) { v, err := c.Stop(ctx, "0f8c"); return v.ID, err }, "POST", "/v1/captures/0f8c/stop", "", `"x"`},
		{func() (any, error) { v, err := c.Retry(ctx, "0f8c"); return v.ID, err }, "POST", "/v1/captures/0f8c/retry", "", `"x"`},
		{func() (any, error) { return nil, c.Remove(ctx, "0f8c", false) }, "DELETE", "/v1/captures/0f8c", "", `null`},
		{func() (any, error) { return nil, c.Remove(ctx, "0f8c", true) }, "DELETE", "/v1/captures/0f8c?force=true", "", `null`},
		{func() (any, error) { v, err := c.Destinations(ctx); return v[0].Name, err }, "GET", "/v1/destinations", "", `"soc"`},
		{func() (any, error) { v, err := c.CheckDestination(ctx, "soc"); return v.OK, err }, "POST", "/v1/destinations/soc/check", "", `true`},
		{func() (any, error) { v, err := c.Explain(ctx, wire.StartRequest{}); return v.Kernel, err }, "POST", "/v1/explain", "{}", `"k"`},
		{func() (any, error) { v, err := c.Status(ctx); return v.Kernel, err }, "GET", "/v1/status", "", `"k"`},
	} {
		got, err := test.call()
		if err != nil {
			t.Errorf("%s %s: %v", test.method, test.uri, err)
			continue
		}
		if answer, _ := json.Marshal(got); string(answer) != test.want {
			t.Errorf("%s %s: %s", test.method, test.uri, answer)
		}
		if method != test.method || uri != test.uri || body != test.body {
			t.Errorf("%s %s %q, not %s %s %q", method, uri, body, test.method, test.uri, test.body)
		}
		if host != "capd" || agent != "test/1" || (kind == "application/json") != (body != "") {
			t.Errorf("host %q, agent %q, type %q", host, agent, kind)
		}
	}
}

func TestNamesThatAreNoPathElement(t *testing.T) {
	c := serve(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s was asked", r.URL) })
	for _, name := range []string{"", ".", ".."} {
		_, err := c.Get(t.Context(), name)
		wantCode(t, err, wire.CodeNoSuchCapture)
		_, err = c.CheckDestination(t.Context(), name)
		wantCode(t, err, wire.CodeNoSuchDestination)
		_, _, err = c.File(t.Context(), "0f8c", name)
		wantCode(t, err, wire.CodeNoSuchFile)
	}
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	var answered *wire.Error
	if !errors.As(err, &answered) || answered.Code != code {
		t.Errorf("%v, not %s", err, code)
	}
}

func TestAnsweredErrors(t *testing.T) {
	status, body := 0, ""
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		if status == 302 {
			w.Header().Set("Location", "/v1/captures")
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
	for _, test := range []struct {
		status int
		body   string
		want   wire.Error
	}{
		{409, `{"error": {"code": "name_taken", "message": "m", "field": "name", "hint": "h"}}`, wire.Error{Status: 409, Code: "name_taken", Message: "m", Field: "name", Hint: "h"}},
		{502, "<html>", wire.Error{Status: 502, Code: wire.CodeInternal, Message: "capd answered 502 bad gateway and did not say why"}},
		{500, "", wire.Error{Status: 500, Code: wire.CodeInternal, Message: "capd answered 500 internal server error and did not say why"}},
		{302, "", wire.Error{Status: 302, Code: wire.CodeInternal, Message: "capd answered 302 found and did not say why"}},
	} {
		status, body = test.status, test.body
		_, err := c.Status(t.Context())
		var got *wire.Error
		if !errors.As(err, &got) || *got != test.want {
			t.Errorf("%#v", err)
		}
	}
	status, body = 200, "<html>"
	if _, err := c.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "is not capd's") {
		t.Error(err)
	}
}

func TestUnreachable(t *testing.T) {
	dir, err := os.MkdirTemp("", "client")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	dead := filepath.Join(dir, "dead")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		socket string
		errno  error
		hint   string
	}{
		{filepath.Join(dir, "missing"), syscall.ENOENT, "systemctl status capd"},
		{dead, syscall.ECONNREFUSED, "systemctl restart capd"},
		{file, syscall.ECONNREFUSED, "systemctl restart capd"},
		{file + "/below", syscall.ENOTDIR, "--socket"},
		{"/" + strings.Repeat("x", 200), syscall.EINVAL, "--socket"},
	} {
		_, err := (&Client{Socket: test.socket}).Status(t.Context())
		var u *UnreachableError
		if !errors.Is(err, ErrUnreachable) || !errors.As(err, &u) || !errors.Is(err, test.errno) {
			t.Errorf("%s: %v", test.socket, err)
			continue
		}
		if !strings.Contains(u.Hint, test.hint) || !strings.Contains(err.Error(), test.socket) {
			t.Errorf("%s: %v (%s)", test.socket, err, u.Hint)
		}
	}
	// The zero value goes where capd listens.
	if got := new(Client).socket(); got != wire.DefaultSocket {
		t.Error(got)
	}
}

func TestConnectionThatEnds(t *testing.T) {
	c := serve(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	_, err := c.Start(t.Context(), wire.StartRequest{})
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "ended before the answer") {
		t.Error(err)
	}
}

func TestContextEndsCalls(t *testing.T) {
	c := serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := c.Status(ctx); err != context.Canceled {
		t.Error(err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := c.Status(ctx); err != context.DeadlineExceeded {
		t.Error(err)
	}
}

func TestFile(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RequestURI() != "/v1/captures/0f8c/files/0001.pcapng" {
			t.Errorf("%s", r.URL)
		}
		w.Header().Set("Content-Length", "10")
		_, _ = io.WriteString(w, "12345")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	r, size, err := c.File(t.Context(), "0f8c", "0001.pcapng")
	if err != nil || size != 10 {
		t.Fatal(size, err)
	}
	defer r.Close()
	if data, err := io.ReadAll(r); string(data) != "12345" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%q, %v", data, err)
	}
}

func TestDial(t *testing.T) {
	served := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"version": "9"}`) })
	dials := 0
	c := &Client{Dial: func(ctx context.Context) (net.Conn, error) {
		dials++
		return new(net.Dialer).DialContext(ctx, "unix", served.Socket)
	}}
	defer c.Close()
	for range 3 {
		if v, err := c.Status(t.Context()); err != nil || v.Version != "9" {
			t.Fatal(v, err)
		}
	}
	if dials != 1 {
		t.Errorf("%d connections", dials)
	}
	own := &UnreachableError{What: "ssh ended with 255", Hint: "ssh edge-1 true"}
	for _, test := range []struct{ give, want error }{{own, own}, {io.EOF, io.EOF}} {
		c := &Client{Dial: func(context.Context) (net.Conn, error) { return nil, test.give }}
		if _, err := c.Status(t.Context()); !errors.Is(err, ErrUnreachable) || !errors.Is(err, test.want) {
			t.Error(err)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"version": "9"}`) })
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if v, err := c.Status(t.Context()); err != nil || v.Version != "9" {
				t.Error(v, err)
			}
		})
	}
	all.Wait()
}

// A capd that is stopping has done nothing yet: the call is for the next one.
func TestCallsWaitForTheNextDaemon(t *testing.T) {
	var calls int
	var bodies []string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		data, _ := io.ReadAll(r.Body)
		bodies = append(bodies, string(data))
		if calls++; calls < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, `{"error": {"code": "stopping", "message": "capd is shutting down"}}`)
			return
		}
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"id": "new"}`)
	})
	got, err := c.Start(t.Context(), wire.StartRequest{Filter: "udp"})
	if err != nil || got.ID != "new" {
		t.Fatalf("started %q, %v", got.ID, err)
	}
	for _, body := range bodies {
		if len(bodies) != 3 || body != `{"filter":"udp"}` {
			t.Errorf("the calls had the bodies %q", bodies)
		}
	}
}
