package nft

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Counters reads the capture's totals; it works until Remove. While packets pass, the
// parts are of moments that follow each other.
func (t *Table) Counters(id string) (Counters, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return Counters{}, ErrClosed
	}
	c, ok := t.captures[id]
	if !ok {
		return Counters{}, fmt.Errorf("nft: counters of %q: %w", id, ErrUnknown)
	}
	if err := t.count(c); err != nil {
		// Where others can remove the rules, that is what may have happened.
		if again := t.ensure(); again == nil && t.lock != nil {
			c = t.captures[id]
			err = t.count(c)
		}
		if err != nil {
			return Counters{}, fmt.Errorf("nft: counters of capture %s: %w", id[:8], err)
		}
	}
	total := Counters{Matched: map[uint16]uint64{}, Reset: c.reset}
	for i := range c.counts {
		n := &c.counts[i]
		sum := n.lost + n.last
		total.Seen += sum // each packet ends in one chain, and has one counter there
		switch n.role {
		case countSampledOut:
			total.SampledOut += sum
		case countLimited:
			total.Limited += sum
		case countStalled:
			total.Limited += sum
			total.Stalled += sum
		case countMatched:
			total.Matched[n.group] += sum
		}
	}
	return total, nil
}

// count brings a capture's counts up to date. Those of a capture whose rules are gone stay
// as they were read last.
func (t *Table) count(c *capture) error {
	if c.gone {
		return nil
	}
	now, err := t.packets(c)
	if err != nil {
		return err
	}
	for i := range c.counts {
		n := &c.counts[i]
		if now[i] < n.last {
			n.lost += n.last
			c.reset = true
		}
		n.last = now[i]
	}
	return nil
}

// packets reads the counters of a capture's rules, in their order. Rules of one chain
// stand together.
func (t *Table) packets(c *capture) ([]uint64, error) {
	out := make([]uint64, len(c.counts))
	var chain *nftables.Chain
	var read map[uint64]uint64 // by handle
	for i, n := range c.counts {
		if n.rule.Chain != chain {
			chain = n.rule.Chain
			rules, err := t.conn.GetRules(n.rule.Table, chain)
			if err != nil {
				return nil, fmt.Errorf("list chain %s: %w", chain.Name, err)
			}
			read = make(map[uint64]uint64, len(rules))
			for _, r := range rules {
				for _, e := range r.Exprs {
					if counter, ok := e.(*expr.Counter); ok {
						read[r.Handle] = counter.Packets
					}
				}
			}
		}
		packets, ok := read[n.rule.Handle]
		if !ok {
			return nil, errors.New("a rule is missing in chain " + chain.Name)
		}
		out[i] = packets
	}
	return out, nil
}
