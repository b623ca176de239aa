package ctl

import (
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// fakeCapd answers on a Unix socket with what a test laid ready.
type fakeCapd struct {
	socket string

	mu      sync.Mutex
	replies map[string][]reply // by method and path with query; the last one stays, until there is a newer
	calls   []fakeCall
	hooks   map[string]func(http.ResponseWriter, *http.Request)
}

type reply struct {
	status int // 0: the connection is cut
	body   []byte
	stall  bool // no answer until the client goes
	used   bool
}

type fakeCall struct {
	what string // method and path with query
	body []byte
}

// newFakeCapd serves until the test ends.
func newFakeCapd(t testing.TB) *fakeCapd {
	t.Helper()
	dir, err := os.MkdirTemp("", "capctl") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeCapd{socket: filepath.Join(dir, "capd.sock"), replies: map[string][]reply{}, hooks: map[string]func(http.ResponseWriter, *http.Request){}}
	l, err := net.Listen("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: f, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
		_ = os.RemoveAll(dir)
	})
	return f
}

// answer lays an answer ready; several for one call are given in turn.
func (f *fakeCapd) answer(what string, r ...reply) {
	f.mu.Lock()
	defer f.mu.Unlock()
	queue := f.replies[what]
	if len(queue) == 1 && queue[0].used {
		queue = nil
	}
	f.replies[what] = append(queue, r...)
}

// hook has a function answer a call, in place of what was laid ready.
func (f *fakeCapd) hook(what string, do func(http.ResponseWriter, *http.Request)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hooks[what] = do
}

// sent gives the bodies of the calls that came, oldest first.
func (f *fakeCapd) sent(what string) [][]byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	var bodies [][]byte
	for _, c := range f.calls {
		if c.what == what {
			bodies = append(bodies, c.body)
		}
	}
	return bodies
}

// ServeHTTP implements http.Handler.
func (f *fakeCapd) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	what := r.Method + " " + r.URL.RequestURI()
	f.mu.Lock()
	f.calls = append(f.calls, fakeCall{what, body})
	if hook := f.hooks[what]; hook != nil {
		f.mu.Unlock()
		hook(w, r)
		return
	}
	queue := f.replies[what]
	if len(queue) > 1 {
		f.replies[what] = queue[1:]
	} else if len(queue) == 1 {
		queue[0].used = true
	}
	f.mu.Unlock()
	if len(queue) == 0 {
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"error": {"code": "not_found", "message": "no such path"}}`)
		return
	}
	switch now := queue[0]; {
	case now.stall:
		<-r.Context().Done()
	case now.status == 0:
		panic(http.ErrAbortHandler)
	default:
		w.WriteHeader(now.status)
		_, _ = w.Write(now.body)
	}
}
