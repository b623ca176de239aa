package api

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"capd/ctl/wire"
)

func fakeWithFiles(t *testing.T) *fakeDaemon {
	d := &fakeDaemon{dir: t.TempDir(), captures: []wire.Capture{
		{ID: testID, Host: "edge-1", Status: wire.StatusComplete, StartRequest: wire.StartRequest{Name: "voip", Type: wire.TypeFull, Format: wire.FormatPcapng}},
	}}
	for name, text := range map[string]string{"0001.pcapng": "packets", "0001.pcap.zst": "squeezed", "manifest.json": "{}"} {
		if err := os.WriteFile(filepath.Join(d.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// TestAnswers goes through the calls and what each answers.
func TestAnswers(t *testing.T) {
	d := fakeWithFiles(t)
	s := serve(t, d, Access{})
	const full = "/v1/captures/" + testID
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string // of the body; "..." at the end: how it begins
		asked              string
	}{
		{"POST", "/v1/captures", ``, 201, `{"id":"` + testID + `",...`, "start"},
		{"POST", "/v1/captures", `{"name": "a", "time_limit": "5m"}`, 201, `{"id":"` + testID + `",...`, "start"},
		{"POST", "/v1/captures", `{"snaplen": 12}`, 422, `{"error":{"code":"invalid","message":"snaplen: 12 is out of range","field":"snaplen","hint":"write 0 for whole packets, or 34 to 262144"}}`, ""},
		{"POST", "/v1/captures?wait=1", ``, 422, `{"error":{"code":"unknown_field","message":"unknown parameter \"wait\"","field":"wait","hint":"leave it out: there are none here"}}`, ""},
		{"GET", "/v1/captures", "", 200, `{"captures":[{"id":"` + testID + `"...`, "list false"},
		{"GET", "/v1/captures?all=true", "", 200, `{"captures":[{...`, "list true"},
		{"GET", "/v1/captures?al=true", "", 422, `{"error":{"code":"unknown_field","message":"unknown parameter \"al\"","field":"al","hint":"did you mean \"all\"?"}}`, ""},
		{"GET", "/v1/captures?all=maybe", "", 422, `{"error":{"code":"invalid","message":"all is \"maybe\"","field":"all","hint":"write all=true or all=false"}}`, ""},
		{"GET", full, "", 200, `{"id":"` + testID + `"...`, "get " + testID},
		{"GET", "/v1/captures/voip", "", 200, `{"id":"` + testID + `"...`, "get voip"},
		{"GET", "/v1/captures/nope", "", 404, `{"error":{"code":"no_such_capture","message":"no capture is called \"nope\""}}`, "get nope"},
		{"GET", "/v1/captures/..%2Fx", "", 404, `{"error":{"code":"no_such_capture","message":"no capture is called \"../x\"","hint":"capctl list --all shows them"}}`, ""},
		{"POST", full + "/stop", "", 200, `{"id":"` + testID + `"...`, "get " + testID + ",stop " + testID},
		{"POST", full + "/stop", "{}", 200, `{"id":"` + testID + `"...`, "get " + testID + ",stop " + testID},
		{"POST", full + "/stop", `{"now": true}`, 422, `{"error":{"code":"unknown_field","message":"unknown field \"now\"","field":"now","hint":"leave it out: there are none here"}}`, "get " + testID},
		{"POST", full + "/retry", "", 200, `{"id":"` + testID + `"...`, "get " + testID + ",retry " + testID},
		{"DELETE", full, "", 204, "", "get " + testID + ",remove " + testID + " false"},
		{"DELETE", full + "?force=true", "", 204, "", "get " + testID + ",remove " + testID + " true"},
		{"GET", full + "/files/0001.pcapng", "", 200, "packets", "get " + testID + ",open " + testID + " 0001.pcapng"},
		{"GET", full + "/files/0002.pcapng", "", 404, `{"error":{"code":"no_such_file","message":"the capture has no file \"0002.pcapng\" here","hint":"capctl show names the files and says where they went"}}`, "get " + testID + ",open " + testID + " 0002.pcapng"},
		{"GET", full + "/files/..%2F..%2Fetc%2Fpasswd", "", 404, `{"error":{"code":"no_such_file",...`, "get " + testID},
		{"GET", full + "/files/..", "", 404, `{"error":{"code":"no_such_file",...`, "get " + testID},
		{"GET", "/v1/destinations", "", 200, `{"destinations":[{"name":"soc","type":"sftp",...`, ""},
		{"POST", "/v1/destinations/soc/check", "", 200, `{"ok":true,"steps":[]}`, "check soc"},
		{"POST", "/v1/explain", `{"filter": "udp"}`, 200, `{"ruleset":"table inet capd {}","kernel":"","user":"","hooks":[],"warnings":[]}`, "explain"},
		{"POST", "/v1/explain", `{"hooks": ["inputt"]}`, 422, `{"error":{"code":"invalid","message":"hooks[0]: \"inputt\" is not a hook","field":"hooks[0]","hint":"did you mean \"input\"?"}}`, ""},
		{"GET", "/v1/status", "", 200, `{"version":"test",...`, ""},
		{"GET", "/metrics", "", 200, "# HELP up Is it?\n# TYPE up gauge\nup 1", ""},
		{"PATCH", "/v1/status", "", 405, `{"error":{"code":"method_not_allowed","message":"\"/v1/status\" does not take \"PATCH\"","hint":"it takes GET, HEAD"}}`, ""},
		{"PUT", full, "", 405, `{"error":{"code":"method_not_allowed","message":"\"` + full + `\" does not take \"PUT\"","hint":"it takes DELETE, GET, HEAD"}}`, ""},
		{"GET", "/", "", 404, `{"error":{"code":"not_found","message":"there is no \"/\" here","hint":"paths begin with /v1/captures, /v1/destinations, /v1/explain, /v1/status"}}`, ""},
		{"GET", "/v1/captures/", "", 404, `{"error":{"code":"no_such_capture",...`, ""},
		{"GET", "//v1/captures", "", 404, `{"error":{"code":"not_found",...`, ""},
	} {
		d.asked = nil
		resp, body := s.do(c.method, c.path, c.body)
		start, isStart := strings.CutSuffix(c.want, "...")
		if resp.StatusCode != c.status || (!isStart && body != c.want) || !strings.HasPrefix(body, start) && isStart {
			t.Errorf("%s %s %s\n got %d %s\nwant %d %s", c.method, c.path, c.body, resp.StatusCode, body, c.status, c.want)
		}
		if got := strings.Join(d.asked, ","); got != c.asked {
			t.Errorf("%s %s asked the daemon %q, want %q", c.method, c.path, got, c.asked)
		}
		if strings.HasPrefix(body, "{") && resp.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s: content type %q", c.method, c.path, resp.Header.Get("Content-Type"))
		}
	}
	if _, body := s.do("GET", full, ""); !strings.Contains(body, `"files":[],"warnings":[]`) {
		t.Errorf("a list is null: %s", body)
	}
	if resp, _ := s.do("PUT", full, ""); resp.Header.Get("Allow") != "DELETE, GET, HEAD" {
		t.Errorf("Allow: %s", resp.Header.Get("Allow"))
	}
	if resp, _ := s.do("POST", "/v1/captures", ""); resp.Header.Get("Location") != full {
		t.Errorf("Location: %s", resp.Header.Get("Location"))
	}
	if resp, body := s.do("HEAD", full+"/files/0001.pcapng", ""); resp.StatusCode != 200 || body != "" || resp.ContentLength != 7 {
		t.Errorf("HEAD: %d %q %d", resp.StatusCode, body, resp.ContentLength)
	}
	for name, want := range map[string]string{"0001.pcapng": "application/x-pcapng", "0001.pcap.zst": "application/zstd", "manifest.json": "application/json"} {
		resp, _ := s.do("GET", full+"/files/"+name, "")
		if got := resp.Header.Get("Content-Type"); got != want {
			t.Errorf("%s is of type %q, want %q", name, got, want)
		}
		if got := resp.Header.Get("Content-Disposition"); got != "attachment; filename="+name {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// TestModelRequest sends the model API's request word for word to both paths.
func TestModelRequest(t *testing.T) {
	const body = `{"filter_v1": {"source_address": "1.2.3.4", "protocol": 6}, "time_limit": 300, "byte_limit": "10mb", "packet_limit": 10000, "type": "simple", "system": "magic-transit"}`
	d := &fakeDaemon{}
	s := serve(t, d, Access{})
	for path, want := range map[string]struct {
		status int
		format string
	}{"/v1/captures": {201, ""}, "/client/v4/accounts/023e105f4ecef8ad9ca31a8372d0c353/pcaps": {200, "pcap"}} {
		resp, text := s.do("POST", path, body, "Content-Type", "application/x-www-form-urlencoded") // as curl -d says
		if resp.StatusCode != want.status {
			t.Errorf("%s: %d %s", path, resp.StatusCode, text)
			continue
		}
		req, by := d.lastRequest()
		limit, bytes, packets := wire.Seconds(300e9), wire.Size(10e6), uint64(10000)
		if expect := (wire.StartRequest{Type: "simple", System: "magic-transit", Format: want.format, TimeLimit: &limit, ByteLimit: &bytes, PacketLimit: &packets,
			FilterV1: &wire.FilterV1{SourceAddress: "1.2.3.4", Protocol: "6"}}); !reflect.DeepEqual(req, expect) {
			t.Errorf("%s: %+v", path, req)
		}
		if by.PID != int32(os.Getpid()) || by.UID != uint32(os.Getuid()) {
			t.Errorf("%s: by %+v", path, by)
		}
	}
}

func TestBodySize(t *testing.T) {
	d := &fakeDaemon{}
	s := serve(t, d, Access{})
	pad := func(n int) string { return `{"name": "a"` + strings.Repeat(" ", n-len(`{"name": "a"}`)) + `}` }
	if resp, text := s.do("POST", "/v1/captures", pad(wire.MaxRequestBody)); resp.StatusCode != 201 {
		t.Errorf("1 MiB: %d %s", resp.StatusCode, text)
	}
	const want = `{"error":{"code":"too_large","message":"the body is larger than 1 MiB"}}`
	for name, body := range map[string]io.Reader{"with its length": strings.NewReader(pad(wire.MaxRequestBody + 1)), "chunked": io.MultiReader(strings.NewReader(pad(3 * wire.MaxRequestBody)))} {
		req, _ := http.NewRequest("POST", "http://capd/v1/captures", body)
		resp, err := s.client.Do(req)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 413 || strings.TrimSpace(string(text)) != want {
			t.Errorf("%s: %d %s", name, resp.StatusCode, text)
		}
	}
	if resp, text := s.do("POST", "/v1/captures", "{}", "Content-Encoding", "gzip"); resp.StatusCode != 400 || !strings.Contains(text, `encoded as \"gzip\"`) {
		t.Errorf("gzip: %d %s", resp.StatusCode, text)
	}
}

func TestBrowsersAreRefused(t *testing.T) {
	s := serve(t, &fakeDaemon{}, Access{})
	for _, name := range []string{"Origin", "Sec-Fetch-Mode", "Sec-Fetch-Site"} {
		resp, text := s.do("GET", "/v1/status", "", name, "null")
		if want := `{"error":{"code":"forbidden","message":"calls from a browser are refused (` + name + ` is set)","hint":"use capctl, or curl --unix-socket"}}`; resp.StatusCode != 403 || text != want {
			t.Errorf("%s: %d %s", name, resp.StatusCode, text)
		}
	}
}

// TestFailures holds that a daemon's errors arrive as they are, and that what is its own
// fault tells nothing to the caller and all to the journal.
func TestFailures(t *testing.T) {
	d := &fakeDaemon{}
	s := serve(t, d, Access{})
	const broken = `{"error":{"code":"internal","message":"capd failed at this","hint":"journalctl -u capd says why"}}`
	for _, c := range []struct {
		err    error
		status int
		want   string
	}{
		{&wire.Error{Status: 507, Code: wire.CodeNoSpace, Message: "the spool is full", Hint: "capctl rm"}, 507, `{"error":{"code":"no_space","message":"the spool is full","hint":"capctl rm"}}`},
		{fmt.Errorf("start: %w", &wire.Error{Status: 429, Code: wire.CodeLimit, Message: "16 run"}), 429, `{"error":{"code":"limit_reached","message":"16 run"}}`},
		{&wire.Error{Code: wire.CodeConflict, Message: "without a status"}, 500, `{"error":{"code":"conflict","message":"without a status"}}`},
		{fmt.Errorf("list interfaces: %w", os.NewSyscallError("socket", syscall.EMFILE)), 503, `{"error":{"code":"unavailable","message":"capd has no file descriptor left: list interfaces: socket: too many open files","hint":"end some captures, streams or watches; LimitNOFILE= of capd.service is the limit"}}`},
		{errors.New("secret detail"), 500, broken},
		{(*wire.Error)(nil), 500, broken},
	} {
		d.err = c.err
		if resp, text := s.do("POST", "/v1/captures", ""); resp.StatusCode != c.status || text != c.want {
			t.Errorf("%v: %d %s, want %d %s", c.err, resp.StatusCode, text, c.status, c.want)
		}
	}
	if lines := s.journal.lines("secret detail"); len(lines) != 1 || !strings.Contains(lines[0], "level=ERROR") {
		t.Errorf("the journal has %q", lines)
	}
	d.err, d.panics = nil, true
	if resp, text := s.do("GET", "/v1/captures", ""); resp.StatusCode != 500 || text != broken {
		t.Errorf("a panic: %d %s", resp.StatusCode, text)
	}
	if lines := s.journal.lines("the fake was told to"); len(lines) != 1 {
		t.Errorf("the journal has %q", lines)
	}
	d.panics = false
	if resp, _ := s.do("GET", "/v1/captures", ""); resp.StatusCode != 200 {
		t.Errorf("after a panic: %d", resp.StatusCode)
	}
}

// TestCutDownload holds that a client that goes away in the middle of a file leaves an
// audit line that says so, and no goroutine.
func TestCutDownload(t *testing.T) {
	d := fakeWithFiles(t)
	big, err := os.Create(filepath.Join(d.dir, "big.pcapng"))
	if err != nil {
		t.Fatal(err)
	}
	if err := big.Truncate(1 << 30); err != nil {
		t.Fatal(err)
	}
	big.Close()
	s := serve(t, d, Access{})
	conn, err := net.Dial("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET /v1/captures/voip/files/big.pcapng HTTP/1.1\r\nHost: capd\r\n\r\n")
	if _, err := io.ReadFull(conn, make([]byte, 1<<16)); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if !eventually(func() bool { return len(s.journal.lines("result=cut")) == 1 }) {
		t.Errorf("the journal has %q", s.journal.lines("audit"))
	}
}

// eventually waits for something that happens without a time of its own.
func eventually(ok func() bool) bool {
	for range 3000 {
		if ok() {
			return true
		}
		time.Sleep(10 * time.Millisecond)
	}
	return false
}
