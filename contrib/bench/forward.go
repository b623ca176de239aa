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

// forwarding compares what a router forwards beside a capture with what it forwards without
// any rule. The captures are of everything, with capd's default max_packet_rate and with one
// so low that nearly all packets are held back, and of a port that no packet has: in the two
// latter the rules' own cost remains. A single rule of nft's, with a limit and a counter and
// nobody who reads, tells what part of that any rule would cost. They take turns, so that
// other work on the machine hits them alike. A flood lasts about a second, so that the burst
// that the rate allows, a tenth of a second's packets, counts for little.
func forwarding(b *bench) ([]figure, error) {
	far, err := newFarEnd(b.bed)
	if err != nil {
		return nil, err
	}
	type run struct {
		expression, limits     string // of the capture
		all                    bool   // it sees every packet
		rate, cpu, ratio, held figure
	}
	named := func(what, command string) *run {
		return &run{
			rate: figure{What: "forwarded " + what, Unit: "packets/s", Command: command}, cpu: figure{What: "CPU per packet " + what, Unit: "ns", Command: command},
			ratio: figure{What: "packets/s " + what + " / with no rule", Unit: "×", Command: command}, held: figure{What: "held back by the rate " + what, Unit: "%", Command: command},
		}
	}
	const command = "capctl start -t 1h -b 50gb"
	free := named("with no rule at all", "XDP_PASS frames into "+device)
	rule := named("through one nftables rule with a limit and a counter", "nft add rule … "+bareRule)
	usual, held := named("beside a capture of everything, default max_packet_rate", command), named("beside it, max_packet_rate = 1000", command)
	usual.all, held.all, held.limits = true, true, "max_packet_rate = 1000\n"
	other := named("beside a capture that none of the packets matches", command+" port 4")
	other.expression = "port 4"
	frames := max(b.frames/2, 1)
	note := func(r *run, p passage) {
		r.rate.Spread, r.cpu.Spread = append(r.rate.Spread, p.rate), append(r.cpu.Spread, p.cpu)
	}
	for range 3 * b.repeats {
		without, err := far.through(b.bed, frames)
		if err != nil {
			return nil, err
		}
		note(free, without)
		compare := func(r *run, with passage) {
			note(r, with)
			r.ratio.Spread = append(r.ratio.Spread, with.rate/without.rate)
		}
		with, err := b.besideRule(far, frames)
		if err != nil {
			return nil, err
		}
		compare(rule, with)
		b.log("  no rule %7.0f/s %5.0f ns; one rule %7.0f/s %5.0f ns", without.rate, without.cpu, with.rate, with.cpu)
		for _, r := range []*run{usual, held, other} {
			with, p, err := b.besideCapture(far, frames, r.limits, r.expression)
			if err != nil {
				return nil, err
			}
			if r.all != (*p.Seen > 0) {
				return nil, fmt.Errorf("the capture of %q saw %d packets", r.expression, *p.Seen)
			}
			compare(r, with)
			b.log("  %-26q %7.0f/s %5.0f ns, of %d seen %d limited, %d lost", r.limits+r.expression, with.rate, with.cpu, *p.Seen, *p.Limited, p.Lost)
			if r.all {
				r.held.Spread = append(r.held.Spread, 100*float64(*p.Limited)/float64(*p.Seen))
			}
		}
	}
	var out []figure
	for _, r := range []*run{free, usual, held, other, rule} {
		for _, f := range []*figure{&r.rate, &r.cpu, &r.held, &r.ratio} {
			f.Value = median(f.Spread)
			if f == &r.ratio {
				f.Value = r.rate.Value / free.rate.Value
			}
			if f == &r.ratio && (r == usual || r == other) {
				f.Target, f.Met = "≥ 0.85", f.Value >= 0.85
			}
			if len(f.Spread) > 0 {
				out = append(out, *f)
			}
		}
	}
	return out, nil
}

// bareRule is the least that a rule with a limit can be.
const bareRule = "limit rate over 1000/second burst 100 packets counter"

// besideRule is a flood through one rule, at the place of capd's.
func (b *bench) besideRule(far *farEnd, frames int) (with passage, err error) {
	if err := b.bed.rule(bareRule); err != nil {
		return with, err
	}
	with, err = far.through(b.bed, frames)
	return with, errors.Join(err, b.bed.unrule())
}

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
	if p = c.Packets; err == nil && (p.Seen == nil || expression == "" && *p.Seen < uint64(frames)) {
		err = fmt.Errorf("the capture did not see the flood of %d frames: %s", frames, describe(p))
	}
	return with, p, err
}
