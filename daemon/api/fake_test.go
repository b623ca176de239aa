package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"capd/ctl/wire"
	"capd/testbed"
)

// fakeDaemon is a Daemon that keeps what it is asked and answers from its fields.
type fakeDaemon struct {
	mu       sync.Mutex
	asked    []string
	actions  []string // id, action, file, result
	request  wire.StartRequest
	by       wire.Requester
	captures []wire.Capture
	dir      string // of the files
	err      error  // answers every call that can fail
	panics   bool
	stays    bool // streams go on until the client leaves
	live     *fakeLive
}

var _ Daemon = (*fakeDaemon)(nil)

func (d *fakeDaemon) ask(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked = append(d.asked, fmt.Sprintf(format, args...))
	if d.panics {
		panic("the fake was told to")
	}
}

func (d *fakeDaemon) lastRequest() (wire.StartRequest, wire.Requester) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.request, d.by
}

func (d *fakeDaemon) find(ref string) (wire.Capture, error) {
	for _, c := range d.captures {
		if c.ID == ref || c.Name == ref {
			return c, d.err
		}
	}
	return wire.Capture{}, &wire.Error{Status: 404, Code: wire.CodeNoSuchCapture, Message: "no capture is called " + shown(ref)}
}

func (d *fakeDaemon) Start(_ context.Context, req wire.StartRequest, by wire.Requester) (wire.Capture, error) {
	d.ask("start")
	d.mu.Lock()
	defer d.mu.Unlock()
	d.request, d.by = req, by
	return wire.Capture{ID: testID, Host: "edge-1", Status: wire.StatusRunning, StartRequest: req, RequestedBy: by}, d.err
}
func (d *fakeDaemon) List(all bool) []wire.Capture         { d.ask("list %v", all); return d.captures }
func (d *fakeDaemon) Get(ref string) (wire.Capture, error) { d.ask("get %s", ref); return d.find(ref) }
func (d *fakeDaemon) Stop(_ context.Context, ref string) (wire.Capture, error) {
	d.ask("stop %s", ref)
	return d.find(ref)
}
func (d *fakeDaemon) Retry(_ context.Context, ref string) (wire.Capture, error) {
	d.ask("retry %s", ref)
	return d.find(ref)
}
func (d *fakeDaemon) Remove(_ context.Context, ref string, force bool) error {
	d.ask("remove %s %v", ref, force)
	_, err := d.find(ref)
	return err
}
func (d *fakeDaemon) OpenFile(ref, name string) (*os.File, wire.File, error) {
	d.ask("open %s %s", ref, name)
	f, err := os.Open(filepath.Join(d.dir, name))
	if err != nil {
		return nil, wire.File{}, noSuchFile(name)
	}
	return f, wire.File{Name: name}, nil
}
func (d *fakeDaemon) Record(id string, a wire.Action) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.actions = append(d.actions, id+" "+a.Action+" "+a.File+" "+a.Result)
}

// recorded gives what was recorded since it was last asked.
func (d *fakeDaemon) recorded() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := strings.Join(d.actions, ",")
	d.actions = nil
	return out
}

func (d *fakeDaemon) Destinations() []wire.Destination {
	return []wire.Destination{
		{Name: "soc", Type: "sftp", URL: "sftp://capd@files.example.net:22/{date}/{file}"},
		{Name: "evidence", Type: "s3", URL: "s3://captures/box/{date}/{host}/{id}/{file}", Region: "eu-central-1"},
		{Name: "twin-a", Type: "s3", URL: "s3://twins/a/{file}"},
		{Name: "twin-b", Type: "s3", URL: "s3://twins/b/{file}"},
	}
}
func (d *fakeDaemon) CheckDestination(_ context.Context, name string) (wire.Check, error) {
	d.ask("check %s", name)
	return wire.Check{OK: true}, d.err
}
func (d *fakeDaemon) Explain(context.Context, wire.StartRequest) (wire.Explain, error) {
	d.ask("explain")
	return wire.Explain{Ruleset: "table inet capd {}"}, d.err
}
func (d *fakeDaemon) Doctor() wire.Doctor {
	return wire.Doctor{OK: true, Findings: []wire.Finding{{ID: "clock", Level: wire.LevelOK, Message: "set"}}}
}
func (d *fakeDaemon) Status() wire.Status { return wire.Status{Version: "test", Host: "edge-1"} }
func (d *fakeDaemon) Ownerships() []Ownership {
	return []Ownership{{ID: testID, Destination: "evidence", Filename: "f.txt", Status: OwnershipPending}}
}
func (d *fakeDaemon) Challenge(_ context.Context, destination string) (Ownership, error) {
	d.ask("challenge %s", destination)
	return Ownership{ID: testID, Destination: destination, Filename: "f.txt", Status: OwnershipPending}, d.err
}
func (d *fakeDaemon) Prove(destination, challenge string) (Ownership, error) {
	d.ask("prove %s %s", destination, challenge)
	at := wire.Time{Time: time.Unix(0, 0)}
	return Ownership{ID: testID, Destination: destination, Filename: "f.txt", Status: OwnershipSuccess, Validated: &at}, d.err
}
func (d *fakeDaemon) Disown(_ context.Context, id string) error {
	d.ask("disown %s", id)
	return d.err
}
func (d *fakeDaemon) Metrics() []byte { return []byte("# HELP up Is it?\n# TYPE up gauge\nup 1\n") }

// fakeLive gives its pieces, and then waits or ends.
type fakeLive struct {
	pieces []string
	stays  bool
	done   chan struct{}
	closed chan struct{}
}

func (l *fakeLive) Next(ctx context.Context) ([]byte, error) {
	if len(l.pieces) > 0 {
		piece := l.pieces[0]
		l.pieces = l.pieces[1:]
		return []byte(piece), nil
	}
	if l.stays {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return nil, io.EOF
}
func (l *fakeLive) Done() <-chan struct{} { return l.done }
func (l *fakeLive) Close()                { close(l.closed) }

// newLive makes what the fake answers streams with, and keeps it as d.live.
func (d *fakeDaemon) newLive() (Live, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil {
		return nil, d.err
	}
	d.live = &fakeLive{pieces: []string{"one\n", "two\n"}, stays: d.stays, done: make(chan struct{}), closed: make(chan struct{})}
	return d.live, nil
}

func (d *fakeDaemon) Stream(ref string, via *wire.Flow) (Live, error) {
	d.ask("stream %s via %v", ref, via)
	if _, err := d.find(ref); err != nil {
		return nil, err
	}
	return d.newLive()
}
func (d *fakeDaemon) StartStream(ctx context.Context, req wire.StartRequest, by wire.Requester, via *wire.Flow) (wire.Capture, Live, error) {
	d.ask("start stream via %v", via)
	capture, err := d.Start(ctx, req, by)
	if err != nil {
		return capture, nil, err
	}
	live, err := d.newLive()
	return capture, live, err
}
func (d *fakeDaemon) Events() (Live, error) { d.ask("events"); return d.newLive() }

const testID = "0f8c0f8c0f8c0f8c0f8c0f8c0f8c0f8c"

// journal gathers log lines.
type journal struct{ testbed.Buffer }

func (j *journal) lines(containing string) []string {
	lines := strings.Split(j.String(), "\n")
	return slices.DeleteFunc(lines, func(line string) bool { return line == "" || !strings.Contains(line, containing) })
}

func (j *journal) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(j, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

// served is a Handler at a real socket.
type served struct {
	t       testing.TB
	socket  string
	handler *Handler
	journal *journal
	client  *http.Client
}

// serve runs a Handler over the fake as long as the test, in a folder that every user
// can reach.
func serve(t testing.TB, d *fakeDaemon, access Access) *served {
	t.Helper()
	dir, err := os.MkdirTemp("", "capd-api-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s := &served{t: t, socket: filepath.Join(dir, "capd.sock"), journal: &journal{}}
	l, err := Listen(s.socket)
	if err != nil {
		t.Fatal(err)
	}
	s.handler = New(d, access, s.journal.logger())
	server := NewServer(s.handler, s.journal.logger())
	done := make(chan struct{})
	go func() { defer close(done); server.Serve(l) }()
	t.Cleanup(func() { server.Close(); <-done })
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", s.socket)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	s.client = &http.Client{Transport: transport, Timeout: time.Minute}
	return s
}

// reply is what a test looks at of an answer, besides its body.
type reply struct {
	StatusCode    int
	Header        http.Header
	ContentLength int64
}

// do makes one call.
func (s *served) do(method, path, body string, header ...string) (reply, string) {
	s.t.Helper()
	req, err := http.NewRequest(method, "http://capd"+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := s.client.Do(req)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	return reply{resp.StatusCode, resp.Header, resp.ContentLength}, strings.TrimSuffix(string(text), "\n")
}

// keys gives the names in a JSON object.
func keys(t testing.TB, text string) map[string]json.RawMessage {
	t.Helper()
	var out map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return out
}
