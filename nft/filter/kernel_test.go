package filter_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"capd/nft"
	"capd/nft/filter"
	"capd/testbed"
)

// kernel is a namespace with rules, and a way to bring packets before them.
type kernel struct {
	table *nft.Table
	hooks []string
	link  filter.Link
	send  func([]byte) error
	// fit makes a packet such that the way to the hook leaves it as it is, and gives what
	// the hook sees; nil where there is no way.
	fit func([]byte) []byte
}

func openTable(t testing.TB, ns string) *nft.Table {
	t.Helper()
	var table *nft.Table
	testbed.In(t, ns, func() (err error) {
		table, err = nft.Open()
		return err
	})
	t.Cleanup(func() { _ = table.Close() })
	return table
}

// rawKernel brings IP packets to prerouting through a tun device.
func rawKernel(t testing.TB) kernel {
	ns := testbed.NewNS(t)
	tun := testbed.NewTun(t, ns, "tun0")
	testbed.Run(t, "ip", "-n", ns, "link", "set", "tun0", "up")
	return kernel{table: openTable(t, ns), hooks: []string{"prerouting"}, link: filter.LinkRaw, fit: fitIP,
		send: func(p []byte) error {
			_, err := unix.Write(tun, p)
			return err
		}}
}

// etherKernel brings frames to ingress of one end of a veth pair, or to egress of the
// other.
func etherKernel(t testing.TB, hook string) kernel {
	pair := testbed.NewPair(t)
	for _, ns := range []string{pair.A, pair.B} { // no neighbour or router discovery of their own
		testbed.RunIn(t, ns, "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
	}
	var socket int
	var to unix.SockaddrLinklayer
	testbed.In(t, pair.A, func() (err error) {
		if socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		ifi, err := net.InterfaceByName("va")
		if err != nil {
			return err
		}
		to.Ifindex = ifi.Index
		return nil
	})
	t.Cleanup(func() { _ = unix.Close(socket) })
	ns := map[string]string{"ingress": pair.B, "egress": pair.A}[hook]
	return kernel{table: openTable(t, ns), hooks: []string{hook}, link: filter.LinkEthernet, fit: fitFrame,
		send: func(p []byte) error {
			// The socket's protocol becomes the packet's, as it does for a stack that sends it.
			to.Protocol = binary.NativeEndian.Uint16(p[12:])
			return unix.Sendto(socket, p, 0, &to)
		}}
}

// fitIP makes a whole IP packet of what may have been cut short: the lengths agree, and
// the checksum is right.
func fitIP(p []byte) []byte {
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		header := int(p[0]&0x0f) * 4
		if header < 20 || header > len(p) {
			return nil
		}
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		p[10], p[11] = 0, 0
		sum := uint32(0)
		for i := 0; i < header; i += 2 {
			sum += uint32(binary.BigEndian.Uint16(p[i:]))
		}
		for sum > 0xffff {
			sum = sum>>16 + sum&0xffff
		}
		binary.BigEndian.PutUint16(p[10:], ^uint16(sum))
		return p
	case len(p) >= 40 && p[0]>>4 == 6:
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
		return p
	}
	return nil
}

// fitFrame makes a frame whose IP packet, if it has one, is whole.
func fitFrame(p []byte) []byte {
	if len(p) < 14 {
		return nil
	}
	at, etherType := 14, binary.BigEndian.Uint16(p[12:])
	for (etherType == 0x8100 || etherType == 0x88a8 || etherType == 0x9100) && len(p) >= at+4 {
		etherType = binary.BigEndian.Uint16(p[at+2:])
		at += 4
	}
	switch etherType {
	case 0x8100, 0x88a8, 0x9100: // cut inside the tag: the kernel drops some of these
		return nil
	case 0x0800, 0x86dd:
		if fitIP(p[at:]) == nil {
			return nil
		}
	case 0x0806, 0x8035:
		if len(p) < at+28 {
			return nil
		}
	}
	return p
}

// The rules in the kernel want what libpcap wants, or, where they say so, more.
func TestKernelIsLibpcap(t *testing.T) {
	testbed.NeedRoot(t)
	testbed.NeedCommand(t, "tcpdump", "ip")
	seed := filter.Seed()
	for name, open := range map[string]func() kernel{
		"prerouting": func() kernel { return rawKernel(t) },
		"ingress":    func() kernel { return etherKernel(t, "ingress") },
		"egress":     func() kernel { return etherKernel(t, "egress") },
	} {
		t.Run(name, func(t *testing.T) {
			k := open()
			g := filter.NewGenerator(seed, k.link)
			tried, exact, wanted := 0, 0, 0
			for tried < filter.Expressions(400) {
				n, e, w := k.compare(t, g)
				tried, exact, wanted = tried+n, exact+e, wanted+w
				if t.Failed() {
					t.Logf("CAPD_FILTER_SEED=%d", seed)
					return
				}
			}
			t.Logf("%d expressions, of which the kernel decides %d alone; %d packets wanted", tried, exact, wanted)
			if wanted < tried {
				t.Errorf("hardly any packet was wanted")
			}
		})
	}
}

// judged is one expression, in the kernel and by libpcap.
type judged struct {
	text    string
	id      string
	exact   bool
	wants   func([]byte) bool
	matcher *filter.Matcher
	seen    uint64
}

// compare installs a number of expressions and sends packets past them all.
func (k kernel) compare(t *testing.T, g filter.Generator) (tried, exact, wanted int) {
	all := []judged{{text: "", wants: func([]byte) bool { return true }}}
	for len(all) < 21 {
		j := judged{text: g.Expression()}
		if j.wants = filter.Libpcap(t, k.link, j.text); j.wants != nil {
			all = append(all, j)
		}
	}
	installed := all[:0]
	for i, j := range all {
		f, err := filter.Parse(j.text)
		if err != nil {
			continue // bytes at negative places; TestMatcherIsLibpcap looks at these
		}
		program, err := f.Compile(k.link)
		if err != nil {
			if !strings.Contains(err.Error(), "no packet can match") {
				continue
			}
			program, f = &filter.Program{Exact: true}, nil
		}
		if j.matcher, err = f.Matcher(k.link); err != nil {
			t.Fatal(err)
		}
		j.exact, j.id = program.Exact, fmt.Sprintf("%08x", i)
		if f == nil {
			continue
		}
		s := nft.Spec{ID: j.id, Filter: f, Hooks: k.hooks, Interfaces: []string{"tun0", "va", "vb"}, Stamped: []uint16{1}}
		switch k.hooks[0] {
		case "ingress":
			s.Interfaces = []string{"vb"}
		case "egress":
			s.Interfaces = []string{"va"}
		}
		if err := k.table.Install(s); err != nil {
			t.Fatalf("%q: %v", j.text, err)
		}
		installed = append(installed, j)
		if i > 0 && j.exact {
			exact++
		}
	}
	defer func() {
		for _, j := range installed {
			if err := k.table.Remove(j.id); err != nil {
				t.Error(err)
			}
		}
	}()
	for range 40 {
		p := k.fit(g.Packet())
		if p == nil {
			continue
		}
		if err := k.send(p); err != nil {
			if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EMSGSIZE) {
				continue // the kernel does not take every beginning of a packet from us
			}
			t.Fatal(err)
		}
		arrived := false
		for i := range installed {
			j := &installed[i]
			c, err := k.table.Counters(j.id)
			if err != nil {
				t.Fatal(err)
			}
			got := c.Seen > j.seen
			j.seen = c.Seen
			if i == 0 {
				arrived = got
			}
			if !arrived {
				continue
			}
			want := j.wants(p)
			if want && i > 0 {
				wanted++
			}
			if got != want && (j.exact || want) {
				t.Errorf("%q (exact %v): libpcap says %v, the kernel %v of %d bytes %s",
					j.text, j.exact, want, got, len(p), filter.Describe(p))
			}
		}
	}
	return len(installed) - 1, exact, wanted
}

// What the kernel judges otherwise than libpcap, and why: see filter.Program.
func TestKernelDiffers(t *testing.T) {
	testbed.NeedRoot(t)
	testbed.NeedCommand(t, "tcpdump", "ip")
	k := etherKernel(t, "ingress")
	ethernet := []byte{0, 0, 0x5e, 0, 0x53, 1, 0, 0, 0x5e, 0, 0x53, 2, 8, 0}
	header := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 7, 192, 0, 2, 8}
	ports := []byte{0, 80, 0, 53, 0, 8, 0, 0}
	whole := append(append(append([]byte{}, ethernet...), header...), ports...)
	tooLong := append([]byte{}, whole...)
	tooLong[14+3] = 200 // the header says that there are 200 bytes
	for i, c := range []struct {
		text            string
		frame           []byte
		libpcap, kernel bool
	}{
		{"udp port 53", whole, true, true},
		{"udp port 53", tooLong, true, false},
		{"udp and host 192.0.2.7", tooLong, true, true},
		{"not host 192.0.2.9", whole, true, true},
		{"not host 192.0.2.9", whole[:14+10], false, true},
		{"host 192.0.2.7", whole[:14+10], false, false},
		{"src net 192.0.2.0/24", whole[:14+15], false, true},
		{"src net 192.0.2.0/24", whole[:14+14], false, false},
		{"udp[4:2] = 8", whole, true, true},
		{"udp[4:2] = 8", tooLong, true, false},
	} {
		f, err := filter.Parse(c.text)
		if err != nil {
			t.Fatal(err)
		}
		id := fmt.Sprintf("%08x", i)
		err = k.table.Install(nft.Spec{ID: id, Filter: f, Hooks: k.hooks, Interfaces: []string{"vb"}, Stamped: []uint16{1}})
		if err != nil {
			t.Fatal(err)
		}
		if err := k.send(c.frame); err != nil {
			t.Fatal(err)
		}
		counters, err := k.table.Counters(id)
		if err != nil {
			t.Fatal(err)
		}
		if got := filter.Libpcap(t, k.link, c.text)(c.frame); got != c.libpcap {
			t.Errorf("%q: libpcap says %v of %s", c.text, got, filter.Describe(c.frame))
		}
		if got := counters.Seen > 0; got != c.kernel {
			t.Errorf("%q: the kernel says %v of %s", c.text, got, filter.Describe(c.frame))
		}
		if err := k.table.Remove(id); err != nil {
			t.Fatal(err)
		}
	}
}
