package nft

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// The box's rate is divided evenly among the captures' parts (what a capture has in one
// table), so that all together never log more, and a flood in one costs no other a packet.
// When a capture comes or goes, every part gets a limit of another size. The kernel has no
// way to change a limit, nor to replace a rule and keep its counter: the limit stands in a
// chain with nothing that counts, which is emptied and filled again in one transaction.

// rate is a limit: of one capture, in one table.
type rate struct {
	name      string
	perSecond uint64
	burst     uint32
}

// rateOf gives a part's share of the capture's rate when it is divided among n parts, of
// which own are the capture's.
func rateOf(s Spec, n, own int) *rate {
	r := &rate{name: "rate_" + s.ID[:8], perSecond: max(s.Rate/uint64(n), 1)}
	if n != own {
		r.name += fmt.Sprintf("_%d", n)
	}
	r.burst = uint32(min(max(r.perSecond/10, 5), 1<<31))
	return r
}

func (r *rate) object(t *nftables.Table) *nftables.NamedObj {
	return &nftables.NamedObj{Table: t, Name: r.name, Type: nftables.ObjTypeLimit, Obj: &expr.Limit{
		Type: expr.LimitTypePkts, Rate: r.perSecond, Unit: expr.LimitTimeSecond, Burst: r.burst, Over: true}}
}

// rated is what a part has of the rate.
type rated struct {
	among  int // parts that share it
	object *nftables.NamedObj
	chains []ratedChain
}

// ratedChain is a chain in which the limit stands, and its rules.
type ratedChain struct {
	chain *nftables.Chain
	rules []rule
}

// fill puts the chain's rules into the transaction, with the limit of the given name.
func (c ratedChain) fill(low *lowerer, limit string) {
	for _, r := range c.rules {
		if r.rate != "" {
			r.rate = limit
		}
		low.conn.AddRule(&nftables.Rule{Table: low.table, Chain: c.chain, Exprs: low.rule(r), UserData: commentData(r.comment)})
	}
}

// ratedParts is how many parts of installed captures have a limit.
func (t *Table) ratedParts() (n int) {
	for _, c := range t.captures {
		n += c.ratedParts()
	}
	return n
}

func (c *capture) ratedParts() (n int) {
	for _, p := range c.parts {
		if p.rate != nil {
			n++
		}
	}
	return n
}

// divide puts limits of new sizes into the transaction where installed captures' are for
// another number of parts than n. done records it once the kernel has agreed.
func (t *Table) divide(n int) (done func(), err error) {
	type change struct {
		of *rated
		to rated
	}
	var changes []change
	for _, c := range t.captures {
		for _, p := range c.parts {
			if p.rate == nil || p.rate.among == n {
				continue
			}
			table := t.tables[p.family].table
			to := rated{n, rateOf(c.spec, n, c.ratedParts()).object(table), p.rate.chains}
			t.conn.AddObj(to.object)
			low := &lowerer{conn: t.conn, table: table, fam: p.family}
			for _, ch := range to.chains {
				t.conn.FlushChain(ch.chain)
				ch.fill(low, to.object.Name)
			}
			t.conn.DeleteObject(p.rate.object)
			if low.err != nil {
				return nil, low.err
			}
			changes = append(changes, change{p.rate, to})
		}
	}
	return func() {
		for _, c := range changes {
			*c.of = c.to
		}
	}, nil
}

// shareOut divides the rate anew after a capture has gone.
func (t *Table) shareOut() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil // and the rest is gone too
	}
	done, err := t.divide(t.ratedParts())
	if err != nil {
		t.drop()
		return fmt.Errorf("nft: divide the rate: %w", err)
	}
	if err := t.conn.Flush(); err != nil {
		return fmt.Errorf("nft: divide the rate: %w", err)
	}
	done()
	return nil
}

// isRated tells chains in which the limit stands.
func isRated(c chain) bool {
	return slices.ContainsFunc(c.rules, func(r rule) bool { return r.rate != "" })
}
