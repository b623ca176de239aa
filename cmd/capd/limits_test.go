package main

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"capd/ctl/wire"
	"capd/testbed"
)

func TestLimitsAreExact(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	blast := func(n int) {
		t.Helper()
		if _, err := testbed.SendUDP(testbed.Stream{From: p.A, To: p.B, Source: netip.AddrPortFrom(testbed.A4, 0),
			Destination: netip.AddrPortFrom(testbed.B4, 5000), Count: n, Size: 1000}); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("packets", func(t *testing.T) {
		id := d.Must("start", "-c", "137", "--hook", "prerouting")
		blast(1000)
		c := d.Await(id, "complete", func(c wire.Capture) bool { return c.Status == wire.StatusComplete })
		checkCounts(t, c)
		if c.StopReason != wire.StopPacketLimit || c.Packets.Captured != 137 {
			t.Errorf("%s with %d packets", c.StopReason, c.Packets.Captured)
		}
		path := files(t, d, id)[0]
		judgeFile(t, path, 137)
	})
	for _, limit := range []int64{4096, 10000, 123457, 400000} {
		for _, format := range []string{"pcapng", "pcap"} {
			t.Run(fmt.Sprint("bytes ", limit, " ", format), func(t *testing.T) {
				id := d.Must("start", "-b", fmt.Sprint(limit), "--segment-size", "100000", "--format", format, "--hook", "prerouting")
				blast(1000)
				c := d.Await(id, "complete", func(c wire.Capture) bool { return c.Status == wire.StatusComplete })
				checkCounts(t, c)
				var total int64
				for i, path := range files(t, d, id) {
					info, err := os.Stat(path)
					if err != nil {
						t.Fatal(err)
					}
					if total += info.Size(); info.Size() > 100000 {
						t.Errorf("segment %d has %d bytes", i, info.Size())
					}
					judgeFile(t, path, c.Files[i].Packets)
				}
				if c.StopReason != wire.StopByteLimit || total > limit || total < limit-4000 {
					t.Errorf("%s with %d of %d bytes", c.StopReason, total, limit)
				}
			})
		}
	}
	t.Run("time", func(t *testing.T) {
		id := d.Must("start", "-t", "1")
		blast(10)
		c := d.Await(id, "complete", func(c wire.Capture) bool { return c.Status == wire.StatusComplete })
		checkCounts(t, c)
		if took := c.Stopped.Sub(c.Started.Time); c.StopReason != wire.StopTimeLimit || took < time.Second {
			t.Errorf("%s after %s", c.StopReason, took)
		}
		judgeFile(t, files(t, d, id)[0], c.Packets.Captured)
	})
	t.Run("SIGTERM", func(t *testing.T) {
		id := d.Must("start", "--name", "until-the-end", "--hook", "prerouting", "udp port 5000")
		blast(10)
		if code := d.Stop(); code != 0 {
			t.Errorf("capd's exit code is %d", code)
		}
		if rules := testbed.RunIn(t, p.B, "nft", "list", "ruleset"); strings.TrimSpace(rules) != "" {
			t.Errorf("rules are left:\n%s", rules)
		}
		d.Start()
		c := d.Show("until-the-end")
		checkCounts(t, c)
		if c.ID != id || c.StopReason != wire.StopShutdown || c.Status != wire.StatusComplete || c.Packets.Captured != 10 {
			t.Errorf("after a restart: %+v", c)
		}
		judgeFile(t, files(t, d, id)[0], 10)
	})
}

// A full spool ends the capture with a whole file, and says so.
func TestSpoolSizeEndsACapture(t *testing.T) {
	p := testbed.NewPair(t)
	const size = 20e6
	d := testbed.StartDaemon(t, p.B, "[limits]\nspool_size = \"20mb\"\n")
	id := d.Must("start", "--hook", "prerouting", "--segment-size", "5mb")
	if _, err := testbed.Inject(p.B, testbed.InjectOptions{Interface: "vb", Count: 40000, Length: 1400, Rate: 100000}); err != nil {
		t.Fatal(err)
	}
	c := d.Await(id, "ended", func(c wire.Capture) bool { return c.Status != wire.StatusRunning })
	checkCounts(t, c)
	if c.StopReason != wire.StopNoSpace || c.Error == nil || c.Error.Code != wire.CodeNoSpace || !strings.Contains(c.Error.Message, "spool_size") {
		t.Errorf("%s: %+v", c.StopReason, c.Error)
	}
	if c.Bytes.Written == 0 || c.Bytes.Written > size {
		t.Errorf("%d bytes are in a spool of %d", c.Bytes.Written, int64(size))
	}
	for i, path := range files(t, d, id) {
		judgeFile(t, path, c.Files[i].Packets)
	}
	d.Must("rm", id)
	d.Must("start") // there is room again
}

// Under a flood too, segments are rotated by time and no packet is lost at the seam.
func TestSegmentTimeUnderAFlood(t *testing.T) {
	p := testbed.NewPair(t)
	testbed.RunIn(t, p.B, "nft", "add table inet t; add chain inet t p { type filter hook prerouting priority 0; }; add rule inet t p udp dport 9 drop")
	d := testbed.StartDaemon(t, p.B, "[limits]\nmax_packet_rate = 0\n")
	id := d.Must("start", "--hook", "prerouting", "--segment-time", "1s", "--snaplen", "96")
	count := uint64(0)
	d.Await(id, "three segments long", func(c wire.Capture) bool {
		for range 10 {
			sent, err := testbed.Inject(p.B, testbed.InjectOptions{Interface: "vb", Count: 5000, Length: 60})
			if err != nil {
				t.Fatal(err)
			}
			count += uint64(sent.Frames)
		}
		return len(c.Files) >= 3
	})
	d.Must("stop", id)
	c := d.Show(id)
	checkCounts(t, c)
	if c.Packets.Captured+*c.Packets.Lost < count {
		t.Errorf("%d packets of %d are accounted for", c.Packets.Captured+*c.Packets.Lost, count)
	}
	for i, path := range files(t, d, id) {
		if info := testbed.Capinfos(t, path); uint64(info.Packets) != c.Files[i].Packets || !info.Ordered {
			t.Errorf("segment %d: %+v, want %d packets in order", i+1, info, c.Files[i].Packets)
		}
	}
}

func TestSamplingAndSnaplen(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	id := d.Must("start", "--type", "simple")
	all := d.Must("start", "--snaplen", "100", "--hook", "prerouting")
	if _, err := testbed.SendUDP(testbed.Stream{From: p.A, To: p.B, Source: netip.AddrPortFrom(testbed.A4, 0),
		Destination: netip.AddrPortFrom(testbed.B4, 5000), Count: 5000, Size: 900}); err != nil {
		t.Fatal(err)
	}
	d.Must("stop", id, all)
	c := d.Show(id)
	checkCounts(t, c)
	// 5000 × 1/100: the standard deviation is 7; six of them are allowed.
	if *c.Packets.Seen < 5000 || c.Packets.Captured < 8 || c.Packets.Captured > 92 || *c.Packets.SampledOut == 0 {
		t.Errorf("sample: %+v", c.Packets)
	}
	for _, cut := range []struct {
		id      string
		snaplen int
	}{{id, 160}, {all, 100}} {
		for _, pk := range testbed.TsharkPackets(t, files(t, d, cut.id)[0], "udp.port == 5000") {
			if pk.Captured != cut.snaplen || pk.Length != 20+20+8+900 {
				t.Fatalf("captured %d of %d bytes, want %d of 948", pk.Captured, pk.Length, cut.snaplen)
			}
		}
	}
}

// A snaplen is what files hold of a packet at every hook: at egress NFLOG's payload begins
// with the Ethernet header, which a file of raw IP has not.
func TestSnaplenOfRawAtEgress(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	const count, port = 5, "5000"
	for _, c := range []struct {
		args  []string
		times int // by which hooks each packet is seen
	}{
		{[]string{"-i", "vb", "--link-type", "raw"}, 1},
		{[]string{"-i", "vb", "--hook", "output,egress", "--format", "pcap"}, 2},
	} {
		id := d.Must(append([]string{"start", "--snaplen", "64", "udp port " + port}, c.args...)...)
		if _, err := testbed.SendUDP(testbed.Stream{From: p.B, To: p.A, Source: netip.AddrPortFrom(testbed.B4, 0),
			Destination: netip.AddrPortFrom(testbed.A4, 5000), Count: count, Size: 900}); err != nil {
			t.Fatal(err)
		}
		d.Must("stop", id)
		packets := testbed.TsharkPackets(t, files(t, d, id)[0], "")
		if len(packets) != count*c.times {
			t.Errorf("%q: %d packets, want %d", c.args, len(packets), count*c.times)
		}
		for _, pk := range packets {
			if pk.Captured != 64 || pk.Length != 20+8+900 {
				t.Errorf("%q: captured %d of %d bytes, want 64 of 928", c.args, pk.Captured, pk.Length)
			}
		}
	}
}
