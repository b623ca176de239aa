package daemon

import (
	"strings"
	"testing"

	"capd/ctl/wire"
	"capd/daemon/config"
	"capd/ring"
)

// A capture of everything that takes the packets of a flowtable's devices at ingress judges
// them there as at prerouting, also what rules leave to it; its files and explain say where
// they were seen.
func TestSeePastAFlowtable(t *testing.T) {
	plan := func(req wire.StartRequest) *plan {
		t.Helper()
		p, err := newPlan(req, config.Default(), &links{})
		if err != nil {
			t.Fatal(err)
		}
		p.seePast([]string{"eth0", "eth1"})
		return p
	}
	p := plan(wire.StartRequest{Filter: "udp[4:2] - 8 < 10 and ifname eth0"})
	s := p.selection(&links{known: map[uint32]link{7: {"eth0", 1}}})
	packet := func(family uint8, udpLength byte) *ring.Packet {
		q := flowPacket(false, 17, 0, false)
		q.Family, q.Hook, q.In = family, 0, 7 // prerouting, and ingress
		q.Payload[24], q.Payload[25] = 0, udpLength
		if family == ring.FamilyNetdev {
			q.L2Header = []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0}
		}
		return &q
	}
	for _, family := range []uint8{ring.FamilyIPv4, ring.FamilyNetdev} {
		if got := s.judge(packet(family, 12)); got != wanted {
			t.Errorf("family %d: a short datagram: %d", family, got)
		}
		if got := s.judge(packet(family, 40)); got != refused {
			t.Errorf("family %d: a long datagram: %d", family, got)
		}
	}

	explained, err := p.explain(config.Default())
	if err != nil {
		t.Fatal(err)
	}
	if want := "prerouting -450, output -450, ingress -450 of eth0 and eth1 instead of prerouting"; strings.Join(explained.Hooks, ", ") != want {
		t.Errorf("hooks %q, want %q", explained.Hooks, want)
	}
	for _, rule := range []string{`hook ingress device "eth0" priority -450`, `hook ingress device "eth1" priority -450`, `iifname "eth1" return comment "capture 00000000: seen at ingress"`} {
		if !strings.Contains(explained.Ruleset, rule) {
			t.Errorf("no %q in\n%s", rule, explained.Ruleset)
		}
	}
	if !strings.Contains(explained.User, "udp[4:2]") || strings.Contains(explained.User, "ingress") {
		t.Errorf("left to capd: %q, the same at all hooks", explained.User)
	}
	d := &Daemon{}
	if e := newEncoder("0123", p, d); e.link != ring.LinkSLL2 || !strings.Contains(e.section.Comment, "hooks=prerouting,output,ingress") {
		t.Errorf("link type %d, %q", e.link, e.section.Comment)
	}
	if e := newEncoder("0123", plan(wire.StartRequest{LinkType: wire.LinkRaw}), d); e.hooks != "prerouting,output,ingress" {
		t.Errorf("raw: hooks %q", e.hooks)
	}
	// The request in force stays one that can be asked for again.
	if hooks := strings.Join(p.request.Hooks, ","); hooks != "prerouting,output" || len(p.request.Interfaces) != 0 {
		t.Errorf("the request: %s of %v", hooks, p.request.Interfaces)
	}
}

// Only a capture that leaves the choice of hooks and interfaces to capd looks past
// flowtables, a simple one too.
func TestAnywhere(t *testing.T) {
	for _, c := range []struct {
		req  wire.StartRequest
		want bool
	}{
		{wire.StartRequest{}, true},
		{wire.StartRequest{Type: wire.TypeSimple}, true},
		{wire.StartRequest{Hooks: []string{"prerouting", "output"}}, false},
		{wire.StartRequest{Interfaces: []string{"lo"}}, false},
	} {
		p, err := newPlan(c.req, config.Default(), &links{})
		if err != nil {
			t.Fatal(err)
		}
		if p.anywhere != c.want {
			t.Errorf("%+v: %v", c.req, p.anywhere)
		}
	}
}
