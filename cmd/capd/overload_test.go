package main

import (
	"slices"
	"testing"
	"time"

	"capd/ctl/wire"
	"capd/testbed"
)

func overloadWarnings(c wire.Capture) int {
	n := 0
	for _, w := range c.Warnings {
		if w.Code == "overload" {
			n++
		}
	}
	return n
}

// A flood beyond the box's rate ends a capture that asked for it, and leaves one that did
// not going on with what the rate allows; both say so, and all together never take more.
func TestOverload(t *testing.T) {
	const rate = 2000
	p := testbed.NewPair(t)
	testbed.RunIn(t, p.B, "nft", "add table inet t; add chain inet t p { type filter hook prerouting priority 0; }; add rule inet t p udp dport 9 drop")
	d := testbed.StartDaemon(t, p.B, "[limits]\nmax_packet_rate = 2000\n")
	begun := time.Now()
	goesOn := d.Must("start", "--name", "goes-on", "--hook", "prerouting", "udp port 9")
	stops := d.Must("start", "--name", "stops", "-i", "vb", "--on-overload", "stop", "udp port 9")
	calm := d.Must("start", "--name", "calm", "--on-overload", "stop", "tcp port 443")
	flood := func() {
		t.Helper()
		if _, err := testbed.Inject(p.B, testbed.InjectOptions{Interface: "vb", Count: 20_000, Length: 60}); err != nil {
			t.Fatal(err)
		}
	}
	flood()
	c := d.Await(stops, "stopped", func(c wire.Capture) bool { return c.Status == wire.StatusComplete })
	checkCounts(t, c)
	if c.StopReason != wire.StopOverload || *c.Packets.Limited == 0 || c.Packets.Captured == 0 || overloadWarnings(c) != 1 || c.Error != nil {
		t.Errorf("%s, %+v, %+v, %+v", c.StopReason, c.Packets, c.Warnings, c.Error)
	}
	judgeFile(t, files(t, d, stops)[0], c.Packets.Captured)
	taken := c.Packets.Captured

	live := d.Await(goesOn, "warned of", func(c wire.Capture) bool { return overloadWarnings(c) == 1 })
	if live.Status != wire.StatusRunning {
		t.Errorf("on_overload sample: %s, %s", live.Status, live.StopReason)
	}
	flood()
	d.Must("stop", goesOn, calm)
	c = d.Show(goesOn)
	checkCounts(t, c)
	if taken += c.Packets.Captured; float64(taken) > rate*time.Since(begun).Seconds()+4*rate/10 {
		t.Errorf("%d packets are captured in %v at %d/s", taken, time.Since(begun), rate)
	}
	if c.StopReason != wire.StopRequested || *c.Packets.Seen != 40_000 || *c.Packets.Limited <= *live.Packets.Limited || overloadWarnings(c) != 1 {
		t.Errorf("%s, %+v, %+v", c.StopReason, c.Packets, c.Warnings)
	}
	if c := d.Show(calm); c.StopReason != wire.StopRequested || *c.Packets.Limited != 0 || overloadWarnings(c) != 0 || slices.ContainsFunc(c.Warnings, func(w wire.Warning) bool { return w.Code == "stalled" }) {
		t.Errorf("the calm one beside the flood: %s, %+v, %+v", c.StopReason, c.Packets, c.Warnings)
	}
}

// A flood that is over before anybody looks is told of at the stop.
func TestOverloadToldAtTheStop(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "[limits]\nmax_packet_rate = 100\n")
	id := d.Must("start", "--hook", "prerouting", "-c", "5", "udp port 9") // it ends by itself
	if _, err := testbed.Inject(p.B, testbed.InjectOptions{Interface: "vb", Count: 3000, Length: 60}); err != nil {
		t.Fatal(err)
	}
	c := d.Await(id, "complete", func(c wire.Capture) bool { return c.Status == wire.StatusComplete })
	checkCounts(t, c)
	if c.StopReason != wire.StopPacketLimit || c.Packets.Captured != 5 || *c.Packets.Limited == 0 || overloadWarnings(c) != 1 {
		t.Errorf("%s, %+v, %+v", c.StopReason, c.Packets, c.Warnings)
	}
}
