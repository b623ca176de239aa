package nft

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// The box's rate is divided evenly among the captures' parts (what a capture has in one
// table), so that all together never log more, and a flood in one costs no other a packet.
// When a capture comes or goes, or the box's rate changes, every part gets a limit of another
// size. The kernel has no way to change a limit: another takes its place in the gates
// (gate.go).

// rate is a limit: of one capture, in one table.
type rate struct {
	name      string
	perSecond uint64
	burst     uint32
}

// unbounded stands for no limit in rules that have one, in packets a second: a packet uses
// up a nanosecond's worth (net/netfilter/nft_limit.c), less than any packet takes.
const unbounded = 1_000_000_000

// rateOf gives a part's share of the capture's rate when it is divided among n parts.
func rateOf(s Spec, n int) *rate {
	r := &rate{perSecond: max(s.Rate/uint64(n), 1)}
	if s.Rate == 0 {
		r.perSecond = unbounded
	}
	r.name = fmt.Sprintf("rate_%s_%d", s.ID[:8], r.perSecond)
	r.burst = uint32(min(max(r.perSecond/10, 5), 1<<31))
	return r
}

func (r *rate) object(t *nftables.Table) *nftables.NamedObj {
	return &nftables.NamedObj{Table: t, Name: r.name, Type: nftables.ObjTypeLimit, Obj: &expr.Limit{
		Type: expr.LimitTypePkts, Rate: r.perSecond, Unit: expr.LimitTimeSecond, Burst: r.burst, Over: true}}
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

// SetRate changes the box's rate, in packets a second, for the captures that are installed;
// 0 = no limit. Those that were installed without a limit keep none: unlimited tells how
// many they are.
func (t *Table) SetRate(perSecond uint64) (unlimited int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return 0, ErrClosed
	}
	if err := t.ensure(); err != nil {
		return 0, err
	}
	for _, c := range t.captures {
		if perSecond > 0 && c.ratedParts() == 0 && !c.unhooked {
			unlimited++
		}
		c.spec.Rate = perSecond
	}
	return unlimited, t.shareOut()
}

// shareOut divides the rate anew after a capture has gone, or the rate has changed.
func (t *Table) shareOut() error {
	if err := t.adapt(t.now); err != nil {
		return fmt.Errorf("nft: divide the rate: %w", err)
	}
	return nil
}
