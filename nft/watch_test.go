package nft

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"capd/testbed"
)

// until waits for something that a goroutine of the table does.
func until(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// A name with a * also stands for interfaces that appear later, at ingress and egress too,
// and for those that come back; captures that have ended are left alone.
func TestLaterInterfaces(t *testing.T) {
	a, b := testbed.NewNS(t), testbed.NewNS(t)
	table := openIn(t, b)
	s := defaultSpec("0f8c1234")
	s.Once, s.Hooks, s.Interfaces = false, []string{"ingress", "egress"}, []string{"later*"}
	s.Filter = parse(t, "udp dst port 4242")
	install(t, table, s) // no interface fits yet
	over := defaultSpec("0f8c9999")
	over.Once, over.Hooks, over.Interfaces, over.Stamped = false, []string{"ingress"}, []string{"later*"}, []uint16{1003}
	install(t, table, over)
	if err := table.Unhook(over.ID); err != nil {
		t.Fatal(err)
	}

	appear := func() {
		testbed.Run(t, "ip", "-n", a, "link", "add", "peer0", "type", "veth", "peer", "name", "later0", "netns", b)
		until(t, "later0 to be hooked", func() bool {
			text := listRuleset(t, b)
			return strings.Contains(text, `hook ingress device "later0"`) && strings.Contains(text, `hook egress device "later0"`)
		})
		for ns, link := range map[string][2]string{a: {"peer0", "10.9.0.1/24"}, b: {"later0", "10.9.0.2/24"}} {
			testbed.Run(t, "ip", "-n", ns, "addr", "add", link[1], "dev", link[0])
			testbed.Run(t, "ip", "-n", ns, "link", "set", link[0], "up")
		}
	}
	send := func() {
		a4, b4 := netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("10.9.0.2")
		sendUDP(t, a, b, netip.AddrPortFrom(a4, 0), netip.AddrPortFrom(b4, 4242), 5)
		sendUDP(t, b, a, netip.AddrPortFrom(b4, 0), netip.AddrPortFrom(a4, 4242), 3)
	}
	appear()
	send()
	if got := total(t, table, s.ID); got.Seen != 8 {
		t.Errorf("counted %+v on the new interface", got)
	}
	testbed.Run(t, "ip", "-n", a, "link", "del", "peer0")
	appear()
	send()
	if got := total(t, table, s.ID); got.Seen != 16 {
		t.Errorf("counted %+v once it came back", got)
	}
	if got := total(t, table, over.ID); got.Seen != 0 {
		t.Errorf("a capture that has ended counted %+v", got)
	}
	if err := table.Missed(); err != nil {
		t.Errorf("following later0: %v", err)
	}
	for _, id := range []string{s.ID, over.ID} {
		if err := table.Remove(id); err != nil {
			t.Error(err)
		}
	}
	if text := listRuleset(t, b); text != emptyTable {
		t.Errorf("left behind:\n%s", text)
	}
}

// A device that is renamed into a pattern is followed.
func TestRenamedInterface(t *testing.T) {
	ns := testbed.NewNS(t)
	table := openIn(t, ns)
	testbed.Run(t, "ip", "-n", ns, "link", "add", "plain0", "type", "veth", "peer", "name", "plain1")
	s := defaultSpec("0f8c1234")
	s.Once, s.Hooks, s.Interfaces = false, []string{"ingress"}, []string{"later*"}
	install(t, table, s)
	testbed.Run(t, "ip", "-n", ns, "link", "set", "plain0", "name", "later7")
	until(t, "later7 to be hooked", func() bool {
		return strings.Contains(listRuleset(t, ns), `hook ingress device "later7"`)
	})
	if strings.Contains(listRuleset(t, ns), "plain1") {
		t.Error("plain1 is hooked too")
	}
}

// An interface that leaves while it is captured, by name or as the last of a pattern, is
// told; when there is one of its name again that is told too, and the capture goes on there,
// at all hooks, not where the renamed one is.
func TestInterfaceLeaves(t *testing.T) {
	pair := testbed.NewPair(t)
	table := openIn(t, pair.B)
	testbed.RunIn(t, pair.B, "ip", "link", "add", "vbx", "type", "veth", "peer", "name", "other")
	framed, inner, pattern := defaultSpec("0f8c0001"), defaultSpec("0f8c0002"), defaultSpec("0f8c0003")
	for _, s := range []*Spec{&framed, &inner, &pattern} {
		s.Once, s.Interfaces = false, []string{"vb"}
		s.Filter = parse(t, "udp dst port 4242")
	}
	framed.Hooks = []string{"ingress", "egress"}
	pattern.Interfaces = []string{"vb*", "vbx*"}
	for _, s := range []Spec{framed, inner, pattern} {
		install(t, table, s)
	}
	send := func() {
		t.Helper()
		sendUDP(t, pair.A, pair.B, netip.AddrPortFrom(testbed.A4, 0), netip.AddrPortFrom(testbed.B4, 4242), 5)
		sendUDP(t, pair.B, pair.A, netip.AddrPortFrom(testbed.B4, 0), netip.AddrPortFrom(testbed.A4, 4242), 3)
	}
	// changes waits for so many changes and gives them by capture, in their order.
	changes := func(n int) map[string][]Change {
		t.Helper()
		out := map[string][]Change{}
		until(t, "changes", func() bool {
			for _, c := range table.Changes() {
				out[c.ID] = append(out[c.ID], c)
				n--
			}
			return n <= 0
		})
		return out
	}
	seen := func(what string, want ...uint64) {
		t.Helper()
		for i, s := range []Spec{framed, inner, pattern} {
			if got := total(t, table, s.ID); got.Seen != want[i] {
				t.Errorf("%s: capture %s at %v counted %+v, want %d", what, s.ID, s.Hooks, got, want[i])
			}
		}
	}
	rename := func(from, to string) { testbed.RunIn(t, pair.B, "ip", "link", "set", from, "name", to) }
	left := func(got []Change, how, to string) bool {
		return len(got) == 1 && got[0].Left == how && got[0].To == to && !got[0].At.IsZero()
	}

	send()
	seen("at first", 8, 8, 8)
	rename("vb", "wan0")
	got := changes(2)
	for _, s := range []Spec{framed, inner} {
		if !left(got[s.ID], "was renamed to wan0", "wan0") || got[s.ID][0].Interface != "vb" {
			t.Errorf("renamed: %+v", got[s.ID])
		}
	}
	send()
	seen("renamed", 8, 8, 8)
	rename("wan0", "vb")
	for id, c := range changes(2) {
		if !left(c, "", "") {
			t.Errorf("%s came back: %+v", id, c)
		}
	}
	until(t, "vb to be hooked", func() bool {
		return strings.Count(listRuleset(t, pair.B), `device "vb"`) == 2
	})
	send()
	seen("back", 16, 16, 16)

	// The pattern vbx* has only one.
	testbed.RunIn(t, pair.B, "ip", "link", "del", "vbx")
	if got := changes(1); !left(got[pattern.ID], "was deleted", "") || got[pattern.ID][0].Interface != "vbx*" {
		t.Errorf("deleted: %+v", got)
	}
	testbed.RunIn(t, pair.B, "ip", "link", "set", "vb", "netns", pair.A)
	got = changes(3)
	for _, s := range []Spec{framed, inner, pattern} {
		if !left(got[s.ID], "was moved to another network namespace", "") {
			t.Errorf("moved: %+v", got[s.ID])
		}
	}
	testbed.RunIn(t, pair.A, "ip", "link", "set", "vb", "netns", pair.B)
	if got := changes(3); !left(got[framed.ID], "", "") || !left(got[inner.ID], "", "") || !left(got[pattern.ID], "", "") {
		t.Errorf("moved back: %+v", got)
	}
	testbed.RunIn(t, pair.B, "ip", "addr", "add", "10.9.0.2/24", "dev", "vb")
	testbed.RunIn(t, pair.B, "ip", "link", "set", "vb", "up")
	until(t, "vb to be hooked again", func() bool {
		return strings.Count(listRuleset(t, pair.B), `device "vb"`) == 2
	})
	send()
	seen("moved and back", 24, 24, 24)
	if !table.LinksChanged() || table.LinksChanged() {
		t.Error("LinksChanged does not tell of changes, or tells twice")
	}
	for _, s := range []Spec{framed, inner, pattern} {
		if err := table.Remove(s.ID); err != nil {
			t.Error(err)
		}
	}
	if text := listRuleset(t, pair.B); text != emptyTable {
		t.Errorf("left behind:\n%s", text)
	}
}
