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
