package nft

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"capd/nft/filter"
)

// lacking names features, separated by commas, that Probe is not to find. Only the linker
// sets it, for tests of what is different then (-ldflags "-X capd/nft.lacking=owner").
var lacking string

// Probe finds out, in the calling thread's network namespace, what the kernel can do. It
// tries each thing in a transaction that deletes its own table again, so that nothing is
// left behind and nothing is seen by packets. The error says that nothing could be tried.
func Probe() (Features, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return Features{}, fmt.Errorf("nft: open a netlink socket: %w", err)
	}
	defer conn.CloseLasting()
	if _, err := conn.ListTablesOfFamily(nftables.TableFamilyINet); err != nil {
		switch {
		case errors.Is(err, unix.EPERM):
			err = fmt.Errorf("the capability CAP_NET_ADMIN is missing: %w", err)
		case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
			err = fmt.Errorf("the kernel has no nftables (nf_tables): %w", err)
		}
		return Features{}, fmt.Errorf("nft: list tables: %w", err)
	}
	p := prober{conn}
	one := []filter.Span{{Lo: nativeUint32(1)}}
	yes := []filter.Span{{Lo: []byte{1}}}
	matches := func(feature string, m ...filter.Match) error {
		return p.try(feature, inet, nil, rule{matches: m})
	}
	features := Features{
		Owner: p.try("tables with an owner (Linux 5.12)", inet, nil),
		Flows: p.try("sets of addresses with ports (NFT_SET_CONCAT, Linux 5.7)", inet, nil, rule{own: &ownSets[0]}, rule{own: &ownSets[1]}),
		Log:   p.try("NFLOG (modules nft_log and nfnetlink_log)", inet, nil, rule{log: &logging{group: 1, threshold: 1, snaplen: 1}}),
		Timeout: matches("sets with timeouts", filter.Match{Key: keyAlive, Mask: nativeUint32(0),
			Op: filter.NotIn, Set: aliveSet}),
		Sample: matches("numgen (module nft_numgen)", filter.Match{Key: keyNumGen + " 2", Values: one}),
		Flow:   matches("symhash (module nft_hash)", filter.Match{Key: keySymHash + " 2", Values: one}),
		Rate:   p.try("limit (module nft_limit)", inet, nil, rule{rate: "rate"}),
		IPsec:  matches("meta ipsec", filter.Match{Key: keyIPsec, Values: yes}, filter.Match{Key: keyRtIPsec, Values: yes}),
		VRF: matches("meta iifkind (Linux 5.6) and fib (module nft_fib_inet)",
			filter.Match{Key: keyIIfKind, Values: []filter.Span{{Lo: []byte("vrf")}}}, filter.Match{Key: keyFibType, Values: one}),
		Ingress: p.try("netdev ingress", netdev, &hook{name: "ingress", device: "lo"}),
		Egress:  p.try("netdev egress (Linux 5.16)", netdev, &hook{name: "egress", device: "lo"}),
	}
	return features.without(lacking), nil
}

// prober tries things out on a connection of its own.
type prober struct{ conn *nftables.Conn }

// try makes a table of the family with a chain and the rules in it, and deletes it, all
// in one transaction.
func (p prober) try(feature string, f family, h *hook, rules ...rule) error {
	// A table alone is to have an owner; with more in it, something else is tried.
	table := newTable(f, len(rules) == 0 && h == nil)
	table.Name = fmt.Sprintf("capd_probe_%d", os.Getpid())
	p.conn.CreateTable(table)
	low := &lowerer{conn: p.conn, table: table, fam: f, sets: map[string]*nftables.Set{aliveSet: newAlive(table)}}
	for _, r := range rules {
		if slices.ContainsFunc(r.matches, func(m filter.Match) bool { return m.Set == aliveSet }) {
			low.add(low.sets[aliveSet], aliveElements())
		}
		if r.own != nil {
			low.sets[r.own.name] = newOwn(table, r.own)
			low.add(low.sets[r.own.name], nil)
		}
		if r.rate != "" {
			p.conn.AddObj(&nftables.NamedObj{Table: table, Name: r.rate, Type: nftables.ObjTypeLimit,
				Obj: &expr.Limit{Type: expr.LimitTypePkts, Rate: 1, Unit: expr.LimitTimeSecond, Burst: 5, Over: true}})
		}
	}
	chain := &nftables.Chain{Name: "probe", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityFilter}
	if h != nil {
		chain.Device = h.device
		chain.Hooknum = map[string]*nftables.ChainHook{
			"ingress": nftables.ChainHookIngress, "egress": nftables.ChainHookEgress}[h.name]
	}
	p.conn.AddChain(chain)
	for _, r := range rules {
		p.conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: low.rule(r)})
	}
	p.conn.DelTable(table)
	if err := p.conn.Flush(); err != nil {
		return fmt.Errorf("this kernel lacks %s: %w: %w", feature, errors.ErrUnsupported, err)
	}
	return low.err
}

// CPUs gives the number of processors that the kernel may ever use, for Spec.CPUs:
// interrupts and packets can be on others than those this process may run on.
func CPUs() int {
	text, err := os.ReadFile("/sys/devices/system/cpu/possible") // such as 0-3 or 0,2-7
	if err == nil {
		last := strings.TrimSpace(string(text))
		last = last[strings.LastIndexAny(last, ",-")+1:]
		if n, err := strconv.Atoi(last); err == nil && n >= 0 {
			return min(n+1, maxCPUs)
		}
	}
	return 1
}
