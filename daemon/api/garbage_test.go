package api

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"capd/ctl/wire"
)

// TestGarbage holds that whatever is sent, what comes back is JSON, or nothing at all.
func TestGarbage(t *testing.T) {
	s := serve(t, fakeWithFiles(t), Access{})
	const good = "GET /v1/status HTTP/1.1\r\nHost: capd\r\n\r\n"
	for _, c := range []struct {
		name, sent string
		status     int
		code       string
	}{
		{"no HTTP", "hello\r\n\r\n", 400, wire.CodeBadRequest},
		{"zeros", strings.Repeat("\x00", 100) + "\r\n\r\n", 400, wire.CodeBadRequest},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, wire.CodeBadRequest},
		{"another version", "GET / HTTP/9.1\r\nHost: capd\r\n\r\n", 505, wire.CodeBadRequest},
		{"a bad header", "GET / HTTP/1.1\r\nHost: capd\r\nbad header: x\r\n\r\n", 400, wire.CodeBadRequest},
		{"no host", "GET / HTTP/1.1\r\n\r\n", 400, wire.CodeBadRequest},
		{"two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, wire.CodeBadRequest},
		{"long headers", "GET / HTTP/1.1\r\nHost: capd\r\nX: " + strings.Repeat("x", 1<<18) + "\r\n\r\n", 431, wire.CodeTooLarge},
		{"a bad length", "POST /v1/captures HTTP/1.1\r\nHost: capd\r\nContent-Length: -1\r\n\r\n", 400, wire.CodeBadRequest},
		{"an unknown encoding", "POST /v1/captures HTTP/1.1\r\nHost: capd\r\nTransfer-Encoding: cake\r\n\r\n", 501, wire.CodeBadRequest},
		{"an unknown Expect", "POST /v1/captures HTTP/1.1\r\nHost: capd\r\nExpect: cake\r\nContent-Length: 2\r\n\r\n{}", 417, wire.CodeBadRequest},
		{"OPTIONS *", "OPTIONS * HTTP/1.1\r\nHost: capd\r\n\r\n", 404, wire.CodeNotFound},
		{"CONNECT", "CONNECT capd:22 HTTP/1.1\r\nHost: capd\r\n\r\n", 404, wire.CodeNotFound},
		{"a bad chunk", "POST /v1/captures HTTP/1.1\r\nHost: capd\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, wire.CodeBadRequest},
		{"after a good one", good + "hello\r\n\r\n", 400, wire.CodeBadRequest},
	} {
		conn, err := net.Dial("unix", s.socket)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(time.Minute))
		go io.WriteString(conn, c.sent) // a part of it may be refused before it is read
		r := bufio.NewReader(conn)
		resp, err := http.ReadResponse(r, nil)
		if err == nil && c.name == "after a good one" {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode != 200 {
				t.Errorf("%s: first %d", c.name, resp.StatusCode)
			}
			resp, err = http.ReadResponse(r, nil)
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			conn.Close()
			continue
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		conn.Close()
		var body wire.ErrorBody
		if err != nil || resp.StatusCode != c.status || resp.Header.Get("Content-Type") != "application/json" || json.Unmarshal(text, &body) != nil ||
			body.Error.Code != c.code || body.Error.Message == "" {
			t.Errorf("%s: %d %s %s %v, want %d %s", c.name, resp.StatusCode, resp.Header.Get("Content-Type"), text, err, c.status, c.code)
		}
	}
}

// TestPacketsLikeAnswers holds that a file whose bytes look like an answer of net/http's
// arrives as it is.
func TestPacketsLikeAnswers(t *testing.T) {
	d := fakeWithFiles(t)
	text := strings.Repeat("HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n", 3000)
	if err := os.WriteFile(d.dir+"/like.pcapng", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s := serve(t, d, Access{})
	for range 2 { // the second over a connection that was idle between
		if _, body := s.do("GET", "/v1/captures/voip/files/like.pcapng", ""); body != strings.TrimSuffix(text, "\n") {
			t.Errorf("%d bytes of %d", len(body), len(text))
		}
	}
}

// TestThousandClients holds that a thousand clients at once, whole, slow, cut or idle,
// all get an answer where they wait for one, and leave nothing behind.
func TestThousandClients(t *testing.T) {
	d := fakeWithFiles(t)
	s := serve(t, d, Access{})
	s.do("GET", "/v1/status", "")
	s.client.CloseIdleConnections()
	fds := func() int { list, _ := os.ReadDir("/proc/self/fd"); return len(list) }
	var goroutines, files int
	eventually(func() bool { // until the first call's connection is gone
		g, f := runtime.NumGoroutine(), fds()
		same := g == goroutines && f == files
		goroutines, files = g, f
		return same
	})
	const clients = 1000
	var answered atomic.Int64
	var connected, wg sync.WaitGroup
	connected.Add(clients)
	for i := range clients {
		wg.Go(func() {
			conn, err := net.Dial("unix", s.socket)
			connected.Done()
			if err != nil {
				t.Errorf("dial: %v", err)
				return
			}
			defer conn.Close()
			connected.Wait() // all are there before one says a word
			conn.SetDeadline(time.Now().Add(2 * time.Minute))
			get := "GET /v1/captures HTTP/1.1\r\nHost: capd\r\nConnection: close\r\n\r\n"
			switch i % 5 {
			case 0: // goes at once
				return
			case 1: // half a header
				fmt.Fprint(conn, "POST /v1/captures HTTP/1.1\r\nHo")
				return
			case 2: // half a body
				fmt.Fprint(conn, "POST /v1/captures HTTP/1.1\r\nHost: capd\r\nContent-Length: 100\r\n\r\n{\"name\"")
				return
			case 3: // slow
				for piece := range strings.SplitSeq(get, "\r\n") {
					if piece != "" {
						fmt.Fprint(conn, piece+"\r\n")
						time.Sleep(10 * time.Millisecond)
					}
				}
				fmt.Fprint(conn, "\r\n")
			case 4:
				fmt.Fprint(conn, get)
			}
			if text, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(text), "HTTP/1.1 200") {
				t.Errorf("%v: %.40q", err, text)
				return
			}
			answered.Add(1)
		})
	}
	wg.Wait()
	if n := answered.Load(); n != clients*2/5 {
		t.Errorf("%d clients were answered of %d that waited", n, clients*2/5)
	}
	if !eventually(func() bool { return runtime.NumGoroutine() <= goroutines && fds() <= files }) {
		t.Errorf("%d goroutines and %d files, before %d and %d", runtime.NumGoroutine(), fds(), goroutines, files)
	}
}
