package main

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"capd/ctl/wire"
	"capd/testbed"
)

// What hides packets from a capture stands in its record, on stderr and in explain; where
// nothing does, nothing is said.
func TestHiddenPacketsAreTold(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	warned := func(warnings []wire.Warning) bool {
		return slices.ContainsFunc(warnings, func(w wire.Warning) bool {
			return w.Code == "nat_half_blind" && strings.Contains(w.Message, "table ip home")
		})
	}
	check := func(want bool, args ...string) {
		t.Helper()
		got := d.Capctl(append([]string{"start", "--json"}, args...)...)
		var c wire.Capture
		if err := json.Unmarshal([]byte(got.Stdout), &c); err != nil {
			t.Fatalf("capctl start %q: %v: %s", args, err, got.Stderr)
		}
		if warned(c.Warnings) != want || warned(d.Show(c.ID).Warnings) != want || strings.Contains(got.Stderr, "table ip home") != want {
			t.Errorf("start %q: %+v; stderr: %s", args, c.Warnings, got.Stderr)
		}
		d.Must("stop", c.ID)
		status, body := d.Call("POST", wire.PathExplain, `{"filter": "`+args[0]+`", "hooks": ["`+strings.Join(c.Hooks, `", "`)+`"]}`)
		var e wire.Explain
		if err := json.Unmarshal([]byte(body), &e); err != nil || status != 200 {
			t.Fatalf("explain: %d %s", status, body)
		}
		if warned(e.Warnings) != want {
			t.Errorf("explain %q: %+v", args, e.Warnings)
		}
	}
	check(false, "host 10.9.0.1")
	testbed.RunIn(t, p.B, "nft", `table ip home { chain out { type nat hook postrouting priority srcnat; oifname "vb" masquerade; }; }`)
	check(true, "host 10.9.0.1")
	check(false, "udp port 53")
	check(false, "host 10.9.0.1", "--hook", "prerouting,postrouting")
}

// A capture of -i 'later*' goes on into interfaces that are made while it runs.
func TestLaterInterfaceIsInTheFile(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	id := d.Must("start", "-i", "later*", "udp dst port 4242")
	testbed.Run(t, "ip", "-n", p.A, "link", "add", "peer0", "type", "veth", "peer", "name", "later0", "netns", p.B)
	for deadline := time.Now().Add(time.Minute); !strings.Contains(d.Ruleset(), `hook ingress device "later0"`); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("later0 is not hooked:\n%s", d.Ruleset())
		}
	}
	for ns, link := range map[string][2]string{p.A: {"peer0", "10.7.0.1/24"}, p.B: {"later0", "10.7.0.2/24"}} {
		testbed.Run(t, "ip", "-n", ns, "addr", "add", link[1], "dev", link[0])
		testbed.Run(t, "ip", "-n", ns, "link", "set", link[0], "up")
	}
	sent, err := testbed.SendUDP(testbed.Stream{From: p.A, To: p.B, Source: netip.MustParseAddrPort("10.7.0.1:0"),
		Destination: netip.MustParseAddrPort("10.7.0.2:4242"), Count: 7})
	if err != nil {
		t.Fatal(err)
	}
	d.Must("stop", id)
	c := d.Show(id)
	checkCounts(t, c)
	file := files(t, d, id)[0]
	testbed.WantPackets(t, testbed.TsharkPackets(t, file, ""), sent, 1)
	for _, row := range testbed.Tshark(t, file, "", "frame.interface_name") {
		if !strings.Contains(row[0], "later0") {
			t.Errorf("a packet is said to be of interface %q", row[0])
		}
	}
}
