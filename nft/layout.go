package nft

import (
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"capd/nft/filter"
)

// What follows describes rules before they are either printed or sent to the kernel:
// text.go and lower.go read the same description, so that they cannot differ.

type family uint8

const (
	inet family = iota
	netdev
)

func (f family) String() string {
	if f == netdev {
		return "netdev"
	}
	return "inet"
}

// kernel is the family's number in netlink messages.
func (f family) kernel() nftables.TableFamily {
	if f == netdev {
		return nftables.TableFamilyNetdev
	}
	return nftables.TableFamilyINet
}

// link is what filters have to expect at the hooks of the family.
func (f family) link() filter.Link {
	if f == netdev {
		return filter.LinkEthernet
	}
	return filter.LinkRaw
}

// tableRules is what one capture adds to one table.
type tableRules struct {
	family family
	target string // the chain that devices' packets go to; family netdev only
	rate   *rate
	sets   []filter.Set
	bases  []chain // base chains with nothing but the capture's jump in them
	chains []chain
}

type chain struct {
	name  string
	hook  *hook // nil: not a base chain
	rules []rule
	gate  *gate // its rules, where they depend on what is on the box; rules is empty then
}

type hook struct {
	name     string // as in Spec.Hooks
	device   string // netdev only
	priority int32
}

// rule is, in this order: matches, membership in the set of capd's own connections, a
// jump by CPU, the rate, a counter, a log message, a verdict.
type rule struct {
	matches []filter.Match
	own     *ownSet  // nil: not asked
	byCPU   []string // chains to go to, by CPU number
	rate    string
	count   role
	log     *logging
	verdict verdict
	target  string
	comment string
}

type logging struct {
	prefix    string
	group     uint16
	snaplen   uint32
	threshold uint16
}

// role says what the counter of a rule counts.
type role uint8

const (
	countNothing role = iota
	countSampledOut
	countLimited // by the rate
	countStalled // by the dead-man switch
	countMatched
)

type verdict uint8

const (
	fallThrough verdict = iota
	doReturn
	doJump
	doGoto
)

// lacks tells what the kernel cannot do; rules that need it are left out.
type lacks struct{ owner, timeout, ipsec, vrf bool }

// Keys that only this package's own rules use.
const (
	keyCPU     filter.Key = "meta cpu"
	keyIIf     filter.Key = "iif"
	keyAlive   filter.Key = "meta mark" // with mask 0: the same for every packet
	keySymHash filter.Key = "symhash mod"
	keyNumGen  filter.Key = "numgen random mod"
	keyRtIPsec filter.Key = "rt ipsec"
	keyIPsec   filter.Key = "meta ipsec"
	keyIIfKind filter.Key = "meta iifkind"
	keyOIfKind filter.Key = "meta oifkind"
	keyFibType filter.Key = "fib daddr . oif type"
	keyIIfType filter.Key = "meta iiftype"

	keyEthertype filter.Key = "ether type" // of the frame, with its tags
)

// aliveSet is the set whose only element Table.Renew keeps alive.
const aliveSet = "alive"

// The order in which hooks are laid out, whatever order they are asked for in.
var (
	inetHooks   = []string{"prerouting", "input", "forward", "output", "postrouting"}
	netdevHooks = []string{"ingress", "egress"}
)

// Bytes of constants: linux/if_packet.h PACKET_HOST, linux/rtnetlink.h RTN_LOCAL,
// net/flow.h LOOPBACK_IFINDEX: lo's index in every network namespace.
const (
	packetHost      = 0
	packetOther     = 3
	rtnLocal        = 2
	loopbackIfindex = 1
)

// Priority is where a hook's base chain stands among those of others: early on the way in,
// before defragmentation (-400) and destination NAT (-100), late on the way out, after
// source NAT (100) (include/uapi/linux/netfilter_ipv4.h, NF_IP_PRI_*).
func Priority(hookName string) int32 {
	if hookName == "postrouting" || hookName == "egress" {
		return 450
	}
	return -450
}

// is matches one value.
func is(key filter.Key, value []byte) filter.Match {
	return filter.Match{Key: key, Values: []filter.Span{{Lo: value}}}
}

// layout turns a valid Spec into rules. devices are the interfaces' names for ingress
// and egress.
func layout(s Spec, devices []string, l lacks) ([]tableRules, error) {
	var tables []tableRules
	for _, f := range []family{inet, netdev} {
		b := builder{spec: s, lacks: l, base: "capture_" + s.ID[:8], tableRules: tableRules{family: f}}
		if err := b.build(devices); err != nil {
			return nil, err
		}
		if len(b.chains) > 0 { // there may be no device yet
			tables = append(tables, b.tableRules)
		}
	}
	return tables, nil
}

// builder collects one table's rules.
type builder struct {
	spec  Spec
	lacks lacks
	base  string // what the names of the capture's chains begin with
	tableRules
}

// build lays out the base chains, then the chains behind them, in the order in which a
// packet meets them.
func (b *builder) build(devices []string) error {
	names := inetHooks
	if b.family == netdev {
		names = netdevHooks
	}
	var stamped, clocked []string
	for _, name := range names {
		switch {
		case !slices.Contains(b.spec.Hooks, name):
		case name == "output" || name == "postrouting":
			clocked = append(clocked, name)
		default:
			stamped = append(stamped, name)
		}
	}
	if len(stamped)+len(clocked) == 0 {
		return nil
	}
	if b.spec.Rate > 0 {
		b.rate = rateOf(b.spec, len(b.spec.links()))
	}
	program, err := b.spec.Filter.Compile(b.spec.link(b.family))
	if err != nil {
		return err
	}
	if err := b.class("stamped", stamped, b.spec.Stamped, program, devices); err != nil {
		return err
	}
	return b.class("clocked", clocked, b.spec.Clocked, program, devices)
}

// class lays out the hooks that share groups.
func (b *builder) class(class string, hooks []string, groups []uint16, program *filter.Program, devices []string) error {
	if len(hooks) == 0 {
		return nil
	}
	first := b.base + "_" + class
	g := &gate{spec: b.spec, lacks: b.lacks, family: b.family, first: first, groups: len(groups)}
	// What a hook leaves out is left out behind the filter, so that packets that the filter
	// does not want cost no more than the filter, unless other hooks go the same way.
	leavesOut := b.spec.Once || len(b.spec.Offloaded) > 0
	if leavesOut && len(hooks) == 1 {
		g.once = hooks[0]
	}
	target := first
	if len(program.Chains) == 0 {
		target = g.name()
	}
	for _, h := range hooks {
		if b.family == netdev {
			b.deviceHooks(h, target, devices)
		} else {
			b.inetHook(h, target, leavesOut && len(hooks) > 1)
		}
	}
	b.filter(first, g.name(), program)
	b.gate(g, groups)
	return nil
}

// comment names the capture and says what a rule is for.
func (b *builder) comment(text string) string { return comment(b.spec, text) }

func comment(s Spec, text string) string {
	c := "capture " + s.ID[:8]
	if s.Name != "" {
		c += " (" + s.Name + ")"
	}
	if text != "" {
		c += ": " + text
	}
	return c
}

// inetHook adds a base chain with a jump, and the chain for what is said of the hook
// alone, if anything is: interfaces and, if shared, what the hook leaves out before the filter.
func (b *builder) inetHook(name, target string, shared bool) {
	var rules []rule
	if shared {
		rules = secondPasses(b.spec, b.lacks, name, !b.lacks.vrf)
	}
	var keys []filter.Key
	switch name {
	case "prerouting", "input":
		keys = []filter.Key{filter.IIfName}
	case "output":
		keys = []filter.Key{filter.OIfName}
	default:
		keys = []filter.Key{filter.IIfName, filter.OIfName}
	}
	limited := len(b.spec.Interfaces) > 0 && !slices.Contains(b.spec.Interfaces, "*")
	for _, key := range keys {
		for _, pattern := range b.spec.Interfaces {
			if limited {
				rules = append(rules, rule{matches: []filter.Match{is(key, []byte(pattern))},
					verdict: doGoto, target: target, comment: b.comment("")})
			}
		}
	}
	if len(rules) > 0 {
		if !limited {
			rules = append(rules, rule{verdict: doGoto, target: target, comment: b.comment("")})
		}
		target = b.base + "_" + name
		b.chains = append(b.chains, chain{name: target, rules: rules})
	}
	b.jump(chain{name: name, hook: &hook{name: name, priority: Priority(name)}}, target)
}

// deviceHooks adds a base chain with a jump for each device: a chain of family netdev
// has one device.
func (b *builder) deviceHooks(name, target string, devices []string) {
	if len(b.spec.Offloaded) > 0 {
		target = b.offloaded(name, target)
	}
	b.target = target
	for _, device := range devices {
		b.jump(deviceBase(name, device), target)
	}
}

// deviceBase is a base chain at a device.
func deviceBase(hookName, device string) chain {
	return chain{name: hookName + "_" + device, hook: &hook{name: hookName, device: device, priority: Priority(hookName)}}
}

// jump adds a base chain that leads to target.
func (b *builder) jump(c chain, target string) {
	c.rules = []rule{{verdict: doJump, target: target, comment: b.comment("")}}
	b.bases = append(b.bases, c)
}

// byEthertype compares the IP version by the packet's protocol: meta nfproto says only
// "netdev" at ingress and egress.
func byEthertype(m filter.Match) filter.Match {
	ethertype := []byte{0x08, 0x00}
	if m.Values[0].Lo[0] == unix.NFPROTO_IPV6 {
		ethertype = []byte{0x86, 0xdd}
	}
	return filter.Match{Key: filter.EthType, Op: m.Op, Values: []filter.Span{{Lo: ethertype}}}
}

// dearness orders the matches of a rule, which may stand in any order, so that most packets
// are done with after the cheapest: a port is the most telling comparison and takes nothing
// for granted; a set costs as much as five comparisons.
func dearness(m filter.Match) int {
	switch {
	case m.Set != "" || m.Op == filter.In || m.Op == filter.NotIn:
		return 3
	case m.Mask != nil:
		return 2
	case m.Key == filter.ThSport || m.Key == filter.ThDport:
		return 0
	}
	return 1
}

// filter adds the filter's chains; what they want goes to logChain.
func (b *builder) filter(first, logChain string, p *filter.Program) {
	name := func(part string) string {
		if part == "" {
			return first
		}
		return first + "_" + part
	}
	for _, c := range p.Chains {
		out := chain{name: name(c.Name)}
		for _, r := range c.Rules {
			to := rule{matches: slices.Clone(r.Matches), comment: b.comment("")}
			for i, m := range to.matches {
				if m.Set != "" {
					to.matches[i].Set = name(m.Set)
				}
				if b.family == netdev && m.Key == filter.NFProto {
					to.matches[i] = byEthertype(m)
				}
			}
			slices.SortStableFunc(to.matches, func(x, y filter.Match) int { return dearness(x) - dearness(y) })
			switch r.Verdict {
			case filter.Hit:
				to.verdict, to.target = doGoto, logChain
			case filter.Return:
				to.verdict = doReturn
			case filter.Jump:
				to.verdict, to.target = doJump, name(r.Target)
			case filter.Goto:
				to.verdict, to.target = doGoto, name(r.Target)
			}
			out.rules = append(out.rules, to)
		}
		b.chains = append(b.chains, out)
	}
	for _, s := range p.Sets {
		s.Name = name(s.Name)
		b.sets = append(b.sets, s)
	}
}

// gate adds the chain for packets that the filter wants, and those that it leads to: each
// packet ends in one of them and is counted there, and nowhere else.
func (b *builder) gate(g *gate, groups []uint16) {
	b.chains = append(b.chains, chain{name: g.name(), gate: g})
	leaf := func(part string, count role, why string, log *logging) {
		b.chains = append(b.chains, chain{name: g.first + "_" + part, rules: []rule{{count: count, log: log, comment: b.comment(why)}}})
	}
	if b.spec.Sample > 1 {
		leaf(partSampledOut, countSampledOut, "sampled out", nil)
	}
	if b.rate != nil {
		leaf(partLimited, countLimited, "limited, rate", nil)
	}
	if !b.lacks.timeout {
		leaf(partStalled, countStalled, "limited, capd does not answer", nil)
	}
	for i, group := range groups {
		leaf(strconv.Itoa(i), countMatched, "matched", &logging{
			prefix: b.spec.Prefix, group: group, snaplen: b.spec.CopyRange(), threshold: b.spec.QueueThreshold})
	}
}

// covers tells whether an interface pattern covers a name.
func covers(pattern, name string) bool {
	if stem, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(name, stem)
	}
	return pattern == name
}
