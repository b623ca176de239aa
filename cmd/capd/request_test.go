package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"capd/ctl/wire"
	"capd/testbed"
)

// A refused start leaves no rule, no group, no file and no record.
func TestBadRequestsLeaveNothing(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "[limits]\nmax_captures = 2\nmax_time_limit = \"1h\"\n")
	for _, c := range []struct {
		body   string
		status int
		want   []string
	}{
		{`{"filter_v1": {"source_address": "1.2.3"}}`, 422, []string{"filter_v1.source_address", "1.2.3"}},
		{`{"filter_v1": {"protocol": 300}}`, 422, []string{"filter_v1.protocol", "300"}},
		{`{"filter_v1": {"protocol": "tpc"}}`, 422, []string{"filter_v1.protocol", "tpc", "tcp"}},
		{`{"filter_v1": {"source_port": 70000}}`, 422, []string{"source_port", "70000"}},
		{`{"filter_v1": {"sorce_port": 7}}`, 422, []string{"sorce_port", "source_port"}},
		{`{"time_limt": 7}`, 422, []string{"time_limt", "time_limit"}},
		{`{"time_limit": "2h"}`, 422, []string{"time_limit", "2h", "max_time_limit"}},
		{`{"time_limit": "soon"}`, 422, []string{"time_limit", "soon"}},
		{`{"byte_limit": "10 parsecs"}`, 422, []string{"byte_limit", "10 parsecs"}},
		{`{"byte_limit": 100}`, 422, []string{"byte_limit", "100"}},
		{`{"hooks": ["perrouting"]}`, 422, []string{"hooks", "perrouting", "prerouting"}},
		{`{"hooks": ["ingress"]}`, 422, []string{"interfaces"}},
		{`{"destination": "nowhere"}`, 422, []string{"destination", "nowhere"}},
		{`{"system": "cloud"}`, 422, []string{"system", "magic-transit"}},
		{`{"type": "fulll"}`, 422, []string{"type", "fulll", "full"}},
		{`{"snaplen": "many"}`, 422, []string{"snaplen"}},
		{`{`, 400, []string{"JSON"}},
		{`{"name": "` + strings.Repeat("x", 1<<20) + `"}`, 413, []string{"1 MiB"}},
	} {
		status, body := d.Call("POST", wire.PathCaptures, c.body)
		short := c.body[:min(len(c.body), 60)]
		if status != c.status {
			t.Errorf("%s: %d, want %d: %s", short, status, c.status, body)
		}
		for _, want := range c.want {
			if !strings.Contains(body, want) {
				t.Errorf("%s: the answer lacks %q: %s", short, want, body)
			}
		}
	}
	if list := d.Must("--json", "list", "--all"); list != "[]" {
		t.Errorf("captures: %s", list)
	}
	if rules := d.Ruleset(); strings.Contains(rules, "chain") {
		t.Errorf("rules:\n%s", rules)
	}
	for _, dir := range []string{"spool", "captures"} {
		entries, err := os.ReadDir(filepath.Join(d.StateDir(), dir))
		if err != nil || len(entries) > 0 {
			t.Errorf("%s: %v %v", dir, entries, err)
		}
	}
	if out := testbed.RunIn(t, p.B, "cat", "/proc/net/netfilter/nfnetlink_log"); strings.TrimSpace(out) != "" {
		t.Errorf("groups are bound: %s", out)
	}
	d.Must("start", "--name", "one")
	if r := d.Capctl("start", "--name", "one"); r.Code != 1 || !strings.Contains(r.Stderr, "one") {
		t.Errorf("a name twice: %+v", r)
	}
	d.Must("start")
	if r := d.Capctl("start"); r.Code != 6 || !strings.Contains(r.Stderr, "max_captures") {
		t.Errorf("one too many: %+v", r)
	}
}

// The model API's request works word for word, on both paths.
func TestModelRequest(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	const request = `{"filter_v1": {"source_address": "1.2.3.4", "protocol": 6}, "time_limit": 300, "byte_limit": "10mb", "packet_limit": 10000, "type": "simple", "system": "magic-transit"}`
	for _, path := range []string{"/v1/captures", "/client/v4/accounts/0123456789abcdef0123456789abcdef/pcaps"} {
		out := testbed.Run(t, "curl", "-sS", "--unix-socket", d.Socket, "-X", "POST", "-d", request, "http://localhost"+path)
		if !strings.Contains(out, `"id":"`) && !strings.Contains(out, `"id": "`) {
			t.Errorf("%s answers %s", path, out)
		}
	}
	var list []wire.Capture
	if err := json.Unmarshal([]byte(d.Must("--json", "list")), &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 2 {
		t.Fatalf("%d captures run", len(list))
	}
	for _, c := range list {
		if c.Type != wire.TypeSimple || *c.Sample != 100 || *c.Snaplen != 160 || *c.TimeLimit != 300e9 || *c.ByteLimit != 10e6 || *c.PacketLimit != 10000 ||
			c.FilterV1.SourceAddress != "1.2.3.4" || len(c.Hooks) != 1 {
			t.Errorf("in force: %+v", c.StartRequest)
		}
	}
	if rules := d.Ruleset(); !strings.Contains(rules, "ip saddr 1.2.3.4") || !strings.Contains(rules, "numgen random mod 100") || !strings.Contains(rules, "snaplen 160") {
		t.Errorf("rules:\n%s", rules)
	}
}

// Any local user can connect; each call is judged by who makes it.
func TestPeersAreJudged(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	id := d.Must("start")
	as := func(args ...string) (string, error) {
		cmd := d.Command(args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for _, args := range [][]string{{"list"}, {"show", id}, {"stop", id}, {"start"}, {"download", id}, {"rm", id}} {
		out, err := as(args...)
		if err == nil || !strings.Contains(out, "capctl: ") || !strings.Contains(out, "capd") {
			t.Errorf("%v as nobody: %v %s", args, err, out)
		}
	}
	if c := d.Show(id); c.Status != wire.StatusRunning {
		t.Errorf("nobody changed the capture: %+v", c)
	}
}
