package api

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/user"
	"strings"
	"testing"
)

// TestAudit holds that each call that changes something or reads packets writes one line,
// always with the same fields, and notes what was done in the capture's record.
func TestAudit(t *testing.T) {
	d := fakeWithFiles(t)
	d.captures[0].Filter, d.captures[0].Destination = "udp port 5060", "soc"
	s := serve(t, d, Access{})
	who := fmt.Sprintf("uid=%d user=%s login_uid=%s pid=%d", os.Getuid(), me(t), loginUID(t), os.Getpid())
	const (
		voip    = "capture=" + testID + ` name=voip filter="udp port 5060" filter_v1="" destination=soc`
		nothing = `capture="" name="" filter="" filter_v1="" destination=""`
		model   = "/client/v4/accounts/x/pcaps/"
	)
	for _, c := range []struct {
		method, path, body string
		want               string // the one new audit line; "" = none
		record             string
	}{
		{"POST", "/v1/captures", `{"name": "a", "filter": "udp port 53", "destination": "soc", "filter_v1": {"protocol": 6}}`,
			`action=start result=ok reason="" WHO capture=` + testID + ` name=a filter="udp port 53" filter_v1="{\"protocol\":6}" destination=soc file="" force=false`, testID + " start  ok"},
		{"POST", "/v1/captures", `{"name": "a b", "filter": "tcp"}`, `action=start result=invalid reason="name: \"a b\" is not a name" WHO capture="" name="a b" filter=tcp filter_v1="" destination="" file="" force=false`, ""},
		{"POST", "/v1/captures/voip/stop", "", `action=stop result=ok reason="" WHO ` + voip + ` file="" force=false`, testID + " stop  ok"},
		{"POST", "/v1/captures/nope/stop", "", `action=stop result=no_such_capture reason="no capture is called \"nope\"" WHO capture=nope name="" filter="" filter_v1="" destination="" file="" force=false`, ""},
		{"POST", "/v1/captures/voip/retry", "", `action=retry result=ok reason="" WHO ` + voip + ` file="" force=false`, testID + " retry  ok"},
		{"DELETE", "/v1/captures/voip?force=true", "", `action=remove result=ok reason="" WHO ` + voip + ` file="" force=true`, testID + " remove  ok"},
		{"GET", "/v1/captures/voip/files/0001.pcapng", "", `action=download result=ok reason="" WHO ` + voip + ` file=0001.pcapng force=false`, testID + " download 0001.pcapng ok"},
		{"POST", "/v1/destinations/soc/check", "", `action=check result=ok reason="" WHO ` + strings.TrimSuffix(nothing, `""`) + `soc file="" force=false`, ""},
		{"PUT", model + "voip/stop", "", `action=stop result=ok reason="" WHO ` + voip + ` file="" force=false`, testID + " stop  ok"},
		{"GET", model + "voip/download", "", `action=download result=no_such_file reason="the capture is in the format pcapng, not pcap" WHO ` + voip + ` file="" force=false`, ""},
		{"POST", "/v1/explain", "", "", ""},
		{"GET", "/v1/captures", "", "", ""},
		{"GET", "/v1/captures/voip", "", "", ""},
	} {
		before := len(s.journal.lines("msg=audit"))
		d.recorded()
		s.do(c.method, c.path, c.body)
		if c.want != "" && !eventually(func() bool { return len(s.journal.lines("msg=audit")) > before }) { // written after the answer
			t.Errorf("%s %s wrote nothing", c.method, c.path)
			continue
		}
		lines := s.journal.lines("msg=audit")[before:]
		want := "level=INFO msg=audit " + strings.ReplaceAll(c.want, "WHO", who)
		if c.want == "" && len(lines) > 0 || c.want != "" && (len(lines) != 1 || lines[0] != want) {
			t.Errorf("%s %s\nwrote %q\n want %q", c.method, c.path, lines, want)
		}
		s.client.CloseIdleConnections()
		got := d.recorded()
		if c.record != "" && got == "" {
			eventually(func() bool { got = d.recorded(); return got != "" })
		}
		if got != c.record {
			t.Errorf("%s %s: in the record %q, want %q", c.method, c.path, got, c.record)
		}
	}
	s.do("POST", "/v1/captures", `{"filter": "`+strings.Repeat("x", 5000)+`"}`)
	if !eventually(func() bool { return len(s.journal.lines("xxxx")) == 1 }) || len(s.journal.lines("xxxx")[0]) > 1500 {
		t.Errorf("a long filter is written as it is")
	}
}

func me(t *testing.T) string {
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	return u.Username
}

// loginUID is what the kernel says of this process, as the audit line writes it.
func loginUID(t *testing.T) string {
	text, err := os.ReadFile("/proc/self/loginuid")
	if err != nil {
		t.Fatal(err)
	}
	if string(text) == "4294967295" {
		return `""`
	}
	return string(text)
}

// TestBrowserHosts holds that a page which reaches the socket through a proxy is refused
// by the host that it names, even where it hides its origin.
func TestBrowserHosts(t *testing.T) {
	s := serve(t, &fakeDaemon{}, Access{})
	for host, status := range map[string]int{"capd": 200, "unix": 200, "localhost": 200, "localhost:8080": 403, "127.0.0.1": 403, "[::1]": 403, "router.example": 403, "capd.": 403} {
		req, err := http.NewRequest("GET", "http://capd/v1/status", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		resp, err := s.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != status || status == 403 && !strings.Contains(string(text), "it is one that a browser would name") {
			t.Errorf("Host %s: %d %s %v", host, resp.StatusCode, text, err)
		}
	}
}
