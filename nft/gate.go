package nft

import (
	"fmt"
	"slices"

	"github.com/google/nftables"

	"capd/nft/filter"
)

// The kernel cannot replace a rule and keep its counter. What has to change while a capture
// runs therefore stands in a chain with nothing that counts, which is emptied and filled
// again in one transaction: the gate, where every packet that the filter wants comes by. It
// changes with the capture's share of the rate, when capd gets its first connection of its
// own or loses the last, and when the box gets its first VRF or loses the last: most boxes
// have neither most of the time, and each rule costs every packet 10 to 60 ns.

// gate is what the rules of a capture's gate depend on. Its order is that of what costs
// packets beyond the rate the least: the limit stands before the dead-man switch, which
// only those need that would be logged.
type gate struct {
	spec   Spec
	lacks  lacks
	family family
	first  string // what the names of the class's chains begin with
	groups int    // how many chains that log it leads to
	once   string // the hook whose second passes it leaves out; "" = none
}

// present is what is on the box that gates depend on.
type present struct {
	own [2]bool // connections of capd's own, as ownSets
	vrf bool    // a VRF device
}

// Where packets end that go through a gate, besides the chains that log.
const (
	partSampledOut = "sampled_out"
	partLimited    = "limited"
	partStalled    = "stalled"
)

func (g *gate) name() string { return g.first + "_gate" }

// rules gives the gate's rules; limit names the rate's limit, "" = none.
func (g *gate) rules(now present, limit string) ([]rule, error) {
	var rules []rule
	add := func(r rule, why string) {
		r.comment = comment(g.spec, why)
		rules = append(rules, r)
	}
	if g.once != "" {
		rules = secondPasses(g.spec, g.lacks, g.once, now.vrf && !g.lacks.vrf)
	}
	for i := range ownSets {
		if now.own[i] {
			add(rule{own: &ownSets[i], verdict: doReturn}, "capd's own connection")
		}
	}
	for _, flow := range g.spec.Exclude {
		lists, err := flow.Rules(g.family.link())
		if err != nil {
			return nil, err
		}
		for _, matches := range lists {
			add(rule{matches: matches, verdict: doReturn}, "excluded flow")
		}
	}
	if g.spec.Sample > 1 {
		key := keyNumGen
		if g.spec.SampleFlow {
			key = keySymHash
		}
		key = filter.Key(fmt.Sprintf("%s %d", key, g.spec.Sample))
		add(rule{matches: []filter.Match{{Key: key, Op: filter.NotEqual, Values: []filter.Span{{Lo: nativeUint32(0)}}}},
			verdict: doGoto, target: g.first + "_" + partSampledOut}, "not in the sample")
	}
	if limit != "" {
		add(rule{rate: limit, verdict: doGoto, target: g.first + "_" + partLimited}, "too many")
	}
	if !g.lacks.timeout {
		add(rule{matches: []filter.Match{{Key: keyAlive, Mask: nativeUint32(0), Op: filter.NotIn, Set: aliveSet}},
			verdict: doGoto, target: g.first + "_" + partStalled}, "capd does not answer")
	}
	if g.groups == 1 {
		add(rule{verdict: doGoto, target: g.first + "_0"}, "the only group")
		return rules, nil
	}
	cpus := g.spec.CPUs
	if cpus == 0 {
		cpus = g.groups
	}
	byCPU := make([]string, cpus)
	for i := range byCPU {
		byCPU[i] = fmt.Sprintf("%s_%d", g.first, i%g.groups)
	}
	add(rule{byCPU: byCPU}, "a group for each CPU")
	add(rule{verdict: doGoto, target: g.first + "_0"}, "other CPUs")
	return rules, nil
}

// secondPasses gives the rules for packets that a hook leaves out because the other one of
// the default pair sees them, or saw them (Spec.Once), or that ingress saw (Spec.Offloaded).
func secondPasses(s Spec, l lacks, hookName string, vrf bool) (rules []rule) {
	leave := func(why string, m ...filter.Match) {
		rules = append(rules, rule{matches: m, verdict: doReturn, comment: comment(s, why)})
	}
	not := func(m filter.Match) filter.Match {
		m.Op = filter.NotEqual
		return m
	}
	if hookName == "prerouting" {
		for _, device := range s.Offloaded {
			leave("seen at ingress", is(filter.IIfName, []byte(device)))
		}
	}
	if !s.Once {
		return rules
	}
	switch hookName {
	case "ingress":
		if !l.ipsec {
			leave("out of IPsec, seen before", is(keyIPsec, []byte{1}))
		}
	case "prerouting":
		leave("over lo, seen at output", is(keyIIf, nativeUint32(loopbackIfindex)))
		if !l.ipsec {
			// A copy that ip_mc_output loops back keeps the route it was sent by; a packet
			// that came in has none yet, so that nothing of rt matches it, not even
			// "missing" (nft_rt_get_eval breaks off without skb_dst). The kind of packet
			// keeps other routed packets out of this, those from a tunnel with metadata.
			leave("looped back, seen at output", not(is(filter.PktType, []byte{packetHost})), is(keyRtIPsec, []byte{0}))
			leave("out of IPsec, seen before", is(keyIPsec, []byte{1}))
		}
		if vrf {
			leave("passed on to a VRF, seen before", is(keyIIfKind, []byte("vrf")))
		}
	case "output":
		if vrf {
			// A packet sent through a VRF comes by twice, to the VRF and to its real device;
			// one to an address of the VRF itself only once.
			leave("on to a VRF's device, seen there", is(keyOIfKind, []byte("vrf")), not(is(keyFibType, nativeUint32(rtnLocal))))
		}
	}
	return rules
}

// gateChain is an installed gate.
type gateChain struct {
	gate  *gate
	index int // in part.chains
}

// fill puts a gate's rules into the transaction, and gives how many they are.
func (g *gate) fill(low *lowerer, c *nftables.Chain, now present, r *nftables.NamedObj) (int, error) {
	limit := ""
	if r != nil {
		limit = r.Name
	}
	rules, err := g.rules(now, limit)
	for _, r := range rules {
		low.conn.AddRule(&nftables.Rule{Table: low.table, Chain: c, Exprs: low.rule(r), UserData: commentData(r.comment)})
	}
	return len(rules), err
}

// refill puts gates into the transaction that are other than they have to be for what is on
// the box and a rate that is divided among share parts. done records it once the kernel has
// agreed.
func (t *Table) refill(share int, now present) (done func(), err error) {
	var changes []func()
	for _, c := range t.captures {
		for i := range c.parts {
			p := &c.parts[i]
			o := &t.tables[p.family]
			to, counts := p.rate, slices.Clone(p.rules)
			if p.rate != nil {
				to = rateOf(c.spec, share).object(o.table)
			}
			resized := to != nil && to.Name != p.rate.Name
			if now == t.now && !resized {
				continue
			}
			if resized {
				t.conn.AddObj(to)
			}
			low := t.lowerer(p.family, o)
			for _, g := range p.gates {
				t.conn.FlushChain(p.chains[g.index])
				if counts[g.index], err = g.gate.fill(low, p.chains[g.index], now, to); err != nil {
					return nil, err
				}
			}
			if resized {
				t.conn.DeleteObject(p.rate)
			}
			if low.err != nil {
				return nil, low.err
			}
			changes = append(changes, func() { p.rate, p.rules = to, counts })
		}
	}
	return func() {
		for _, change := range changes {
			change()
		}
		t.now = now
	}, nil
}

// adapt fills gates again, in a transaction of its own, for what is on the box now and for
// the captures that there are.
func (t *Table) adapt(now present) error {
	done, err := t.refill(t.ratedParts(), now)
	if err != nil {
		t.drop()
		return err
	}
	if err := t.conn.Flush(); err != nil {
		return err
	}
	done()
	return nil
}
