package nft

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"capd/testbed"
)

// The messages that a kernel with flowtables sends, by linux/netfilter/nf_tables.h (this
// test makes them itself: CI's kernels can lack NF_FLOW_TABLE), and what they mean for
// captures.
func TestHazardFlowtable(t *testing.T) {
	message := func(flags byte) []byte {
		e := netlink.NewAttributeEncoder()
		e.String(flowtableTable, "filter")
		e.String(flowtableName, "fast")
		e.Nested(flowtableHook, func(hook *netlink.AttributeEncoder) error {
			hook.Bytes(1, []byte{0, 0, 0, 0}) // hook number
			hook.Bytes(flowtablePriority, []byte{0xff, 0xff, 0xff, 0x9c})
			hook.Nested(flowtableHookDevs, func(devs *netlink.AttributeEncoder) error {
				devs.String(deviceName, "eth0")
				devs.String(deviceName, "eth1")
				devs.String(devicePrefix, "wg")
				return nil
			})
			return nil
		})
		e.Bytes(4, []byte{0, 0, 0, 1})             // use
		e.Bytes(5, []byte{0, 0, 0, 0, 0, 0, 0, 7}) // handle
		e.Bytes(flowtableFlags, []byte{0, 0, 0, flags})
		data, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return append([]byte{1, 0, 0, 0}, data...) // family inet
	}
	software, err := parseFlowtable(message(2)) // counter
	if err != nil || software.offload || software.priority != -100 || !slices.Equal(software.devices, []string{"eth0", "eth1", "wg*"}) {
		t.Fatalf("%+v, %v", software, err)
	}
	hardware, err := parseFlowtable(message(1))
	if err != nil || !hardware.offload {
		t.Fatalf("%+v, %v", hardware, err)
	}
	if _, err := parseFlowtable([]byte{1}); err == nil {
		t.Error("half a header is taken")
	}
	for _, c := range []struct {
		table      flowtable
		hooks      string
		interfaces []string
		part       string // of the message; "" = no warning
	}{
		{software, "prerouting,output", nil, "flowtable inet filter fast (eth0, eth1, wg*) leads established flows past prerouting:"},
		{software, "prerouting,output", nil, "-i eth0 -i eth1 -i wg*"},
		{software, "forward,postrouting", nil, "past forward, postrouting:"},
		{software, "input,output", nil, ""},
		{software, "ingress,egress", []string{"eth0"}, ""},
		{software, "prerouting", []string{"eth9"}, ""},
		{software, "prerouting", []string{"eth*"}, "past prerouting"},
		{software, "prerouting", []string{"wg7"}, "past prerouting"},
		{hardware, "prerouting,output", nil, "network hardware"},
		{hardware, "ingress,egress", []string{"eth1"}, "network hardware"},
		{hardware, "ingress,egress", []string{"eth9"}, ""},
		{hardware, "input", nil, ""},
	} {
		h, found := c.table.hazard(Spec{Hooks: strings.Split(c.hooks, ","), Interfaces: c.interfaces}, nil)
		if found != (c.part != "") || found && (h.Code != HazardFlowtable || !strings.Contains(h.Message, c.part)) {
			t.Errorf("%s on %v: %+v", c.hooks, c.interfaces, h)
		}
	}
}

// Which devices of flowtables a capture of everything takes at ingress, what stays hidden,
// and what is said of it.
func TestDetour(t *testing.T) {
	there := []linkNews{
		{name: "eth0", index: 2}, {name: "eth1", index: 3}, {name: "ppp0", index: 4},
		{name: "br0", index: 5, kind: "bridge"}, {name: "port1", index: 6, master: 5}, {name: "port2", index: 7, master: 5},
		{name: "red", index: 8, kind: "vrf"}, {name: "eth2", index: 9, master: 8},
		{name: "trunk", index: 10}, {name: "trunk.7", index: 11, link: 10, kind: "vlan"},
		{name: "shared", index: 12}, {name: "inner", index: 13, link: 12, kind: "ipvlan"},
		{name: "veth0", index: 14, link: 15, kind: "veth"}, {name: "veth1", index: 15, link: 14, kind: "veth"},
	}
	of := func(devices ...string) flowtable {
		return flowtable{family: "inet", table: "filter", name: "fast", devices: devices}
	}
	early, hardware := of("eth0"), of("eth0", "eth1")
	early.priority, hardware.offload = -450, true
	for _, c := range []struct {
		table        flowtable
		seen, hidden []string
		code, says   string
	}{
		{of("eth0", "eth1"), []string{"eth0", "eth1"}, nil, HazardIngress, "what comes in by eth0, eth1 is captured at ingress instead"},
		{of("ppp0", "br0", "veth0"), []string{"ppp0", "br0", "veth0"}, nil, HazardIngress, "so that nothing is hidden"},
		{of("eth2"), []string{"eth2"}, nil, HazardIngress, ""},
		{of("port1", "port2"), nil, []string{"port1, a port of br0", "port2, a port of br0"}, HazardFlowtable, "only the first packets are captured there; ingress and egress see them all: -i port1 -i port2"},
		{of("eth0", "port1"), []string{"eth0"}, []string{"port1, a port of br0"}, HazardFlowtable, "of flows by others (port1, a port of br0) only the first packets"},
		{of("trunk"), []string{"trunk"}, []string{"trunk.7, a VLAN on trunk"}, HazardFlowtable, "trunk.7, a VLAN on trunk"},
		{of("trunk.7"), []string{"trunk.7"}, nil, HazardIngress, ""},
		{of("shared", "eth0"), []string{"eth0"}, []string{"shared, with inner on it"}, HazardFlowtable, "shared, with inner on it"},
		{of("wg*", "eth0"), []string{"eth0"}, []string{"wg*"}, HazardFlowtable, "-i wg*"},
		{of("gone0", "eth0"), []string{"eth0"}, nil, HazardIngress, ""},
		{of("gone0"), nil, nil, HazardFlowtable, ""},
		{early, nil, []string{"eth0, where the flowtable stands before capd (priority -450)"}, HazardFlowtable, "only the first packets are captured there"},
		{hardware, []string{"eth0", "eth1"}, nil, HazardFlowtable, "flows that the hardware does not take are captured at ingress of eth0, eth1"},
	} {
		seen, hidden := detour([]flowtable{c.table}, there)
		if !slices.Equal(seen, c.seen) || !slices.Equal(hidden, c.hidden) {
			t.Errorf("%v: seen %q, hidden %q", c.table.devices, seen, hidden)
		}
		s := defaultSpec("00000001")
		s.Offloaded = seen
		if h, found := c.table.hazard(s, there); !found || h.Code != c.code || !strings.Contains(h.Message, c.says) {
			t.Errorf("%v: %+v", c.table.devices, h)
		}
		// One that does not take the way round is told so.
		s.Offloaded = nil
		if h, found := c.table.hazard(s, there); !found || h.Code != HazardFlowtable || strings.Contains(h.Message, "instead") {
			t.Errorf("%v without ingress: %+v", c.table.devices, h)
		}
	}
	if seen, hidden := detour([]flowtable{of("eth0", "port1"), of("port1", "eth0", "eth1")}, there); !slices.Equal(seen, []string{"eth0", "eth1"}) || len(hidden) != 1 {
		t.Errorf("two flowtables: seen %q, hidden %q", seen, hidden)
	}
}

// What detour asks of interfaces is what the kernel says of real ones.
func TestListLinks(t *testing.T) {
	pair := testbed.NewPair(t)
	for _, args := range []string{"br0 type bridge", "p0 type veth peer name p1"} {
		testbed.RunIn(t, pair.B, "ip", append([]string{"link", "add"}, strings.Fields(args)...)...)
	}
	testbed.RunIn(t, pair.B, "ip", "link", "set", "p0", "master", "br0")
	var there []linkNews
	testbed.In(t, pair.B, func() error {
		l, err := newLooker()
		if err != nil {
			return err
		}
		defer l.close()
		there, err = listLinks(l.links)
		return err
	})
	find := func(name string) linkNews {
		i := slices.IndexFunc(there, func(d linkNews) bool { return d.name == name })
		if i < 0 {
			t.Fatalf("%s is not in %+v", name, there)
		}
		return there[i]
	}
	br0, p0, p1 := find("br0"), find("p0"), find("p1")
	if br0.kind != "bridge" || p0.kind != "veth" || p0.master != br0.index || p0.link != p1.index || p1.link != p0.index || p1.master != 0 {
		t.Errorf("%+v", there)
	}
	if vb := find("vb"); vb.link != 0 { // its other end is in another namespace
		t.Errorf("%+v", vb)
	}
	seen, hidden := detour([]flowtable{{devices: []string{"vb", "p0", "p1"}}}, there)
	if !slices.Equal(seen, []string{"vb", "p1"}) || !slices.Equal(hidden, []string{"p0, a port of br0"}) {
		t.Errorf("seen %q, hidden %q", seen, hidden)
	}
	table := openIn(t, pair.B)
	if got, err := table.Offloaded(); err != nil || got != nil {
		t.Errorf("without a flowtable: %q, %v", got, err)
	}
}

// A capture that takes a device's packets at ingress sees those that never come to
// prerouting (a rule that drops at ingress stands for a flowtable, which takes packets off
// there), and apart from that exactly what one at prerouting and output sees: each packet
// once, by the same filters.
func TestOffloaded(t *testing.T) {
	pair := testbed.NewPair(t)
	table := openIn(t, pair.B)
	texts := []string{"", "udp", "host 10.9.0.1", "dst net fd00:9::/64", "tcp[tcpflags] & tcp-syn != 0", "udp dst port 7777 or portrange 5000-5001",
		"not host 10.9.0.1", "ip[8] = 64 and not tcp", "ip6 multicast or ip multicast", "icmp or icmp6", "ifname vb and udp", "ip[6:2] & 0x3fff != 0"}
	plain := func(i int) Spec {
		s := defaultSpec(fmt.Sprintf("%08x", 0x100+i))
		s.Filter = parse(t, texts[i])
		return s
	}
	moved := func(i int) Spec {
		s := plain(i)
		s.ID, s.Offloaded = fmt.Sprintf("%08x", 0x200+i), []string{"vb"}
		return s
	}
	for i := range texts {
		install(t, table, plain(i))
		install(t, table, moved(i))
	}
	if _, err := testbed.SendAll(pair, 3); err != nil {
		t.Fatal(err)
	}
	over := netip.MustParseAddr("127.0.0.1")
	sendUDP(t, pair.B, pair.B, netip.AddrPortFrom(over, 0), netip.AddrPortFrom(over, 5000), 3)
	for _, many := range []string{"239.1.2.3", "ff02::7", "10.9.0.255", "255.255.255.255"} {
		for ns, device := range map[string]string{pair.A: "va", pair.B: "vb"} {
			if err := testbed.Do(ns, func() error {
				return sendRaw(device, netip.AddrPortFrom(netip.MustParseAddr(many), 7777), 4, strings.Contains("239.1.2.3 ff02::7", many))
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	testbed.RunIn(t, pair.A, "ping", "-q", "-c", "2", "-i", "0.2", "-s", "4000", "10.9.0.2") // fragments
	testbed.In(t, pair.B, func() error {
		vb, err := net.InterfaceByName("vb")
		if err != nil {
			return err
		}
		return testbed.Do(pair.A, func() error { return sendFrames("va", oddFrames(vb.HardwareAddr)) })
	})
	until(t, "all that was sent to be counted at every hook", func() bool { // nothing waits for some of it
		for i := range texts {
			if a := total(t, table, plain(i).ID); a.Seen == 0 || a.Seen != total(t, table, moved(i).ID).Seen {
				return false
			}
		}
		return true
	})
	for i, text := range texts {
		a, b := total(t, table, plain(i).ID), total(t, table, moved(i).ID)
		if a.Seen != b.Seen || a.Seen == 0 {
			t.Errorf("%q: %d packets at prerouting and output, %d with ingress", text, a.Seen, b.Seen)
		}
	}

	testbed.RunIn(t, pair.B, "nft", `table netdev taken { chain off { type filter hook ingress device "vb" priority -100; udp dport 5555 counter drop; }; }`)
	const count = 7
	if err := testbed.Do(pair.A, func() error {
		return sendRaw("va", netip.AddrPortFrom(testbed.B4, 5555), count, false)
	}); err != nil {
		t.Fatal(err)
	}
	before, after := total(t, table, plain(1).ID), total(t, table, moved(1).ID)
	if after.Seen != before.Seen+count {
		t.Errorf("of %d packets that are taken off, prerouting saw %d and ingress %d", count, before.Seen, after.Seen)
	}
	// The device goes, and comes back: it is taken at ingress again.
	testbed.RunIn(t, pair.B, "ip", "link", "set", "vb", "name", "away")
	testbed.RunIn(t, pair.B, "ip", "link", "set", "away", "name", "vb")
	until(t, "vb to be hooked", func() bool { return strings.Count(listRuleset(t, pair.B), `hook ingress device "vb"`) == 2 })
	if err := testbed.Do(pair.A, func() error {
		return sendRaw("va", netip.AddrPortFrom(testbed.B4, 5555), count, false)
	}); err != nil {
		t.Fatal(err)
	}
	if got := total(t, table, moved(1).ID); got.Seen != after.Seen+count {
		t.Errorf("back: %d, want %d", got.Seen, after.Seen+count)
	}
	for i := range texts {
		for _, id := range []string{plain(i).ID, moved(i).ID} {
			if err := table.Remove(id); err != nil {
				t.Error(err)
			}
		}
	}
	testbed.RunIn(t, pair.B, "nft", "delete", "table", "netdev", "taken")
	if text := listRuleset(t, pair.B); text != emptyTable {
		t.Errorf("left behind:\n%s", text)
	}
	wrong := moved(0)
	wrong.Interfaces = []string{"vb"}
	if err := table.Install(wrong); err == nil || !strings.Contains(err.Error(), "offloaded") {
		t.Errorf("with interfaces: %v", err)
	}
}

// A packet from a device without a link-layer header is taken at ingress too, but not the
// copy of one to many that was sent there.
func TestOffloadedTunnel(t *testing.T) {
	ns := testbed.NewNS(t)
	tun := testbed.NewTun(t, ns, "tun7")
	testbed.RunIn(t, ns, "ip", "addr", "add", "10.77.0.1/24", "dev", "tun7")
	testbed.RunIn(t, ns, "ip", "link", "set", "tun7", "up", "multicast", "on")
	table := openIn(t, ns)
	plain, moved := defaultSpec("00000001"), defaultSpec("00000002")
	moved.Offloaded = []string{"tun7"}
	for _, s := range []*Spec{&plain, &moved} {
		s.Filter = parse(t, "udp and (dst host 10.77.0.1 or dst net 239.0.0.0/8)")
		install(t, table, *s)
	}
	packet := []byte{0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17, 0, 0, 10, 77, 0, 2, 10, 77, 0, 1, 0, 80, 16, 146, 0, 9, 0, 0, 'x'}
	binary.BigEndian.PutUint16(packet[10:], checksum(packet[:20]))
	for range 5 {
		if _, err := unix.Write(tun, packet); err != nil {
			t.Fatal(err)
		}
	}
	if err := testbed.Do(ns, func() error {
		return sendRaw("tun7", netip.MustParseAddrPort("239.1.2.3:7777"), 3, true)
	}); err != nil {
		t.Fatal(err)
	}
	settle(t, table, plain.ID, 8)
	a, b := total(t, table, plain.ID), total(t, table, moved.ID)
	if a.Seen != b.Seen || a.Seen != 8 {
		t.Errorf("%d packets at prerouting and output, %d with ingress, want 8", a.Seen, b.Seen)
	}
}

// oddFrames are for a device what does not come to its prerouting, or comes otherwise: no
// IP, tags, packets for another host, padding.
func oddFrames(to net.HardwareAddr) [][]byte {
	udp := []byte{0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2, 0, 80, 16, 146, 0, 9, 0, 0, 'x'}
	binary.BigEndian.PutUint16(udp[10:], checksum(udp[:20]))
	frame := func(to net.HardwareAddr, between ...byte) []byte {
		return slices.Concat(to, []byte{0, 0, 0x5e, 0, 0x53, 1}, between, udp)
	}
	other := slices.Clone(to)
	other[5] ^= 1
	return [][]byte{
		append(frame(to, 8, 0), make([]byte, 17)...), // padded
		frame(other, 8, 0),
		frame(to, 0x81, 0, 0, 5, 8, 0),
		frame(to, 0x88, 0xa8, 0, 100, 0x81, 0, 0, 200, 8, 0),
		frame(to, 0x88, 0x47, 0x18, 0x6a, 0x01, 64),
		frame(to, 8, 6),
	}
}

// sendFrames sends frames as they are.
func sendFrames(device string, frames [][]byte) error {
	socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	ifi, err := net.InterfaceByName(device)
	if err != nil {
		return err
	}
	for _, frame := range frames {
		if err := unix.Sendto(socket, frame, 0, &unix.SockaddrLinklayer{Ifindex: ifi.Index}); err != nil {
			return err
		}
	}
	return nil
}
