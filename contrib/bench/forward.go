package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"capd/ctl/wire"
	"capd/testbed"
)

// farEnd is a namespace behind the bed's b, to which b forwards what is for 10.10.0.2. It
// counts and drops what comes.
type farEnd struct{ ns string }

// newFarEnd makes b a router; the bed deletes the namespace.
func newFarEnd(b *bed) (*farEnd, error) {
	far := &farEnd{fmt.Sprintf("capd-bench-c%d", os.Getpid())}
	if err := run("ip", "netns", "add", far.ns); err != nil {
		return nil, err
	}
	b.made = append(b.made, far.ns)
	for _, step := range [][]string{
		{"ip", "link", "add", "vout", "netns", b.b, "type", "veth", "peer", "name", "vfar", "netns", far.ns},
		{"ip", "-n", b.b, "addr", "add", "10.10.0.1/24", "dev", "vout"},
		{"ip", "-n", far.ns, "link", "set", "vfar", "address", "02:00:00:00:00:0c", "up"},
		{"ip", "-n", b.b, "link", "set", "vout", "up"},
		{"ip", "-n", b.b, "neigh", "add", "10.10.0.2", "lladdr", "02:00:00:00:00:0c", "dev", "vout", "nud", "permanent"},
		{"ip", "netns", "exec", b.b, "sysctl", "-qw", "net.ipv4.ip_forward=1"},
		{"ip", "netns", "exec", far.ns, "nft", "add table netdev bench; add chain netdev bench in { type filter hook ingress device vfar priority 0; policy accept; }; " +
			"add rule netdev bench in udp dport 9 counter drop"},
	} {
		if err := run(step[0], step[1:]...); err != nil {
			return nil, err
		}
	}
	return far, nil
}

// arrived is how many packets have come so far.
func (f *farEnd) arrived() (int, error) { return counter(f.ns, "netdev") }

// passage is what a flood came to: packets that arrived a second, and the CPU time of the
// forwarding CPU for each, injection included.
type passage struct {
	rate float64
	cpu  float64 // ns
}

// through injects frames for the far end.
func (f *farEnd) through(b *bed, frames int) (passage, error) {
	before, err := f.arrived()
	if err != nil {
		return passage{}, err
	}
	sent, err := testbed.Inject(b.b, testbed.InjectOptions{Interface: device, Count: frames, Length: 60,
		Destination: netip.MustParseAddr("10.10.0.2"), Forwarded: true, Pin: true, CPU: injectorCPU})
	if err != nil {
		return passage{}, err
	}
	time.Sleep(50 * time.Millisecond) // what is on its way
	after, err := f.arrived()
	if err == nil && after == before {
		err = errors.New("nothing is forwarded")
	}
	return passage{float64(after-before) / sent.Elapsed.Seconds(), float64(sent.CPU) / float64(frames)}, err
}

// setting is one way to forward, and what was measured of it.
type setting struct {
	what, command string
	against       int // the setting, by its place, that its rate is divided by; its own = none
	target        float64
	flood         func() (passage, wire.Packets, error)
	passages      []passage
	held          []float64 // percent of the packets seen
}

// forwarding compares what a router forwards beside a capture with what it forwards without
// any rule. The captures are of everything, with capd's default max_packet_rate and with one
// so low that nearly all packets are held back, and of a port that no packet has: in the two
// latter the rules' own cost remains. A single rule of nft's, with a limit and a counter and
// nobody who reads, tells what part of that any rule would cost. A router with a small
// stateful firewall is compared with itself. The settings take turns, so that other work on
// the machine hits them alike. A flood lasts about a second, so that the burst that the rate
// allows, a tenth of a second's packets, counts for little.
func forwarding(b *bench) ([]figure, error) {
	far, err := newFarEnd(b.bed)
	if err != nil {
		return nil, err
	}
	frames := max(b.frames/2, 1)
	plain := func() (passage, wire.Packets, error) {
		p, err := far.through(b.bed, frames)
		return p, wire.Packets{}, err
	}
	beside := func(limits, expression string) func() (passage, wire.Packets, error) {
		return func() (passage, wire.Packets, error) { return b.besideCapture(far, frames, limits, expression) }
	}
	behind := func(rules, table string, flood func() (passage, wire.Packets, error)) func() (passage, wire.Packets, error) {
		return func() (passage, wire.Packets, error) {
			if err := b.bed.nft(rules); err != nil {
				return passage{}, wire.Packets{}, err
			}
			p, packets, err := flood()
			return p, packets, errors.Join(err, b.bed.nft("delete table inet "+table))
		}
	}
	const command = "capctl start -t 1h -b 50gb"
	settings := []setting{
		{what: "no rule at all", command: "XDP_PASS frames into " + device, flood: plain},
		{what: "a capture of everything, default max_packet_rate", command: command, target: 0.85, flood: beside("", "")},
		{what: "a capture of everything, max_packet_rate = 1000", command: command, flood: beside("max_packet_rate = 1000\n", "")},
		{what: "a capture that no packet matches", command: command + " port 4", target: 0.85, flood: beside("", "port 4")},
		{what: "one nftables rule with a limit and a counter", command: "nft " + bareRule, flood: behind(bareRule, "bench", plain)},
		{what: "a stateful firewall", command: "nft " + firewall, against: 5, flood: behind(firewall, "firewall", plain)},
		{what: "a stateful firewall and a capture of everything", command: command, against: 5, flood: behind(firewall, "firewall", beside("", ""))},
	}
	for range 3 * b.repeats {
		for i := range settings {
			s := &settings[i]
			p, packets, err := s.flood()
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.what, err)
			}
			s.passages = append(s.passages, p)
			b.log("  %-50s %7.0f/s %5.0f ns", s.what, p.rate, p.cpu)
			if packets.Seen != nil && *packets.Seen > 0 {
				s.held = append(s.held, 100*float64(*packets.Limited)/float64(*packets.Seen))
			}
		}
	}
	var out []figure
	for i, s := range settings {
		rate, cpu := figure{What: "forwarded, " + s.what, Unit: "packets/s", Command: s.command}, figure{What: "CPU per packet, " + s.what, Unit: "ns", Command: s.command}
		ratio := figure{What: s.what + " / " + settings[s.against].what, Unit: "×", Command: s.command}
		for j, p := range s.passages {
			rate.Spread, cpu.Spread = append(rate.Spread, p.rate), append(cpu.Spread, p.cpu)
			ratio.Spread = append(ratio.Spread, p.rate/settings[s.against].passages[j].rate)
		}
		rate.Value, cpu.Value, ratio.Value = median(rate.Spread), median(cpu.Spread), median(ratio.Spread)
		out = append(out, rate, cpu)
		if s.against != i {
			if s.target > 0 {
				ratio.Target, ratio.Met = fmt.Sprintf("≥ %.2f", s.target), ratio.Value >= s.target
			}
			out = append(out, ratio)
		}
		if len(s.held) > 0 {
			out = append(out, figure{What: "held back by the rate, " + s.what, Unit: "%", Command: s.command, Value: median(s.held), Spread: s.held})
		}
	}
	return out, nil
}

// bareRule is the least that a rule with a limit can be, at the place of capd's.
const bareRule = "add table inet bench; add chain inet bench pre { type filter hook prerouting priority -450; policy accept; }; " +
	"add rule inet bench pre limit rate over 1000/second burst 100 packets counter"

// firewall is of the kind that most routers have.
const firewall = "add table inet firewall; add chain inet firewall forward { type filter hook forward priority 0; policy drop; }; " +
	"add rule inet firewall forward ct state vmap { established : accept, related : accept, invalid : drop }; " +
	"add rule inet firewall forward iifname " + device + " udp dport 1-1023 counter accept"

// besideCapture is a flood beside a capture of what the expression says, of a capd with these
// limits, and what the capture counted.
func (b *bench) besideCapture(far *farEnd, frames int, limits, expression string) (with passage, p wire.Packets, err error) {
	d, err := startLimitedCapd(b.bed, readerCPU, "auto", limits)
	if err != nil {
		return with, p, err
	}
	defer d.stop()
	id, _, err := d.ctl(append([]string{"start", "-q", "-t", "1h", "-b", "50gb"}, strings.Fields(expression)...)...)
	if err != nil {
		return with, p, err
	}
	if with, err = far.through(b.bed, frames); err != nil {
		return with, p, err
	}
	c, _, err := d.finish(id)
	p = c.Packets
	switch {
	case err != nil:
	case p.Seen == nil, expression == "" && *p.Seen < uint64(frames), expression != "" && *p.Seen > 0:
		err = fmt.Errorf("a flood of %d frames is not what a capture of %q saw: %s", frames, expression, describe(p))
	}
	return with, p, err
}
