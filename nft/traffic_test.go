package nft

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"capd/nft/filter"
	"capd/testbed"
)

// total reads a capture's counters and checks that they add up. Packets in the tests
// have passed when it is called.
func total(t testing.TB, table *Table, id string) Counters {
	t.Helper()
	c, err := table.Counters(id)
	if err != nil {
		t.Fatal(err)
	}
	if c.Seen != c.Total()+c.SampledOut+c.Limited || c.Reset {
		t.Fatalf("counters do not add up: %+v", c)
	}
	return c
}

func install(t testing.TB, table *Table, s Spec) {
	t.Helper()
	if err := table.Install(s); err != nil {
		t.Fatal(err)
	}
}

// sendUDP sends count datagrams from one namespace to a port in another.
func sendUDP(t testing.TB, from, to string, source, destination netip.AddrPort, count int) {
	t.Helper()
	if _, err := testbed.SendUDP(testbed.Stream{From: from, To: to, Source: source, Destination: destination, Count: count}); err != nil {
		t.Fatal(err)
	}
}

// Every kind of filter_v1 counts what it says in real traffic, at prerouting of the
// receiver and at output of the sender alike.
func TestFilterV1Counts(t *testing.T) {
	pair := testbed.NewPair(t)
	sent := map[string]*Table{pair.A: openIn(t, pair.A), pair.B: openIn(t, pair.B)}
	// What SendAll sends, by filter, from A to B (for TCP only what is certain: some).
	const count = 3
	some := -1
	cases := []struct {
		v    filter.V1
		want int // packets from A to B
	}{
		{filter.V1{SourceAddress: "10.9.0.1", Protocol: "udp", DestinationPort: 5000}, count},
		{filter.V1{SourceAddress: "10.9.0.0/31", DestinationAddress: "10.9.0.2/32", Protocol: "17"}, count},
		{filter.V1{SourceAddress: "10.9.0.2", Protocol: "udp", DestinationPort: 5000}, 0},
		{filter.V1{SourceAddress: "fd00:9::1", DestinationPort: 5000}, count},
		{filter.V1{DestinationPort: 5000}, 2 * count},
		{filter.V1{DestinationPort: 5000, Protocol: "tcp"}, 0},
		{filter.V1{SourcePort: 5000, Protocol: "udp"}, 0},
		{filter.V1{DestinationAddress: "10.9.0.2", Protocol: "icmp"}, count},
		{filter.V1{DestinationAddress: "fd00::/16", Protocol: "udp"}, count},
		{filter.V1{DestinationPort: 5001, SourceAddress: "10.8.0.0/15"}, some},
		{filter.V1{DestinationPort: 5001, SourceAddress: "10.10.0.0/15"}, 0},
		{filter.V1{DestinationPort: 5001, SourceAddress: "fd00:9::/127"}, some},
		{filter.V1{DestinationPort: 5001, SourceAddress: "fd00:9::2/127"}, 0},
		{filter.V1{Protocol: "47"}, 0},
		{filter.V1{SourceAddress: "0.0.0.0/0", DestinationPort: 5000}, count},
		{filter.V1{SourceAddress: "::/0", DestinationPort: 5000}, count},
	}
	spec := func(i int) Spec {
		s := defaultSpec(fmt.Sprintf("%08x", i))
		s.Filter = v1(t, cases[i].v)
		return s
	}
	for i := range cases {
		for ns, table := range sent {
			s := spec(i)
			s.Hooks = map[string][]string{pair.A: {"output"}, pair.B: {"prerouting"}}[ns]
			install(t, table, s)
		}
	}
	if _, err := testbed.SendAll(pair, count); err != nil {
		t.Fatal(err)
	}
	for i, c := range cases {
		a, b := total(t, sent[pair.A], spec(i).ID), total(t, sent[pair.B], spec(i).ID)
		if a.Seen != b.Seen || a.Seen != a.Total() {
			t.Errorf("%+v: sender %+v, receiver %+v", c.v, a, b)
		}
		if c.want == some && b.Seen < count || c.want != some && b.Seen != uint64(c.want) {
			t.Errorf("%+v: counted %d, want %d", c.v, b.Seen, c.want)
		}
	}
}

// With the default hooks each packet counts once: over lo, sent and received, multicast
// and broadcast with their looped-back copies.
func TestOnce(t *testing.T) {
	pair := testbed.NewPair(t)
	tables := map[string]*Table{pair.A: openIn(t, pair.A), pair.B: openIn(t, pair.B)}
	const port, count = 7777, 4
	for _, c := range []struct {
		name         string
		destination  string
		listen       bool // A itself has joined the group
		inA, inB     uint64
		fromA, toLoA bool
	}{
		{name: "over lo, IPv4", destination: "127.0.0.1", inA: count},
		{name: "over lo, IPv6", destination: "::1", inA: count},
		{name: "to itself, IPv4", destination: "10.9.0.1", inA: count},
		{name: "to itself, IPv6", destination: "fd00:9::1", inA: count},
		{name: "to the peer, IPv4", destination: "10.9.0.2", inA: count, inB: count},
		{name: "to the peer, IPv6", destination: "fd00:9::2", inA: count, inB: count},
		{name: "multicast, IPv4", destination: "239.1.2.3", inA: count, inB: count},
		{name: "multicast looped back, IPv4", destination: "239.1.2.3", listen: true, inA: count, inB: count},
		{name: "multicast, IPv6", destination: "ff02::7", inA: count, inB: count},
		{name: "multicast looped back, IPv6", destination: "ff02::7", listen: true, inA: count, inB: count},
		{name: "broadcast", destination: "10.9.0.255", inA: count, inB: count},
		{name: "broadcast to all", destination: "255.255.255.255", inA: count, inB: count},
	} {
		t.Run(c.name, func(t *testing.T) {
			once, raw := defaultSpec("00000001"), defaultSpec("00000002")
			raw.Once = false
			for _, s := range []*Spec{&once, &raw} {
				s.Filter = v1(t, filter.V1{DestinationPort: port, Protocol: "udp"})
				for _, table := range tables {
					install(t, table, *s)
					defer table.Remove(s.ID)
				}
			}
			if err := testbed.Do(pair.A, func() error {
				return sendRaw("va", netip.AddrPortFrom(netip.MustParseAddr(c.destination), port), count, c.listen)
			}); err != nil {
				t.Fatal(err)
			}
			settle(t, tables[pair.B], once.ID, c.inB)
			a, b := total(t, tables[pair.A], once.ID), total(t, tables[pair.B], once.ID)
			if a.Seen != c.inA || b.Seen != c.inB {
				t.Errorf("sender counted %d, want %d; receiver %d, want %d", a.Seen, c.inA, b.Seen, c.inB)
			}
			// Without Once the copies are there: the test would notice if they were not.
			copies := c.listen || c.inB == 0 || c.destination == "10.9.0.255" || c.destination == "255.255.255.255"
			if r := total(t, tables[pair.A], raw.ID); copies != (r.Seen > c.inA) {
				t.Errorf("without Once the sender counted %d", r.Seen)
			}
		})
	}
}

// settle waits for packets that are still between two namespaces.
func settle(t testing.TB, table *Table, id string, want uint64) {
	t.Helper()
	for range 3000 {
		if total(t, table, id).Seen >= want {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// sendRaw sends datagrams through a device without waiting for anyone to receive them.
func sendRaw(device string, to netip.AddrPort, count int, join bool) error {
	family, level := unix.AF_INET6, unix.IPPROTO_IPV6
	if to.Addr().Is4() {
		family, level = unix.AF_INET, unix.IPPROTO_IP
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifi, err := net.InterfaceByName(device)
	if err != nil {
		return err
	}
	var target unix.Sockaddr
	if to.Addr().Is4() {
		mreq := &unix.IPMreqn{Multiaddr: to.Addr().As4(), Ifindex: int32(ifi.Index)}
		if join {
			err = unix.SetsockoptIPMreqn(fd, level, unix.IP_ADD_MEMBERSHIP, mreq)
		} else if to.Addr().IsMulticast() {
			err = unix.SetsockoptIPMreqn(fd, level, unix.IP_MULTICAST_IF, mreq)
		} else if to.Addr() == netip.MustParseAddr("255.255.255.255") {
			err = unix.BindToDevice(fd, device)
		}
		if err == nil && join {
			err = unix.SetsockoptIPMreqn(fd, level, unix.IP_MULTICAST_IF, mreq)
		}
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
		}
		target = &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	} else {
		if join {
			err = unix.SetsockoptIPv6Mreq(fd, level, unix.IPV6_JOIN_GROUP,
				&unix.IPv6Mreq{Multiaddr: to.Addr().As16(), Interface: uint32(ifi.Index)})
		}
		if err == nil {
			err = unix.SetsockoptInt(fd, level, unix.IPV6_MULTICAST_IF, ifi.Index)
		}
		target = &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	}
	if err != nil {
		return err
	}
	for range count {
		if err := unix.Sendto(fd, []byte("once"), 0, target); err != nil && err != unix.ECONNREFUSED {
			return err
		}
	}
	return nil
}

// Hooks and interfaces: where a packet is counted, and that one that fits several
// patterns counts once.
func TestHooksAndInterfaces(t *testing.T) {
	pair := testbed.NewPair(t)
	// A third namespace behind B, which forwards.
	c := testbed.NewNS(t)
	testbed.Run(t, "ip", "link", "add", "vb2", "netns", pair.B, "type", "veth", "peer", "name", "vc", "netns", c)
	testbed.Run(t, "ip", "-n", pair.B, "addr", "add", "10.8.0.1/24", "dev", "vb2")
	testbed.Run(t, "ip", "-n", pair.B, "link", "set", "vb2", "up")
	testbed.Run(t, "ip", "-n", c, "addr", "add", "10.8.0.2/24", "dev", "vc")
	testbed.Run(t, "ip", "-n", c, "link", "set", "vc", "up")
	testbed.Run(t, "ip", "-n", c, "route", "add", "default", "via", "10.8.0.1")
	testbed.Run(t, "ip", "-n", pair.A, "route", "add", "default", "via", "10.9.0.2")
	testbed.RunIn(t, pair.B, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")

	table := openIn(t, pair.B)
	const forwarded, toB = 5, 3 // packets from A through B to C, from A to B
	for i, tc := range []struct {
		hooks, interfaces []string
		want              uint64
	}{
		{[]string{"prerouting"}, nil, forwarded + toB},
		{[]string{"input"}, nil, toB},
		{[]string{"forward"}, nil, forwarded},
		{[]string{"output"}, nil, 0},
		{[]string{"postrouting"}, nil, forwarded},
		{[]string{"forward", "postrouting", "prerouting", "input"}, nil, 3*forwarded + 2*toB},
		{[]string{"prerouting"}, []string{"vb"}, forwarded + toB},
		{[]string{"prerouting"}, []string{"vb2"}, 0},
		{[]string{"prerouting"}, []string{"vb*", "vb", "v*"}, forwarded + toB},
		{[]string{"prerouting"}, []string{"vb2", "*"}, forwarded + toB},
		{[]string{"prerouting"}, []string{"vb2*"}, 0},
		{[]string{"prerouting"}, []string{"gone"}, 0},
		{[]string{"forward"}, []string{"vb"}, forwarded},
		{[]string{"forward"}, []string{"vb2"}, forwarded},
		{[]string{"forward"}, []string{"vb", "vb2"}, forwarded},
		{[]string{"forward"}, []string{"lo"}, 0},
		{[]string{"postrouting"}, []string{"vb2"}, forwarded},
		{[]string{"ingress"}, []string{"vb"}, forwarded + toB},
		{[]string{"ingress"}, []string{"vb2"}, 0},
		{[]string{"egress"}, []string{"vb2"}, forwarded},
		{[]string{"egress"}, []string{"vb"}, 0},
		{[]string{"ingress", "egress"}, []string{"vb*"}, 2*forwarded + toB},
		{[]string{"ingress", "egress"}, []string{"vb*", "vb", "*"}, 2*forwarded + toB},
		{[]string{"ingress", "forward"}, []string{"vb"}, 2*forwarded + toB},
	} {
		t.Run(fmt.Sprint(tc.hooks, tc.interfaces), func(t *testing.T) {
			s := defaultSpec(fmt.Sprintf("%08x", i))
			s.Hooks, s.Interfaces, s.Once = tc.hooks, tc.interfaces, false
			s.Filter = v1(t, filter.V1{DestinationPort: 4242})
			install(t, table, s)
			defer table.Remove(s.ID)
			source := netip.AddrPortFrom(testbed.A4, 0)
			sendUDP(t, pair.A, c, source, netip.MustParseAddrPort("10.8.0.2:4242"), forwarded)
			sendUDP(t, pair.A, pair.B, source, netip.AddrPortFrom(testbed.B4, 4242), toB)
			got := total(t, table, s.ID)
			if got.Total() != tc.want {
				t.Errorf("counted %+v, want %d", got, tc.want)
			}
			for group := range got.Matched {
				if !slices.Contains(append(slices.Clone(s.Stamped), s.Clocked...), group) {
					t.Errorf("group %d is not the capture's", group)
				}
			}
		})
	}
}

// Excluded flows are not seen at all, in either direction.
func TestExclude(t *testing.T) {
	pair := testbed.NewPair(t)
	table := openIn(t, pair.B)
	for _, hooks := range [][]string{{"prerouting", "output"}, {"ingress", "egress"}} {
		s := defaultSpec("00000001")
		s.Hooks, s.Interfaces = hooks, []string{"vb"}
		s.Filter = v1(t, filter.V1{Protocol: "udp", DestinationPort: 4242})
		s.Exclude = []filter.Flow{
			{Source: testbed.A4, SourcePort: 5555, Destination: testbed.B4, DestinationPort: 4242},
			{Source: testbed.B6, SourcePort: 6666, Destination: testbed.A6, DestinationPort: 4242},
		}
		install(t, table, s)
		send := func(from, to string, a, b netip.Addr, sport uint16, want uint64) {
			t.Helper()
			before := total(t, table, s.ID).Seen
			sendUDP(t, from, to, netip.AddrPortFrom(a, sport), netip.AddrPortFrom(b, 4242), 2)
			if got := total(t, table, s.ID).Seen - before; got != want {
				t.Errorf("%v: from %s port %d to %s: counted %d, want %d", hooks, a, sport, b, got, want)
			}
		}
		send(pair.A, pair.B, testbed.A4, testbed.B4, 5555, 0)
		send(pair.A, pair.B, testbed.A4, testbed.B4, 5556, 2)
		send(pair.B, pair.A, testbed.B4, testbed.A4, 5555, 2)
		send(pair.B, pair.A, testbed.B6, testbed.A6, 6666, 0)
		send(pair.A, pair.B, testbed.A6, testbed.B6, 6666, 2)
		if err := table.Remove(s.ID); err != nil {
			t.Fatal(err)
		}
	}
}

// Samples, rate limits and the dead-man switch hold packets back, and every one of them
// is accounted for.
func TestHeldBack(t *testing.T) {
	pair := testbed.NewPair(t)
	table := openIn(t, pair.B)
	to := netip.AddrPortFrom(testbed.B4, 4242)
	from := netip.AddrPortFrom(testbed.A4, 0)
	base := defaultSpec("00000001")
	base.Filter = v1(t, filter.V1{DestinationPort: 4242})
	base.Hooks = []string{"prerouting", "output"}

	t.Run("sample", func(t *testing.T) {
		s := base
		s.Sample = 4
		install(t, table, s)
		defer table.Remove(s.ID)
		sendUDP(t, pair.A, pair.B, from, to, 400)
		got := total(t, table, s.ID)
		// 100 are expected; the bounds are ten standard deviations away.
		if got.Seen != 400 || got.Limited != 0 || got.Total() < 14 || got.Total() > 186 {
			t.Errorf("counted %+v", got)
		}
	})
	t.Run("sample of flows", func(t *testing.T) {
		s := base
		s.Sample, s.SampleFlow = 2, true
		s.Filter = v1(t, filter.V1{Protocol: "udp"})
		install(t, table, s)
		defer table.Remove(s.ID)
		whole := 0
		for port := range uint16(40) {
			before := total(t, table, s.ID).Total()
			a, b := netip.AddrPortFrom(testbed.A4, 5000+port), netip.AddrPortFrom(testbed.B4, 4242)
			sendUDP(t, pair.A, pair.B, a, b, 3)
			sendUDP(t, pair.B, pair.A, b, a, 2)
			switch total(t, table, s.ID).Total() - before {
			case 5:
				whole++
			case 0:
			default:
				t.Errorf("a flow was cut: %d of 5 packets", total(t, table, s.ID).Total()-before)
			}
		}
		if whole == 0 || whole == 40 { // once in 2^39 by chance
			t.Errorf("%d of 40 flows are in a sample of one in two", whole)
		}
	})
	t.Run("rate", func(t *testing.T) {
		s := base
		s.Rate = 20
		install(t, table, s)
		defer table.Remove(s.ID)
		sendUDP(t, pair.A, pair.B, from, to, 200)
		got := total(t, table, s.ID)
		if got.Seen != 200 || got.Limited == 0 || got.Total() < 5 {
			t.Errorf("counted %+v", got)
		}
	})
	t.Run("dead-man switch", func(t *testing.T) {
		netdevSpec := base
		netdevSpec.ID, netdevSpec.Hooks, netdevSpec.Interfaces = "00000002", []string{"ingress"}, []string{"vb"}
		all := []Spec{base, netdevSpec}
		for _, s := range all {
			install(t, table, s)
			defer table.Remove(s.ID)
		}
		awaitExpiry(t, table)
		sendUDP(t, pair.A, pair.B, from, to, 10)
		for _, s := range all {
			if got := total(t, table, s.ID); got.Seen != 10 || got.Limited != 10 {
				t.Errorf("not renewed: counted %+v", got)
			}
		}
		for i := range 2 { // the first finds the element expired, the second finds it there
			if err := table.Renew(); err != nil {
				t.Fatal(err)
			}
			sendUDP(t, pair.A, pair.B, from, to, 10)
			for _, s := range all {
				if got := total(t, table, s.ID); got.Limited != 10 || got.Total() != uint64(10*(i+1)) {
					t.Errorf("renewed: counted %+v", got)
				}
			}
		}
	})
	t.Run("renewal puts the expiry off", func(t *testing.T) {
		install(t, table, base)
		defer table.Remove(base.ID)
		// Longer than the switch's own time: without renewal nothing would be logged at the end.
		var before, got Counters
		for late := true; late; { // again where this machine stood still for too long
			if err := table.Renew(); err != nil {
				t.Fatal(err)
			}
			renewed := time.Now()
			before, late = total(t, table, base.ID), false
			for range 3 {
				time.Sleep(RenewTimeout * 2 / 5)
				if err := table.Renew(); err != nil {
					t.Fatal(err)
				}
				late = late || time.Since(renewed) > RenewTimeout
				renewed = time.Now()
				sendUDP(t, pair.A, pair.B, from, to, 10)
				late = late || time.Since(renewed) > RenewTimeout
			}
			got = total(t, table, base.ID)
		}
		if got.Limited != before.Limited || got.Total() != before.Total()+30 {
			t.Errorf("while it is renewed: counted %+v, and %+v before", got, before)
		}
		awaitExpiry(t, table)
		if err := table.Renew(); err != nil {
			t.Fatal(err)
		}
		sendUDP(t, pair.A, pair.B, from, to, 10)
		if after := total(t, table, base.ID); after.Total() != got.Total()+10 {
			t.Errorf("counted %+v, and %+v before", after, got)
		}
	})
}

// awaitExpiry waits until nothing in the sets is alive.
func awaitExpiry(t testing.TB, table *Table) {
	t.Helper()
	for range 600 {
		alive := 0
		for _, o := range table.tables {
			if o.alive == nil {
				continue
			}
			table.mu.Lock()
			elements, err := table.conn.GetSetElements(o.alive)
			table.mu.Unlock()
			if err != nil {
				t.Fatal(err)
			}
			alive += len(elements)
		}
		if alive == 0 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal("the dead-man switch does not expire")
}
