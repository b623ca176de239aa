package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/pcapgo"

	"capd/ctl/wire"
	"capd/testbed"
)

// checkCounts holds a stopped capture against the two equations of the contract.
func checkCounts(t *testing.T, c wire.Capture) {
	t.Helper()
	p := c.Packets
	if p.Seen == nil || p.Matched == nil || p.SampledOut == nil || p.Limited == nil {
		t.Fatalf("the kernel's counts are missing: %+v", p)
	}
	if *p.Seen != *p.Matched+*p.SampledOut+*p.Limited {
		t.Errorf("seen %d ≠ matched %d + sampled_out %d + limited %d", *p.Seen, *p.Matched, *p.SampledOut, *p.Limited)
	}
	if *p.Matched != p.Captured+p.Lost+p.Discarded {
		t.Errorf("matched %d ≠ captured %d + lost %d + discarded %d", *p.Matched, p.Captured, p.Lost, p.Discarded)
	}
	if sum := p.LostBy.Sequence + p.LostBy.Tail + p.LostBy.Decode + p.LostBy.Write + p.LostBy.Spool; sum != p.Lost {
		t.Errorf("lost %d, but its parts %+v add up to %d", p.Lost, p.LostBy, sum)
	}
	var inFiles, bytes uint64
	for _, f := range c.Files {
		if f.Status != wire.FileRemoved {
			inFiles += f.Packets
			bytes += f.Bytes
		}
	}
	if c.Removed != nil {
		inFiles += c.Removed.Packets
		bytes += c.Removed.Bytes
	}
	if inFiles != p.Captured || bytes != c.Bytes.Written {
		t.Errorf("the files hold %d packets in %d bytes, the capture says %d in %d", inFiles, bytes, p.Captured, c.Bytes.Written)
	}
}

// files downloads a capture and gives its files' paths.
func files(t *testing.T, d *testbed.Daemon, ref string) []string {
	t.Helper()
	dir := t.TempDir()
	d.Must("download", "-o", dir, ref)
	found, err := filepath.Glob(dir + "/*")
	if err != nil || len(found) == 0 {
		t.Fatalf("download left %v, %v", found, err)
	}
	return found
}

// judgeFile sees to it that every reader takes the file and counts the same.
func judgeFile(t *testing.T, path string, packets uint64) {
	t.Helper()
	if info := testbed.Capinfos(t, path); uint64(info.Packets) != packets {
		t.Errorf("capinfos counts %d packets, want %d", info.Packets, packets)
	}
	if n := len(testbed.Tcpdump(t, path)); uint64(n) != packets {
		t.Errorf("tcpdump -r counts %d packets, want %d", n, packets)
	}
	if n, err := gopacketCount(path); err != nil || n != packets {
		t.Errorf("gopacket counts %d packets, want %d (%v)", n, packets, err)
	}
}

// gopacketCount reads a file with gopacket's own readers.
func gopacketCount(path string) (n uint64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var r interface {
		ReadPacketData() ([]byte, gopacket.CaptureInfo, error)
	}
	if filepath.Ext(path) == ".pcap" {
		r, err = pcapgo.NewReader(f)
	} else {
		r, err = pcapgo.NewNgReader(f, pcapgo.DefaultNgReaderOptions)
	}
	if err != nil {
		return 0, err
	}
	for {
		_, info, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		if info.CaptureLength > info.Length {
			return n, fmt.Errorf("packet %d: %d bytes of %d", n, info.CaptureLength, info.Length)
		}
		n++
	}
}

func TestCaptureHoldsEveryPacketOnce(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	for _, format := range []string{"pcapng", "pcap"} {
		t.Run(format, func(t *testing.T) {
			id := d.Must("start", "--format", format)
			if !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(id) {
				t.Fatalf("start printed %q", id)
			}
			sent, err := testbed.SendAll(p, 50)
			if err != nil {
				t.Fatal(err)
			}
			// Over lo, within the box, each packet must be there once too.
			lo4, lo6 := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")
			for _, lo := range []netip.Addr{lo4, lo6} {
				m, err := testbed.SendUDP(testbed.Stream{From: p.B, To: p.B, Source: netip.AddrPortFrom(lo, 0), Destination: netip.AddrPortFrom(lo, 5000), Count: 20})
				if err != nil {
					t.Fatal(err)
				}
				sent = append(sent, m...)
			}
			d.Must("stop", id)
			c := d.Show(id)
			checkCounts(t, c)
			if c.StopReason != wire.StopRequested || c.Status != wire.StatusComplete {
				t.Errorf("status %s, stop reason %s", c.Status, c.StopReason)
			}
			path := files(t, d, id)[0]
			judgeFile(t, path, c.Packets.Captured)
			packets := testbed.TsharkPackets(t, path, "")
			testbed.WantPackets(t, packets, sent, 1)
			started := float64(c.Started.UnixNano()) / 1e9
			for _, pk := range packets {
				var at float64
				if _, err := fmt.Sscan(pk.Time, &at); err != nil || at < started-1 || at > started+60 {
					t.Fatalf("packet at %s, the capture started at %f", pk.Time, started)
				}
				if format != "pcapng" {
					continue
				}
				fromBox := pk.Source.Addr() == testbed.B4 || pk.Source.Addr() == testbed.B6 || pk.Source.Addr().IsLoopback()
				if want := map[bool]string{true: "2", false: "1"}[fromBox]; pk.Source.IsValid() && len(pk.Payload) > 0 && pk.Direction != want {
					t.Errorf("direction %q of %v, want %s", pk.Direction, pk.Source, want)
				}
				if pk.Interface != "vb" && pk.Interface != "lo" {
					t.Errorf("interface %q", pk.Interface)
				}
			}
			d.Must("rm", id)
			if r := d.Capctl("show", id); r.Code != 5 {
				t.Errorf("show after rm: exit code %d", r.Code)
			}
		})
	}
	if rules := d.Ruleset(); strings.Contains(rules, "log") || strings.Contains(rules, "hook") {
		t.Errorf("rules are left:\n%s", rules)
	}
}

func TestFilterV1CapturesExactlyWhatMatches(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	filters := map[string]func(testbed.Message) bool{
		`{"source_address": "10.9.0.1", "protocol": 6}`:        func(m testbed.Message) bool { return m.Source.Addr() == testbed.A4 && m.Protocol == "tcp" },
		`{"source_address": "fd00:9::/64", "protocol": "udp"}`: func(m testbed.Message) bool { return m.Source.Addr() == testbed.A6 && m.Protocol == "udp" },
		`{"destination_port": 5000}`:                           func(m testbed.Message) bool { return m.Destination.Port() == 5000 },
		`{"source_port": 5001, "destination_address": "10.9.0.0/24"}`: func(m testbed.Message) bool {
			return m.Source.Port() == 5001 && m.Source.Addr() == testbed.B4 && m.Protocol == "tcp"
		},
		`{"protocol": 1}`: func(m testbed.Message) bool { return m.Protocol == "icmp" },
		`{"protocol": "ipv6-icmp", "source_address": "fd00:9::1"}`:                      func(m testbed.Message) bool { return m.Protocol == "icmpv6" && m.Source.Addr() == testbed.A6 },
		`{"source_address": "", "source_port": 0, "protocol": 0}`:                       func(testbed.Message) bool { return true },
		`{"destination_address": "10.9.0.2", "destination_port": 5001, "protocol": 17}`: func(testbed.Message) bool { return false },
	}
	ids := map[string]string{}
	for f := range filters {
		status, body := d.Call("POST", wire.PathCaptures, `{"filter_v1": `+f+`}`)
		if status != 201 {
			t.Fatalf("%s: %d %s", f, status, body)
		}
		var c wire.Capture
		if err := json.Unmarshal([]byte(body), &c); err != nil {
			t.Fatal(err)
		}
		ids[f] = c.ID
	}
	sent, err := testbed.SendAll(p, 10)
	if err != nil {
		t.Fatal(err)
	}
	d.Must("stop", "--all")
	for f, matches := range filters {
		c := d.Show(ids[f])
		checkCounts(t, c)
		var want []testbed.Message
		for _, m := range sent {
			if matches(m) {
				want = append(want, m)
			}
		}
		path := files(t, d, c.ID)[0]
		judgeFile(t, path, c.Packets.Captured)
		t.Run(f, func(t *testing.T) { testbed.WantPackets(t, testbed.TsharkPackets(t, path, ""), want, 1) })
	}
}

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
		id := d.Must("start", "--name", "until-the-end", "--hook", "prerouting")
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
	for begun := time.Now(); time.Since(begun) < 4*time.Second; {
		sent, err := testbed.Inject(p.B, testbed.InjectOptions{Interface: "vb", Count: 5000, Length: 60})
		if err != nil {
			t.Fatal(err)
		}
		count += uint64(sent.Frames)
	}
	d.Must("stop", id)
	c := d.Show(id)
	checkCounts(t, c)
	if c.Packets.Captured+c.Packets.Lost < count {
		t.Errorf("%d packets of %d are accounted for", c.Packets.Captured+c.Packets.Lost, count)
	}
	if len(c.Files) < 3 {
		t.Errorf("%d segments of a second each hold four seconds of traffic", len(c.Files))
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

// The rules of others are left alone, theirs cannot end a capture, and a killed capd
// leaves none.
func TestRulesOfOthers(t *testing.T) {
	p := testbed.NewPair(t)
	testbed.RunIn(t, p.B, "nft", "add table inet filter; add chain inet filter input { type filter hook input priority 0; policy accept; }; add rule inet filter input tcp dport 22 accept")
	theirs := testbed.RunIn(t, p.B, "nft", "list table inet filter")
	d := testbed.StartDaemon(t, p.B, "")
	id := d.Must("start", "--hook", "prerouting")
	if now := testbed.RunIn(t, p.B, "nft", "list table inet filter"); now != theirs {
		t.Errorf("their table changed:\n%s", now)
	}
	testbed.RunIn(t, p.B, "nft", "flush ruleset")
	if _, err := testbed.SendUDP(testbed.Stream{From: p.A, To: p.B, Source: netip.AddrPortFrom(testbed.A4, 0),
		Destination: netip.AddrPortFrom(testbed.B4, 5000), Count: 100}); err != nil {
		t.Fatal(err)
	}
	d.Must("stop", id)
	c := d.Show(id)
	checkCounts(t, c)
	if c.Packets.Captured < 100 {
		t.Errorf("captured %d after somebody's flush ruleset", c.Packets.Captured)
	}
	d.Must("start")
	if !strings.Contains(d.Ruleset(), "log prefix") {
		t.Errorf("no log rule while a capture runs:\n%s", d.Ruleset())
	}
	d.Kill()
	if rules := testbed.RunIn(t, p.B, "nft", "list ruleset"); strings.TrimSpace(rules) != "" {
		t.Errorf("rules are left after SIGKILL:\n%s", rules)
	}
}

func TestKilledCaptureIsRepaired(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	id := d.Must("start", "--name", "cut", "--hook", "prerouting")
	sent, err := testbed.SendUDP(testbed.Stream{From: p.A, To: p.B, Source: netip.AddrPortFrom(testbed.A4, 0),
		Destination: netip.AddrPortFrom(testbed.B4, 5000), Count: 500, Size: 500})
	if err != nil {
		t.Fatal(err)
	}
	// What is older than the flush interval is on the disk.
	segment := filepath.Join(d.StateDir(), "spool", id, "0001.pcapng")
	deadline := time.Now().Add(20 * time.Second)
	for {
		data, err := os.ReadFile(segment)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(data), string(sent[len(sent)-1].Payload)) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the last packet does not reach the disk")
		}
		time.Sleep(50 * time.Millisecond)
	}
	d.Kill()
	d.Start()
	c := d.Show("cut")
	if c.Status != wire.StatusComplete || c.StopReason != wire.StopInterrupted || c.Packets.Matched != nil || len(c.Files) != 1 || !c.Files[0].Interrupted {
		t.Errorf("after the kill: %+v", c)
	}
	path := files(t, d, id)[0]
	judgeFile(t, path, c.Packets.Captured)
	packets := testbed.TsharkPackets(t, path, "")
	testbed.WantPackets(t, packets, sent, 1)
	captured := uint64(0)
	for _, p := range packets {
		captured += uint64(p.Captured)
	}
	if c.Bytes.Captured != captured || c.Bytes.Written != c.Files[0].Bytes {
		t.Errorf("%d bytes of packets are in the file: %+v", captured, c.Bytes)
	}
}

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
