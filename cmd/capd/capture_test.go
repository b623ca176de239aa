package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
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
	if *p.Matched != p.Captured+*p.Lost+*p.Discarded {
		t.Errorf("matched %d ≠ captured %d + lost %d + discarded %d", *p.Matched, p.Captured, *p.Lost, *p.Discarded)
	}
	if sum := p.LostBy.Sequence + p.LostBy.Tail + p.LostBy.Decode + p.LostBy.Write + p.LostBy.Spool; sum != *p.Lost {
		t.Errorf("lost %d, but its parts %+v add up to %d", *p.Lost, p.LostBy, sum)
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
				if _, err := fmt.Sscan(pk.Time, &at); err != nil || at < started-1 || at > started+600 {
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
	deadline := time.Now().Add(time.Minute)
	for {
		data, err := os.ReadFile(segment)
		if err != nil {
			t.Fatal(err)
		}
		missing := 0
		for _, m := range sent {
			if !bytes.Contains(data, m.Payload) {
				missing++
			}
		}
		if missing == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d packets do not reach the disk", missing)
		}
		time.Sleep(50 * time.Millisecond)
	}
	d.Kill()
	d.Start()
	c := d.Show("cut")
	if c.Status != wire.StatusComplete || c.StopReason != wire.StopInterrupted || c.Packets.Matched != nil || len(c.Files) != 1 || !c.Files[0].Interrupted {
		t.Errorf("after the kill: %+v", c)
	}
	// What nobody can know is null for programs and no number for people.
	for _, name := range []string{"seen", "sampled_out", "limited", "matched", "lost", "discarded"} {
		if text := d.Must("show", "--json", id); !strings.Contains(text, `"`+name+`":null`) {
			t.Errorf("%s is not null: %s", name, text)
		}
	}
	if text := d.Must("show", id); !strings.Contains(text, " + lost ? + discarded ?\n") || !strings.Contains(text, "lost         not known\n") {
		t.Errorf("show: %s", text)
	}
	_, page := d.Call("GET", "/metrics", "")
	if n := samples(t, string(page))[`capd_captures_ended_total{reason="interrupted"}`]; n != 1 {
		t.Errorf("metrics tell of %g interrupted captures", n)
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
