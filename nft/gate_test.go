package nft

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"capd/nft/filter"
	"capd/testbed"
)

// The rules for VRFs and for capd's own connections are there while the box has some, in
// captures that run already and in later ones, as Ruleset prints them, and no count is lost
// when they come and go.
func TestGateFollowsTheBox(t *testing.T) {
	pair := testbed.NewPair(t)
	table := openIn(t, pair.B)
	// News of real interfaces, of which none is a VRF, would come in between.
	must(t, table.links.events.SetReadDeadline(time.Unix(1, 0)))
	<-table.watching
	if err := table.Missed(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the news end with %v", err)
	}
	early, late := defaultSpec("00000001"), defaultSpec("00000002")
	for _, s := range []*Spec{&early, &late} {
		s.Filter, s.Rate = v1(t, filter.V1{DestinationPort: 4242}), 1_000_000
	}
	install(t, table, early)
	const (
		in, out = `meta iifkind "vrf" return`, `meta oifkind "vrf" fib daddr . oif type != local return`
		own4    = "tcp dport @own4 return"
		own6    = "tcp dport @own6 return"
	)
	flow4 := filter.Flow{Source: testbed.A4, SourcePort: 1, Destination: testbed.B4, DestinationPort: 2}
	another := filter.Flow{Source: testbed.A4, SourcePort: 3, Destination: testbed.B4, DestinationPort: 4}
	flow6 := filter.Flow{Source: testbed.A6, SourcePort: 1, Destination: testbed.B6, DestinationPort: 2}
	sent := uint64(0)
	for _, step := range []struct {
		name   string
		change func() error
		has    []string
	}{
		{"nothing", func() error { return nil }, nil},
		{"a VRF", func() error { table.hear(news{vrf: true}, nil); return nil }, []string{in, out}},
		{"another VRF", func() error { table.hear(news{vrf: true}, nil); return nil }, []string{in, out}},
		{"a connection over IPv4", func() error { return table.AddExclude(flow4) }, []string{in, out, own4}},
		{"another", func() error { return table.AddExclude(another) }, []string{in, out, own4}},
		{"one over IPv6", func() error { return table.AddExclude(flow6) }, []string{in, out, own4, own6}},
		{"a capture more", func() error { return table.Install(late) }, []string{in, out, own4, own6}},
		{"the first over IPv4 gone", func() error { return table.RemoveExclude(flow4) }, []string{in, out, own4, own6}},
		{"the last over IPv4 gone", func() error { return table.RemoveExclude(another) }, []string{in, out, own6}},
		{"the last VRF gone", func() error { table.hear(news{gone: true}, nil); return nil }, []string{own6}},
		{"the other capture gone", func() error { return table.Remove(late.ID) }, []string{own6}},
		{"the one over IPv6 gone", func() error { return table.RemoveExclude(flow6) }, nil},
	} {
		must(t, step.change())
		must(t, table.Missed())
		sendUDP(t, pair.A, pair.B, netip.AddrPortFrom(testbed.A4, 0), netip.AddrPortFrom(testbed.B4, 4242), 5)
		sent += 5
		settle(t, table, early.ID, sent)
		if c := total(t, table, early.ID); c.Seen != sent || c.Total() != sent || c.Reset {
			t.Errorf("%s: counted %+v, sent %d", step.name, c, sent)
		}
		rules := listRuleset(t, pair.B)
		captures := strings.Count(rules, "chain capture_") / strings.Count(rules, "chain capture_00000001_")
		for _, r := range []struct {
			text  string
			gates int // of each capture
		}{{in, 1}, {out, 1}, {own4, 2}, {own6, 2}} {
			want := 0
			if slices.Contains(step.has, r.text) {
				want = r.gates * captures
			}
			if n := strings.Count(rules, r.text); n != want {
				t.Errorf("%s: %d times %q, want %d:\n%s", step.name, n, r.text, want, rules)
			}
		}
		if captures > 1 {
			continue // Ruleset is of one that is alone
		}
		want, err := table.Ruleset(early)
		must(t, err)
		for _, line := range strings.Split(want, "\n") {
			if strings.Contains(line, " return comment ") && !strings.Contains(rules, line) {
				t.Errorf("%s: Ruleset has %q, which is not installed", step.name, line)
			}
		}
	}
}

// A VRF is told by its kind.
func TestLinkKind(t *testing.T) {
	encode := netlink.NewAttributeEncoder()
	encode.String(unix.IFLA_IFNAME, "blue")
	encode.Nested(unix.IFLA_LINKINFO, func(info *netlink.AttributeEncoder) error {
		info.String(unix.IFLA_INFO_KIND, "vrf")
		return nil
	})
	attrs, err := encode.Encode()
	must(t, err)
	blue, ok := parseLink(netlink.Message{Data: append(make([]byte, unix.SizeofIfInfomsg), attrs...)})
	if !ok || blue.name != "blue" || blue.kind != "vrf" {
		t.Errorf("a VRF is read as %+v", blue)
	}
	if _, ok := parseLink(netlink.Message{Data: append(make([]byte, unix.SizeofIfInfomsg), 3, 0, 0, 0)}); ok {
		t.Error("an attribute shorter than its header is read")
	}

	ns := testbed.NewNS(t)
	testbed.RunIn(t, ns, "ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
	testbed.In(t, ns, func() error {
		l, err := openLinks()
		if err != nil {
			return err
		}
		for _, link := range l.known {
			if (link.kind == "veth") != strings.HasPrefix(link.name, "v") {
				t.Errorf("%s is of kind %q", link.name, link.kind)
			}
		}
		if l.vrf() {
			t.Error("a VRF is among veths")
		}
		if l.known[1000] = blue; !l.vrf() {
			t.Error("a VRF is not seen")
		}
		return l.close()
	})
}
