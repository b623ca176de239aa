package main

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"capd/ctl/wire"
	"capd/testbed"
)

// level gives the level of a finding, "" where there is none of that name.
func level(d wire.Doctor, id string) string {
	for _, f := range d.Findings {
		if f.ID == id {
			return f.Level
		}
	}
	return ""
}

// crude finds sizes in full, such as 24012760KiB.
var crude = regexp.MustCompile(`\b\d{6,}([KMG]iB|[kmg]?b| bytes)?\b`)

func TestDoctor(t *testing.T) {
	list := destinations(t)
	d := testbed.StartDaemon(t, "", profiles(list, "")+`
[limits]
max_captures = 1
max_packet_rate = 0
[access]
view_group = "no-such-group"
[access.group.no-such-noc]
[access.group.users]
destinations = []
require_sealed = true
`)
	examine := func(exit int) wire.Doctor {
		t.Helper()
		r := d.Capctl("doctor", "--json")
		if r.Code != exit {
			t.Fatalf("capctl doctor ended with %d, not %d: %s%s", r.Code, exit, r.Stdout, r.Stderr)
		}
		var report wire.Doctor
		if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil {
			t.Fatal(err)
		}
		return report
	}
	want := func(report wire.Doctor, levels map[string]string) {
		t.Helper()
		for id, l := range levels {
			if got := level(report, id); got != l {
				t.Errorf("%s: %q, not %q", id, got, l)
			}
		}
	}
	report := examine(0)
	want(report, map[string]string{
		"capd": wire.LevelOK, "kernel": wire.LevelOK, "rules": wire.LevelOK, "memory": wire.LevelOK, "receive_buffer": wire.LevelOK,
		"capabilities": wire.LevelWarning, // a test's capd is root
		"rate_guard":   wire.LevelWarning, "access.view_group": wire.LevelWarning, "access.group.no-such-noc": wire.LevelWarning, "access.group.users": wire.LevelWarning, "captures": wire.LevelOK, "nflog": wire.LevelOK,
	})
	for _, f := range report.Findings {
		if crude.MatchString(f.Message) {
			t.Errorf("a size that nobody reads at sight: %s: %s", f.ID, f.Message)
		}
	}
	for _, to := range list {
		want(report, map[string]string{"destination." + to.name: wire.LevelOK})
	}

	// What breaks shows, and is gone when it is mended.
	id := d.Must("start", "-f", writeRequest(t))
	list[0].stop()
	report = examine(1)
	want(report, map[string]string{"captures": wire.LevelError, "destination." + list[0].name: wire.LevelError})
	if r := d.Capctl("doctor"); !strings.Contains(r.Stdout, "capctl stop one, or raise limits.max_captures") {
		t.Errorf("no mend for a full house: %s", r.Stdout)
	}
	d.Must("stop", id)
	list[0].start()
	examine(0)
}
