package api

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"capd/ctl/wire"
)

const via4 = "?via=198.51.100.7:50022,192.0.2.1:22"

// TestStreamAnswers goes through the live calls: what comes is passed on as it is, and
// the Live closed.
func TestStreamAnswers(t *testing.T) {
	d := fakeWithFiles(t)
	s := serve(t, d, Access{})
	const full = "/v1/captures/" + testID
	const badVia = `{"error":{"code":"invalid","message":"via is \"`
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string // how the body begins
		asked              string
		live               bool
	}{
		{"GET", full + "/stream", "", 200, "one\ntwo", "get " + testID + ",stream " + testID + " via <nil>", true},
		{"GET", "/v1/captures/voip/stream" + via4, "", 200, "one\ntwo", "get voip,stream " + testID + " via &{198.51.100.7 50022 192.0.2.1 22}", true},
		{"HEAD", full + "/stream", "", 200, "", "get " + testID, false},
		{"GET", "/v1/captures/nope/stream", "", 404, `{"error":{"code":"no_such_capture"`, "get nope", false},
		{"GET", full + "/stream?wia=1", "", 422, `{"error":{"code":"unknown_field","message":"unknown parameter \"wia\"","field":"wia","hint":"did you mean \"via\"?"}}`, "get " + testID, false},
		{"GET", full + "/stream?via=198.51.100.7:50022", "", 422, badVia, "get " + testID, false},
		{"GET", full + "/stream?via=198.51.100.7:0,192.0.2.1:22", "", 422, badVia, "get " + testID, false},
		{"GET", full + "/stream?via=198.51.100.7:1,[2001:db8::1]:22", "", 422, badVia, "get " + testID, false},
		{"GET", full + "/stream?via=edge:1,core:22", "", 422, badVia, "get " + testID, false},
		{"GET", full + "/stream" + via4 + "&via=a", "", 422, badVia, "get " + testID, false},
		{"POST", "/v1/stream", `{"filter": "udp"}`, 200, "one\ntwo", "start stream via <nil>,start", true},
		{"POST", "/v1/stream?via=[2001:db8::1]:50022,[2001:db8::2]:22", ``, 200, "one\ntwo", "start stream via &{2001:db8::1 50022 2001:db8::2 22},start", true},
		{"POST", "/v1/stream", `{"snaplen": 12}`, 422, `{"error":{"code":"invalid"`, "", false},
		{"POST", "/v1/stream?check=true", `{}`, 422, `{"error":{"code":"unknown_field"`, "", false},
		{"GET", "/v1/stream", "", 405, `{"error":{"code":"method_not_allowed"`, "", false},
		{"GET", "/v1/events", "", 200, "one\ntwo", "events", true},
		{"GET", "/v1/events?all=true", "", 422, `{"error":{"code":"unknown_field"`, "", false},
		{"HEAD", "/v1/events", "", 200, "", "", false},
	} {
		d.asked, d.live = nil, nil
		resp, body := s.do(c.method, c.path, c.body)
		asked := strings.Join(d.asked, ",")
		if resp.StatusCode != c.status || !strings.HasPrefix(body, c.want) || asked != c.asked || (d.live != nil) != c.live {
			t.Errorf("%s %s %s: %d %s, asked %q\nwant %d %s, asked %q", c.method, c.path, c.body, resp.StatusCode, body, asked, c.status, c.want, c.asked)
			continue
		}
		if d.live != nil {
			<-d.live.closed
		}
		if kind := resp.Header.Get("Content-Type"); c.status == 200 && kind != "application/x-pcapng" && (kind != "application/x-ndjson" || !strings.Contains(c.path, "events")) {
			t.Errorf("%s %s: Content-Type %s", c.method, c.path, kind)
		}
		if id := resp.Header.Get(wire.HeaderCapture); (id == testID) != (c.status == 200 && c.method == "POST") {
			t.Errorf("%s %s: %s is %q", c.method, c.path, wire.HeaderCapture, id)
		}
	}
}

// What has come is with the client at once, while more is awaited; the audit line stands
// from the beginning, once; and when the client leaves, the stream is closed.
func TestStreamIsLiveUntilTheClientLeaves(t *testing.T) {
	for _, path := range []string{"/v1/captures/voip/stream", "/v1/stream", "/v1/events"} {
		d := fakeWithFiles(t)
		d.stays = true
		s := serve(t, d, Access{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		method := http.MethodGet
		if path == wire.PathStream {
			method = http.MethodPost
		}
		req, err := http.NewRequestWithContext(ctx, method, "http://capd"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := s.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(resp.Body)
		for _, want := range []string{"one\n", "two\n"} {
			if got, err := lines.ReadString('\n'); got != want || err != nil {
				t.Fatalf("%s: got %q, %v", path, got, err)
			}
		}
		wantAudit := 1
		if path == wire.PathEvents {
			wantAudit = 0
		}
		if got := s.journal.lines("audit"); len(got) != wantAudit {
			t.Errorf("%s: while it is open the journal has %q", path, got)
		}
		cancel()
		resp.Body.Close()
		<-d.live.closed
		if got := s.journal.lines("audit"); len(got) != wantAudit {
			t.Errorf("%s: afterwards the journal has %q", path, got)
		}
	}
}

// Packets are for those who control; events hold none. A limited group sees its own live,
// unless its packets may leave sealed only.
func TestWhoMayStream(t *testing.T) {
	d := fakeWithFiles(t)
	d.captures[0].RequestedBy.UID = 4711
	s := serve(t, d, Access{})
	for _, c := range []struct {
		grant    grant
		uid      uint32
		tail     bool
		start    bool
		describe string
	}{
		{grant{all: true}, 1, true, true, "control"},
		{grant{held: []heldRole{{"ops", Limits{}}}}, 4711, true, true, "limited, its own"},
		{grant{held: []heldRole{{"ops", Limits{}}}}, 4712, false, true, "limited, of another"},
		{grant{held: []heldRole{{"ops", Limits{Sealed: []string{"soc"}}}}}, 4711, false, false, "sealed only"},
	} {
		for _, rt := range s.handler.routes {
			switch rt.audit {
			case "tail":
				call := &call{grant: c.grant, peer: Peer{UID: c.uid}, vars: []string{"voip"}, route: &rt}
				err := s.handler.own(call, &rt, 0)
				if err == nil {
					err = sealedOnly(call)
				}
				if (err == nil) != c.tail || rt.needs != rightOwn {
					t.Errorf("%s: tail gives %v", c.describe, err)
				}
			case "stream":
				if e := c.grant.fit(&wire.StartRequest{}); (e == nil) != c.start || rt.needs != rightStart {
					t.Errorf("%s: start gives %v", c.describe, e)
				}
			}
		}
	}
	view := &gate{logger: s.journal.logger()}
	view.set(Access{ViewGroup: "nogroup"})
	if _, e := view.judge(Peer{UID: 1, GID: groupID(t, "nogroup")}, rightOwn, "read packets"); e == nil {
		t.Error("the view group may read packets")
	}
	if _, e := view.judge(Peer{UID: 1, GID: groupID(t, "nogroup")}, rightView, "follow events"); e != nil {
		t.Errorf("the view group may not follow events: %v", e)
	}
}

// A daemon that refuses a stream is answered with its error, before anything is sent.
func TestStreamRefused(t *testing.T) {
	d := fakeWithFiles(t)
	s := serve(t, d, Access{})
	d.err = &wire.Error{Status: 429, Code: wire.CodeLimit, Message: "16 live streams are open already"}
	for _, path := range []string{"/v1/stream", "/v1/events"} {
		method := http.MethodGet
		if path == wire.PathStream {
			method = http.MethodPost
		}
		if resp, body := s.do(method, path, ""); resp.StatusCode != 429 || !strings.Contains(body, wire.CodeLimit) {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
}

// A client that hangs up at any point leaves nothing behind.
func TestStreamCutByTheClient(t *testing.T) {
	d := fakeWithFiles(t)
	d.stays = true
	s := serve(t, d, Access{})
	before := runtime.NumGoroutine()
	for i := range 20 {
		req, err := http.NewRequest(http.MethodGet, fmt.Sprintf("http://capd/v1/captures/%s/stream", testID), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := s.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, resp.Body, int64(i%8)); err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		<-d.live.closed
	}
	if !eventually(func() bool { return runtime.NumGoroutine() <= before }) {
		t.Errorf("%d goroutines, before %d", runtime.NumGoroutine(), before)
	}
}

func groupID(t *testing.T, name string) uint32 {
	t.Helper()
	group, err := user.LookupGroup(name)
	if err != nil {
		t.Fatal(err)
	}
	id, err := strconv.ParseUint(group.Gid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(id)
}
