package main

import (
	"context"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"capd/ctl/wire"
	"capd/testbed"
)

// A capture says in its record, in the event stream and in the log that an interface which
// it names was renamed, and that it is back, in one warning for each name; it goes on then.
// A capture of everything goes on under the new name.
func TestInterfaceIsRenamed(t *testing.T) {
	testbed.NeedCommand(t, "tshark")
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	ctx, cancel := context.WithTimeout(t.Context(), streamTimeout)
	defer cancel()
	events, err := connect(t, d).Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer events.Close()
	const port = "4242"
	named := d.Must("start", "-i", "vb", "udp port "+port)
	all := d.Must("start", "udp port "+port)
	send := func() {
		t.Helper()
		if _, err := testbed.SendUDP(testbed.Stream{From: p.A, To: p.B, Source: netip.AddrPortFrom(testbed.A4, 0), Destination: netip.AddrPortFrom(testbed.B4, 4242), Count: 5}); err != nil {
			t.Fatal(err)
		}
	}
	rename := func(from, to, says string) wire.Capture {
		t.Helper()
		testbed.RunIn(t, p.B, "ip", "link", "set", from, "name", to)
		c := d.Await(named, says, func(c wire.Capture) bool {
			return len(c.Warnings) > 0 && strings.Contains(c.Warnings[len(c.Warnings)-1].Message, says)
		})
		if len(c.Warnings) != 1 || c.Warnings[0].Code != "interface_gone" {
			t.Errorf("warnings: %+v", c.Warnings)
		}
		for {
			e, err := events.Next()
			if err != nil {
				t.Fatal(err)
			}
			if e.Type == wire.EventWarning {
				if w := e.Capture.Warnings; e.Capture.ID != named || !strings.Contains(w[len(w)-1].Message, says) {
					t.Errorf("told is %+v of %s", w, e.Capture.ID)
				}
				return c
			}
		}
	}
	send()
	c := rename("vb", "wan0", "interface vb was renamed to wan0 at ")
	if !strings.Contains(c.Warnings[0].Message, "-i wan0") {
		t.Errorf("no mend: %s", c.Warnings[0].Message)
	}
	send()
	rename("wan0", "vb", " and was back at ")
	send()
	rename("vb", "wan0", "(the last of 2 times)")
	for _, said := range []string{`an interface of the capture is gone`, `an interface of the capture is back`} {
		if !strings.Contains(d.Log.String(), said) {
			t.Errorf("the log does not say %q:\n%s", said, d.Log.String())
		}
	}
	for id, want := range map[string]uint64{named: 10, all: 15} {
		d.Must("stop", id)
		if c := d.Show(id); c.Packets.Captured != want || len(c.Warnings) != map[string]int{named: 1}[id] {
			t.Errorf("%s: %+v, warnings %+v", id, c.Packets, c.Warnings)
		}
	}
	dir := t.TempDir()
	d.Must("download", all, "-o", dir)
	files, err := filepath.Glob(filepath.Join(dir, "*.pcapng"))
	if err != nil || len(files) != 1 {
		t.Fatalf("files %v, %v", files, err)
	}
	names := strings.Fields(testbed.Run(t, "tshark", "-r", files[0], "-T", "fields", "-e", "frame.interface_name"))
	names = slices.DeleteFunc(names, func(word string) bool { return word != "vb" && word != "wan0" }) // tshark's warning of root
	if got := strings.Join(slices.Compact(names), " "); len(names) != 15 || got != "vb wan0 vb" {
		t.Errorf("interfaces of %d packets in the file: %s", len(names), got)
	}
}
