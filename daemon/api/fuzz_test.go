package api

import (
	"bufio"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"capd/ctl/wire"
)

// FuzzDecode holds that no body makes the decoder panic, that it takes nothing that
// encoding/json would refuse or read otherwise, and that every refusal names its status
// and reason.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		``, `{}`, `{"name": "a", "labels": {"k": "v"}, "exclude": [{"source": "192.0.2.1", "source_port": 5}], "byte_limit": "10mb", "time_limit": 1.5}`,
		`{"filter_v1": {"protocol": "tcp", "source_port": 1e3}}`, `{"a": [[[[[[{}]]]]]]}`, `{"name": "\ud800"}`, `{"snaplen": 96.0, "check": false}`, `[1]`, `{"hooks": []}`, "\f{}", "\t\r\n {} ",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var r wire.StartRequest
		if e := decodeJSON(body, &r); e != nil {
			if e.Status < 400 || e.Status > 499 || e.Code == "" || e.Message == "" || len(e.Message) > 1000 {
				t.Errorf("%+v", e)
			}
			return
		}
		if e := validateRequest(&r); e != nil && (e.Status != 422 || e.Field == "" || e.Message == "") {
			t.Errorf("%+v", e)
		}
		var loose wire.StartRequest
		if len(strings.TrimSpace(string(body))) == 0 {
			return
		}
		if err := json.Unmarshal(body, &loose); err != nil {
			if strings.ContainsAny(string(body), ".eE") {
				return // 1e3 for a whole number is taken here and not there
			}
			t.Fatalf("taken, but encoding/json says %v", err)
		}
		if !reflect.DeepEqual(r, loose) {
			t.Errorf("read as %+v, encoding/json reads %+v", r, loose)
		}
	})
}

// FuzzHandler holds that no request makes a handler panic, and that every answer is one:
// a success, or a JSON error.
func FuzzHandler(f *testing.F) {
	for _, seed := range [][4]string{
		{"GET", "/v1/captures", "all=true", ""}, {"POST", "/v1/captures", "", `{"name": "a"}`}, {"DELETE", "/v1/captures/" + testID, "force=true", ""},
		{"GET", "/v1/captures/a/files/..%2f", "", ""}, {"POST", "/v1/destinations/%00/check", "", ""}, {"PUT", "/client/v4/accounts/a/pcaps/b/stop", "", ""},
		{"GET", "/client/v4/accounts//pcaps/a/download", "", ""}, {"POST", "/client/v4/accounts/a/pcaps", "", `{"destination_conf": "s3://x"}`}, {"", "", "%zz", ""}, {"POST", "/v1/explain", "", "{"},
		{"GET", "/metrics", "", ""}, {"GET", "/v1/openapi.json", "", ""}, {"POST", "/v1/stream", "via=192.0.2.1:5,192.0.2.2:22", `{"snaplen": 96}`}, {"GET", "/v1/captures/" + testID + "/stream", "", ""},
		{"POST", "/client/v4/accounts/a/pcaps/ownership", "", `{"destination_conf": "s3://captures/box?region=eu-central-1"}`}, {"POST", "/client/v4/accounts/a/pcaps/ownership/validate", "", `{"destination_conf": "sftp://soc", "ownership_challenge": "x"}`},
		{"DELETE", "/client/v4/accounts/a/pcaps/ownership/" + testID, "", ""},
	} {
		f.Add(seed[0], seed[1], seed[2], []byte(seed[3]))
	}
	d := &fakeDaemon{dir: f.TempDir(), captures: []wire.Capture{{ID: testID, StartRequest: wire.StartRequest{Format: "pcap"}, Files: []wire.File{{Name: "a.pcap"}}}}}
	j := &journal{}
	h := New(d, Access{}, j.logger())
	ctx := context.WithValue(context.Background(), peerKey{}, peerResult{peer: Peer{UID: 0}})
	f.Fuzz(func(t *testing.T, method, path, query string, body []byte) {
		u := &url.URL{Path: path, RawQuery: query}
		if plain, err := url.PathUnescape(path); err == nil {
			u.Path, u.RawPath = plain, path
		}
		r := (&http.Request{Method: method, URL: u, Header: http.Header{}, Body: http.NoBody, ContentLength: int64(len(body))}).WithContext(ctx)
		if len(body) > 0 {
			r.Body = http.MaxBytesReader(nil, struct {
				*strings.Reader
				closer
			}{strings.NewReader(string(body)), closer{}}, 1<<30)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if lines := j.lines("level=ERROR"); len(lines) > 0 {
			t.Fatalf("%s %s: %s", method, path, lines[0])
		}
		j.Reset()
		if w.Code < 400 {
			return
		}
		var answer struct {
			Error  *wire.Error
			Errors []modelInfo
		}
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || w.Header().Get("Content-Type") != "application/json" ||
			(answer.Error == nil || answer.Error.Code == "" || answer.Error.Message == "") && (len(answer.Errors) != 1 || answer.Errors[0].Message == "") {
			t.Errorf("%s %s: %d %s %s", method, path, w.Code, w.Header().Get("Content-Type"), w.Body)
		}
	})
}

type closer struct{}

func (closer) Close() error { return nil }

// FuzzConnection sends arbitrary bytes to the socket. Whatever they are, the first answer
// is HTTP, an error is JSON, and nothing panics.
func FuzzConnection(f *testing.F) {
	for _, seed := range []string{
		"GET /v1/status HTTP/1.1\r\nHost: capd\r\n\r\n", "POST /v1/captures HTTP/1.1\r\nHost: capd\r\nContent-Length: 2\r\n\r\n{}",
		"POST /v1/captures HTTP/1.1\r\nHost: capd\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "hello\r\n\r\n", "\x16\x03\x01", "GET / HTTP/1.0\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: a\r\nExpect: b\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	s := serve(f, &fakeDaemon{dir: f.TempDir()}, Access{})
	f.Fuzz(func(t *testing.T, sent []byte) {
		conn, err := net.Dial("unix", s.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write(sent)               // a part of it may be refused before it is read
		_ = conn.(*net.UnixConn).CloseWrite() // the same
		r := bufio.NewReader(conn)
		if _, err := r.Peek(1); err != nil {
			return // no answer
		}
		resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodHead}) // its body is no matter
		if err != nil {
			t.Fatalf("%q is answered by something else than HTTP: %v", sent, err)
		}
		resp.Body.Close()
		if resp.StatusCode >= 400 && resp.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%q: %d %s", sent, resp.StatusCode, resp.Header.Get("Content-Type"))
		}
		if lines := s.journal.lines("level=ERROR"); len(lines) > 0 {
			t.Errorf("%q: %s", sent, lines[0])
		}
	})
}
