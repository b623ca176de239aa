package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"capd/ctl/wire"
	"capd/testbed"
)

// filterTraffic sends what the expressions of these tests are about: ports 443, 5000 and
// 5001, both IP versions, payloads of many sizes.
func filterTraffic(t *testing.T, p testbed.Pair) {
	t.Helper()
	if _, err := testbed.SendAll(p, 5); err != nil {
		t.Fatal(err)
	}
	for i, end := range []struct{ a, b netip.Addr }{{testbed.A4, testbed.B4}, {testbed.A6, testbed.B6}} {
		s := testbed.Stream{From: p.A, To: p.B, Source: netip.AddrPortFrom(end.a, 0), Destination: netip.AddrPortFrom(end.b, 443), Count: 5}
		if _, err := testbed.SendTCP(s); err != nil {
			t.Fatal(err)
		}
		for _, size := range []int{40, 99, 100, 101, 180, 1000, 3000} {
			s.Destination, s.Size = netip.AddrPortFrom(end.b, uint16(5000+size)), size
			if i == 1 { // and the other way
				s.From, s.To, s.Source, s.Destination = p.B, p.A, netip.AddrPortFrom(end.b, 0), netip.AddrPortFrom(end.a, uint16(5000+size))
			}
			if _, err := testbed.SendUDP(s); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// taggedTraffic sends frames with one and with two VLAN tags, and some that end early.
func taggedTraffic(t *testing.T, p testbed.Pair) {
	t.Helper()
	testbed.In(t, p.A, func() error {
		ifi, err := net.InterfaceByName("va")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, size := range []int{10, 40, 200} {
			udp := make([]byte, 28+size)
			copy(udp, []byte{0x45, 0, 0, byte(28 + size), 0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2, 0x10, 0, 0x13, 0x88, 0, byte(8 + size)})
			for _, tags := range []string{"\x81\x00\x00\x05", "\x81\x00\x60\x06", "\x88\xa8\x00\x07\x81\x00\x00\x05"} {
				frame := append([]byte("\x02\x00\x00\x00\x00\x02\x02\x00\x00\x00\x00\x01"+tags+"\x08\x00"), udp...)
				for _, n := range []int{len(frame), len(frame) - size} {
					to := &unix.SockaddrLinklayer{Ifindex: ifi.Index, Protocol: binary.NativeEndian.Uint16(frame[12:])}
					if err := unix.Sendto(fd, frame[:n], 0, to); err != nil {
						return err
					}
				}
			}
		}
		return nil
	})
}

// tcpdumpBytes gives the packets of a file that tcpdump's own filter wants, byte for
// byte, in no order.
func tcpdumpBytes(t *testing.T, path string, expression ...string) []string {
	t.Helper()
	var packets []string
	for _, line := range testbed.Tcpdump(t, path, append([]string{"-t", "-S", "-xx"}, expression...)...) {
		if strings.HasPrefix(line, "\t0x") && len(packets) > 0 {
			packets[len(packets)-1] += line
		} else {
			packets = append(packets, line)
		}
	}
	slices.Sort(packets)
	return packets
}

// sameBytes reports packets that are in one list and not in the other.
func sameBytes(t *testing.T, got, want []string) {
	t.Helper()
	if len(want) == 0 {
		t.Error("tcpdump wants none of the packets: the test proves nothing")
	}
	for _, diff := range []struct {
		what string
		a, b []string
	}{{"not in the capture", want, got}, {"captured, and tcpdump does not want it", got, want}} {
		shown := 0
		for _, packet := range diff.a {
			if _, found := slices.BinarySearch(diff.b, packet); !found && shown < 3 {
				shown++
				t.Errorf("%s: %s", diff.what, packet)
			}
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d packets are captured, tcpdump wants %d", len(got), len(want))
	}
}

// Expressions want, of the same packets, what tcpdump wants: those that the kernel decides
// alone and those that capd finishes, at the inet hooks and on an interface.
func TestFilterIsTcpdumps(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	exact := []string{"tcp port 443 and host 10.9.0.1", "udp portrange 5090-5110", "ip6 and tcp dst port 5001"}
	inexact := []string{"udp[4:2] - 8 > 100", "udp and ip[2:2] - ((ip[0] & 0xf) << 2) > 150", "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0 and tcp[0:2] > tcp[2:2]"}
	for _, where := range []struct {
		name  string
		flags []string
	}{
		{"inet, sll2", nil}, {"inet, raw", []string{"--link-type", "raw"}}, {"pcap", []string{"--format", "pcap"}}, {"interface", []string{"-i", "vb"}},
	} {
		t.Run(where.name, func(t *testing.T) {
			start := func(expression ...string) string {
				return d.Must(slices.Concat([]string{"start"}, where.flags, []string{"--"}, expression)...)
			}
			all := start()
			ids := map[string]string{}
			expressions := slices.Concat(exact, inexact)
			if where.flags != nil { // in an sll2 file tcpdump counts 20 bytes more
				expressions = append(expressions, "udp or icmp6 and greater 150")
			}
			if where.name == "interface" {
				expressions = append(expressions, "vlan 5 and udp[4:2] - 8 > 20", "vlan and vlan and udp[4:2] != udp[6:2]", "ether[12] - 7 = 1 and udp[4:2] - 8 > 100")
			}
			for _, e := range expressions {
				ids[e] = start(e)
			}
			filterTraffic(t, p)
			if where.name == "interface" {
				taggedTraffic(t, p)
			}
			d.Must("stop", "--all")
			reference := files(t, d, all)[0]
			for e, id := range ids {
				t.Run(e, func(t *testing.T) {
					c := d.Show(id)
					checkCounts(t, c)
					path := files(t, d, id)[0]
					judgeFile(t, path, c.Packets.Captured)
					sameBytes(t, tcpdumpBytes(t, path), tcpdumpBytes(t, reference, e))
					if slices.Contains(exact, e) && *c.Packets.Discarded != 0 {
						t.Errorf("%d packets left the kernel for nothing", *c.Packets.Discarded)
					}
				})
			}
		})
	}
}

// counterSum adds up the counters of rules whose comment ends so, with "" of all.
func counterSum(t *testing.T, rules, comment string) uint64 {
	t.Helper()
	found := regexp.MustCompile(`counter packets (\d+) bytes .*`+regexp.QuoteMeta(comment)+`"`).FindAllStringSubmatch(rules, -1)
	if len(found) == 0 {
		t.Fatalf("no rule counts %q:\n%s", comment, rules)
	}
	var sum uint64
	for _, m := range found {
		n, err := strconv.ParseUint(m[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}

// What capd finishes comes before sample and snaplen, and every packet is in the account.
func TestFilterThenSampleThenCut(t *testing.T) {
	const expression = "udp[4:2] - 8 > 100 and dst port 5000"
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	id := d.Must("start", "--hook", "prerouting", "--sample", "4", "-s", "90", "--", expression)
	byFlow := d.Must("start", "--hook", "prerouting", "--sample", "2", "--sample-by", "flow", "--", expression)
	limited := d.Must("start", "--hook", "prerouting", "-c", "30", "--", expression)
	if rules := d.Ruleset(); strings.Contains(rules, "numgen") || strings.Contains(rules, "symhash") || strings.Contains(rules, "snaplen 90") {
		t.Errorf("the rules sample or cut before the filter is through:\n%s", rules)
	}
	const flows, large, small = 60, 10, 5
	for n := range flows {
		s := testbed.Stream{From: p.A, To: p.B, Source: netip.AddrPortFrom(testbed.A4, uint16(20000+n)), Destination: netip.AddrPortFrom(testbed.B4, 5000)}
		for s.Count, s.Size = range map[int]int{large: 400, small: 50} {
			if _, err := testbed.SendUDP(s); err != nil {
				t.Fatal(err)
			}
		}
	}
	live := d.Await(id, "read", func(c wire.Capture) bool {
		return c.Packets.Matched != nil && *c.Packets.Matched == c.Packets.Captured+*c.Packets.Discarded && *c.Packets.Seen > 0
	})
	d.Await(limited, "complete", isComplete) // its counters are gone with its rules
	rules := d.Ruleset()
	d.Must("stop", "--all")
	c := d.Show(id)
	checkCounts(t, c)
	if got := c.Packets; *got.Seen != *live.Packets.Seen || got.Captured+*got.SampledOut != flows*large || *got.Lost != 0 {
		t.Errorf("%d packets match: %+v", flows*large, got)
	}
	// 600 × 1/4: the standard deviation is 11; six of them are allowed.
	if c.Packets.Captured < 80 || c.Packets.Captured > 220 {
		t.Errorf("one in four of %d are %d", flows*large, c.Packets.Captured)
	}
	var seen, matched uint64
	for _, ref := range []string{id, byFlow} {
		c := d.Show(ref)
		checkCounts(t, c)
		seen += *c.Packets.Seen
		matched += *c.Packets.Matched + *c.Packets.SampledOut
	}
	if s, m := counterSum(t, rules, ""), counterSum(t, rules, ": matched"); s != seen || m != matched {
		t.Errorf("nft's counters say %d seen, %d logged; the captures say %d, %d", s, m, seen, matched)
	}
	for _, pk := range testbed.TsharkPackets(t, files(t, d, id)[0], "") {
		if pk.Captured != 90 || pk.Length != 20+20+8+400 {
			t.Fatalf("%d of %d bytes, want 90 of 448", pk.Captured, pk.Length)
		}
	}

	perFlow := map[netip.AddrPort]int{}
	for _, pk := range testbed.TsharkPackets(t, files(t, d, byFlow)[0], "") {
		perFlow[pk.Source]++
	}
	if n := len(perFlow); n < 5 || n > flows-5 {
		t.Errorf("%d of %d flows are in a sample of half", n, flows)
	}
	for flow, n := range perFlow {
		if n != large {
			t.Errorf("of flow %s %d packets of %d are kept", flow, n, large)
		}
	}
	c = d.Show(limited) // its rules were gone before the others'
	if checkCounts(t, c); c.StopReason != wire.StopPacketLimit || c.Packets.Captured != 30 {
		t.Errorf("%s with %d packets", c.StopReason, c.Packets.Captured)
	}
}

// What a filter cannot mean is refused with its column, before anything is there.
func TestFilterRefusals(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	for body, want := range map[string][]string{
		`{"filter": "tcp prot 443"}`:                                                         {`"field":"filter"`, "column 5"},
		`{"filter": "host www.example.com"}`:                                                 {`"field":"filter"`, "column 6", "--resolve"},
		`{"filter": "tcp and arp", "hooks": ["prerouting"]}`:                                 {`"field":"filter"`, "column 9", "ingress"},
		`{"filter": "tcp and udp"}`:                                                          {`"field":"filter"`, "no packet can match"},
		`{"filter": "ip", "filter_v1": {"source_address": "2001:db8::1"}}`:                   {`"field":"filter"`, "no packet can match"},
		`{"filter": "ip[8] > ip[1]", "filter_v1": {"destination_address": "2001:db8::/32"}}`: {`"field":"filter"`, "no packet can match"},
		`{"filter": "udp[4:2] - 8 > 1 and ether host 2:0:0:0:0:1"}`:                          {`"field":"filter"`, "column"},
		`{"filter": "` + strings.Repeat("(", 5000) + `", "name": "x"}`:                       {`"field":"filter"`, "column"},
		`{"filter": "len > 70000000000000000000", "interfaces":["vb"]}`:                      {`"field":"filter"`, "column 7"},
	} {
		for _, path := range []string{wire.PathCaptures, wire.PathExplain} {
			status, answer := d.Call("POST", path, body)
			answer = strings.ReplaceAll(answer, `": "`, `":"`)
			if status != 422 {
				t.Errorf("%.80s: %d %s", body, status, answer)
			}
			for _, part := range want {
				if !strings.Contains(answer, part) {
					t.Errorf("%.80s: the answer lacks %q: %s", body, part, answer)
				}
			}
		}
	}
	if list := d.Must("--json", "list", "--all"); list != "[]" || strings.Contains(d.Ruleset(), "chain") {
		t.Errorf("left: %s\n%s", list, d.Ruleset())
	}
}

// Both filters given: both must match, whoever decides the text.
func TestBothFilters(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	for _, c := range []struct {
		text, v1 string
		source   netip.Addr
	}{
		{"udp port 5000", "fd00:9::1", testbed.A6},
		{"udp[2:2] - 4990 = 10", "10.9.0.1", testbed.A4}, // udp[] is IPv4's alone
	} {
		status, body := d.Call("POST", wire.PathCaptures, fmt.Sprintf(`{"name": "both", "filter": %q, "filter_v1": {"source_address": %q}}`, c.text, c.v1))
		if status != 201 {
			t.Fatalf("%s: %d %s", c.text, status, body)
		}
		sent, err := testbed.SendAll(p, 5)
		if err != nil {
			t.Fatal(err)
		}
		d.Must("stop", "both")
		show := d.Show("both")
		checkCounts(t, show)
		want := slices.DeleteFunc(sent, func(m testbed.Message) bool { return m.Protocol != "udp" || m.Source.Addr() != c.source })
		testbed.WantPackets(t, testbed.TsharkPackets(t, files(t, d, show.ID)[0], ""), want, 1)
	}
}

// A long filter leaves room for packets in a small file, and stands in the record whole.
func TestLongFilterInSmallFile(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	hosts := make([]string, 1000)
	for i := range hosts {
		hosts[i] = fmt.Sprintf("192.0.%d.%d", i/250, i%250)
	}
	expression := "host 10.9.0.1 or host " + strings.Join(hosts, " or ")
	id := d.Must("start", "--hook", "prerouting", "-b", "4096", "--", expression)
	if _, err := testbed.SendUDP(testbed.Stream{From: p.A, To: p.B, Source: netip.AddrPortFrom(testbed.A4, 0),
		Destination: netip.AddrPortFrom(testbed.B4, 5000), Count: 50}); err != nil {
		t.Fatal(err)
	}
	c := d.Await(id, "complete", func(c wire.Capture) bool { return c.Status == wire.StatusComplete })
	checkCounts(t, c)
	if c.StopReason != wire.StopByteLimit || c.Bytes.Written > 4096 || c.Packets.Captured < 5 || c.Filter != expression {
		t.Errorf("%s with %d packets in %d bytes, filter of %d bytes", c.StopReason, c.Packets.Captured, c.Bytes.Written, len(c.Filter))
	}
	judgeFile(t, files(t, d, id)[0], c.Packets.Captured)
}

// Explain says who decides what.
func TestExplainParts(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	for body, want := range map[string][]string{
		`{"filter": "tcp port 443", "sample": 7, "snaplen": 96}`:                             {`"kernel":"tcp port 443"`, `"user":""`, "numgen random mod 7", "snaplen 96", "prerouting -450"},
		`{"snaplen": 96, "interfaces": ["vb"], "link_type": "raw"}`:                          {"snaplen 110"},
		`{"filter": "udp[4:2] - 8 > 100", "sample": 7, "snaplen": 96, "interfaces": ["vb"]}`: {`100, in part)"`, `"user":"(udp[4:2] - 8) > 100"`, "egress 450"},
	} {
		status, answer := d.Call("POST", wire.PathExplain, body)
		answer = strings.ReplaceAll(strings.ReplaceAll(answer, `": "`, `":"`), `\u003e`, ">")
		for _, part := range want {
			if status != 200 || !strings.Contains(answer, part) {
				t.Errorf("%s: %d, the answer lacks %q: %s", body, status, part, answer)
			}
		}
	}
	if strings.Contains(d.Ruleset(), "chain") {
		t.Errorf("explain installed:\n%s", d.Ruleset())
	}
}

// Interfaces whose packets have no Ethernet header, or one of zeros, are captured as
// tcpdump does: lo as Ethernet, a tunnel in cooked frames, and filters mean the same there.
func TestOtherLinks(t *testing.T) {
	p := testbed.NewPair(t)
	tun := testbed.NewTun(t, p.B, "tun0")
	testbed.RunIn(t, p.B, "sh", "-c", "ip addr add 10.50.0.1/24 dev tun0; ip link set tun0 up")
	d := testbed.StartDaemon(t, p.B, "")
	ids := map[string]string{}
	for _, dev := range []string{"lo", "tun0"} {
		for _, e := range []string{"", "udp port 5000", "udp[4:2] - 8 > 100"} {
			ids[dev+" "+e] = d.Must("start", "-i", dev, "--", e)
		}
	}
	ids["t*"] = d.Must("start", "-i", "t*", "--format", "pcap", "udp")
	lo, here, there := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("10.50.0.1"), netip.MustParseAddr("10.50.0.2")
	for _, size := range []int{50, 200} {
		for _, s := range []testbed.Stream{
			{Source: netip.AddrPortFrom(lo, 0), Destination: netip.AddrPortFrom(lo, 5000)},
			{Source: netip.AddrPortFrom(here, 0), Destination: netip.AddrPortFrom(there, 5000), Unheard: true},
		} {
			s.From, s.To, s.Count, s.Size = p.B, p.B, 5, size
			if _, err := testbed.SendUDP(s); err != nil {
				t.Fatal(err)
			}
		}
		for range 5 { // and in by the tunnel
			packet := make([]byte, 28+size)
			copy(packet, []byte{0x45, 0, 0, byte(28 + size), 0, 0, 0, 0, 64, 17, 0, 0, 10, 50, 0, 2, 10, 50, 0, 1, 0x12, 0x34, 5001 >> 8, 5001 & 0xff, 0, byte(8 + size)})
			sum := uint32(0)
			for i := 0; i < 20; i += 2 {
				sum += uint32(packet[i])<<8 | uint32(packet[i+1])
			}
			sum = sum>>16 + sum&0xffff
			packet[10], packet[11] = ^byte(sum>>8), ^byte(sum)
			if _, err := unix.Write(tun, packet); err != nil {
				t.Fatal(err)
			}
		}
	}
	d.Must("stop", "--all")
	// Over lo each packet goes out and comes in; by tun0 10 go out and 10 come in.
	for name, want := range map[string]int{"lo ": 20, "lo udp port 5000": 20, "lo udp[4:2] - 8 > 100": 10,
		"tun0 ": 20, "tun0 udp port 5000": 10, "tun0 udp[4:2] - 8 > 100": 10, "t*": 20} {
		c := d.Show(ids[name])
		checkCounts(t, c)
		path := files(t, d, c.ID)[0]
		judgeFile(t, path, c.Packets.Captured)
		link := map[byte]string{'l': "ether", 't': "linux-sll2"}[name[0]]
		if name == "t*" {
			link = "rawip"
		}
		if got := testbed.Capinfos(t, path).Encapsulation; got != link {
			t.Errorf("%s: link type %s, want %s", name, got, link)
		}
		if n := len(testbed.Tshark(t, path, "!icmp && (udp.dstport == 5000 || udp.dstport == 5001)", "frame.number")); n != want {
			t.Errorf("%s: %d packets, want %d", name, n, want)
		}
	}
	if r := d.Capctl("start", "-i", "t*", "--link-type", "ethernet"); r.Code == 0 || !strings.Contains(r.Stderr, "tun0") {
		t.Errorf("ethernet on a tunnel: %+v", r)
	}
	if r := d.Capctl("start", "-i", "*", "arp"); r.Code != 2 || !strings.Contains(r.Stderr, "hint: tun0 has no Ethernet header") {
		t.Errorf("arp on a tunnel: %+v", r)
	}
}
