package main

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

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

// Where a pattern stands for interfaces of both kinds, with Ethernet headers and without,
// a capture with a filter says what that means for it.
func TestInterfacesOfBothKinds(t *testing.T) {
	p := testbed.NewPair(t)
	testbed.NewTun(t, p.B, "vtun")
	d := testbed.StartDaemon(t, p.B, "")
	for _, c := range []struct {
		args   []string
		warned bool
	}{
		{[]string{"-i", "v*", "udp port 4242"}, true},
		{[]string{"-i", "v*"}, false},
		{[]string{"-i", "vb", "udp port 4242"}, false},
		{[]string{"-i", "vtun", "udp port 4242"}, false},
		{[]string{"udp port 4242"}, false},
	} {
		r := d.Capctl(append([]string{"start"}, c.args...)...)
		if r.Code != 0 || strings.Contains(r.Stderr, "packets of vtun have no Ethernet header, those of vb have") != c.warned || strings.Contains(r.Stderr, "warning") != c.warned {
			t.Errorf("start %q: %+v", c.args, r)
		}
	}
	// What the warning says: with the tunnel there, what stands behind a tag is found too.
	frame := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0x5e, 0, 0x53, 1, 0x81, 0, 0, 5, 8, 0},
		0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17, 0x66, 0xbc, 10, 9, 0, 1, 10, 9, 0, 2, 0, 80, 16, 146, 0, 9, 0, 0, 'x')
	testbed.In(t, p.A, func() error {
		socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(socket)
		va, err := net.InterfaceByName("va")
		if err != nil {
			return err
		}
		return unix.Sendto(socket, frame, 0, &unix.SockaddrLinklayer{Ifindex: va.Index})
	})
	var list []wire.Capture
	if err := json.Unmarshal([]byte(d.Must("--json", "list")), &list); err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		if c.Filter == "" {
			continue // it has ARP and the like
		}
		want := uint64(0)
		if slices.Contains(c.Interfaces, "v*") {
			want = 1
		}
		d.Await(c.ID, "whole", func(c wire.Capture) bool { return c.Packets.Captured >= want })
		d.Must("stop", c.ID)
		if got := d.Show(c.ID).Packets.Captured; got != want {
			t.Errorf("-i %v %q: %d packets, want %d", c.Interfaces, c.Filter, got, want)
		}
	}
}
