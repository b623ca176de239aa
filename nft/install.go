package nft

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// count is a rule whose counter is part of a capture's totals.
type count struct {
	role  role
	group uint16
	rule  *nftables.Rule
	last  uint64 // as read last
	lost  uint64 // counted before somebody set the counter back
}

// Install puts a capture's rules in place, in one transaction: after an error nothing of
// it is there. ErrExists: a capture whose id begins with the same 8 digits is installed.
// ErrNoInterface: ingress or egress was asked for on an interface that is not there.
// errors.ErrUnsupported: the kernel lacks something that this capture needs.
func (t *Table) Install(s Spec) error {
	s, err := s.check()
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return ErrClosed
	}
	for id := range t.captures {
		if id[:8] == s.ID[:8] {
			return fmt.Errorf("nft: install capture %s: it %w", s.ID[:8], ErrExists)
		}
	}
	if err := t.ensure(); err != nil {
		return fmt.Errorf("nft: install capture %s: %w", s.ID[:8], err)
	}
	if err := t.features.allow(s); err != nil {
		return fmt.Errorf("nft: install capture %s: %w", s.ID[:8], err)
	}
	if err := t.install(s); err != nil {
		return fmt.Errorf("nft: install capture %s: %w", s.ID[:8], err)
	}
	return nil
}

func (t *Table) install(s Spec) error {
	var devices []string
	if slices.ContainsFunc(s.Hooks, func(h string) bool { return slices.Contains(netdevHooks, h) }) {
		var err error
		if devices, err = t.links.expand(s.devices()); err != nil {
			return err
		}
	}
	rules, err := layout(s, devices, t.features.lacks())
	if err != nil {
		return err
	}
	// The state is changed on a copy, which takes its place once the kernel has agreed.
	next := t.tables
	c := &capture{spec: s, absent: map[string]bool{}}
	share := t.ratedParts()
	if s.Rate > 0 {
		share += len(rules)
	}
	refilled, err := t.refill(share, t.now)
	if err != nil {
		t.drop()
		return err
	}
	for _, r := range rules {
		if r.rate != nil {
			r.rate = rateOf(s, share)
		}
		o, err := t.installTable(next[r.family], r, c)
		if err != nil {
			t.drop()
			return err
		}
		next[r.family] = o
	}
	if err := t.renew(); err != nil {
		t.drop()
		return err
	}
	if err := t.conn.Flush(); err != nil {
		for f := range next {
			if created := next[f].table != nil && t.tables[f].table == nil; created && errors.Is(err, unix.EEXIST) {
				return t.refused(family(f), err)
			}
		}
		return err
	}
	for _, p := range c.parts {
		for _, j := range p.jumps {
			j.base.users++
		}
	}
	refilled()
	t.tables = next
	t.captures[s.ID] = c
	return nil
}

// drop forgets what was collected for a transaction. The library can only send it or
// fail; an element for an anonymous set makes it fail without sending.
func (t *Table) drop() {
	if err := t.conn.SetAddElements(&nftables.Set{Anonymous: true}, nil); err != nil {
		_ = t.conn.Flush() // fails with err, and empties the transaction
	}
}

// installTable puts the capture's rules for one table into the transaction.
func (t *Table) installTable(o owned, r tableRules, c *capture) (owned, error) {
	if o.table == nil {
		o.table = t.create(r.family)
	}
	if !o.used() {
		low := &lowerer{conn: t.conn, table: o.table, fam: r.family}
		if t.features.Timeout == nil {
			o.alive = newAlive(o.table)
			low.add(o.alive, aliveElements())
		}
		for i := range ownSets {
			o.own[i] = newOwn(o.table, &ownSets[i])
			low.add(o.own[i], t.ownElements(&ownSets[i]))
		}
		if low.err != nil {
			return o, low.err
		}
	}
	low := t.lowerer(r.family, &o)
	p := part{family: r.family, target: r.target}
	if r.rate != nil {
		p.rate = r.rate.object(o.table)
		t.conn.AddObj(p.rate)
	}
	for _, s := range r.sets {
		p.sets = append(p.sets, low.namedSet(s))
	}

	// First all chains, so that every jump finds its target; then the rules.
	o.bases = slices.Clone(o.bases)
	var bases []*base
	for _, b := range r.bases {
		bases = append(bases, t.base(&o, b))
	}
	for _, ch := range r.chains {
		p.chains = append(p.chains, t.conn.AddChain(&nftables.Chain{Name: ch.name, Table: o.table}))
		p.rules = append(p.rules, len(ch.rules))
	}
	add := func(ch *nftables.Chain, r rule) *nftables.Rule {
		return t.conn.AddRule(&nftables.Rule{Table: o.table, Chain: ch, Exprs: low.rule(r), UserData: commentData(r.comment)})
	}
	for i, ch := range r.chains {
		if ch.gate != nil {
			p.gates = append(p.gates, gateChain{ch.gate, i})
			var err error
			if p.rules[i], err = ch.gate.fill(low, p.chains[i], t.now, p.rate); err != nil {
				return o, err
			}
			continue
		}
		for _, r := range ch.rules {
			installed := add(p.chains[i], r)
			if r.count == countNothing {
				continue
			}
			counted := count{role: r.count, rule: installed}
			if r.log != nil {
				counted.group = r.log.group
			}
			c.counts = append(c.counts, counted)
		}
	}
	for i, b := range r.bases {
		p.jumps = append(p.jumps, jump{bases[i], add(bases[i].chain, b.rules[0])})
	}
	c.parts = append(c.parts, p)
	return o, low.err
}

// lowerer gives what turns rules of a table into messages; o is its state.
func (t *Table) lowerer(f family, o *owned) *lowerer {
	low := &lowerer{conn: t.conn, table: o.table, fam: f, sets: map[string]*nftables.Set{aliveSet: o.alive}}
	for _, s := range o.own {
		low.sets[s.Name] = s
	}
	return low
}

// base finds a base chain among those of a table, or puts it into the transaction and adds
// it to them.
func (t *Table) base(o *owned, b chain) *base {
	if i := slices.IndexFunc(o.bases, func(x *base) bool { return x.hook == *b.hook }); i >= 0 {
		return o.bases[i]
	}
	added := t.addBase(*o, b)
	o.bases = append(o.bases, added)
	return added
}

// addBase puts a base chain into the transaction, under a name that nft can read back
// and that no other has.
func (t *Table) addBase(o owned, c chain) *base {
	name := fitChainName(c.name)
	taken := func(b *base) bool { return b.chain.Name == name }
	for i := 2; slices.ContainsFunc(o.bases, taken); i++ {
		name = fmt.Sprintf("%s.%d", fitChainName(c.name), i)
	}
	hooks := map[string]*nftables.ChainHook{
		"prerouting": nftables.ChainHookPrerouting, "input": nftables.ChainHookInput,
		"forward": nftables.ChainHookForward, "output": nftables.ChainHookOutput,
		"postrouting": nftables.ChainHookPostrouting,
		"ingress":     nftables.ChainHookIngress, "egress": nftables.ChainHookEgress,
	}
	accept := nftables.ChainPolicyAccept
	return &base{hook: *c.hook, chain: t.conn.AddChain(&nftables.Chain{
		Name: name, Table: o.table, Type: nftables.ChainTypeFilter, Hooknum: hooks[c.hook.name],
		Priority: nftables.ChainPriorityRef(nftables.ChainPriority(c.hook.priority)), Policy: &accept, Device: c.hook.device,
	})}
}

// Unhook takes the capture's jumps out of the base chains; further calls do nothing. Its
// chains and counters stay until Remove. Packets that are already in the chains may
// still be counted and logged until an RCU grace period has passed.
func (t *Table) Unhook(id string) error {
	return t.change("unhook", id, t.unhook, (*capture).unhook)
}

// Remove deletes everything of the capture, and what only it needed. Its share of the
// rate goes to the others.
func (t *Table) Remove(id string) error {
	var next [2]owned
	err := t.change("remove", id, func(c *capture) {
		t.unhook(c)
		next = t.remove(c)
	}, func(c *capture) {
		c.unhook()
		t.tables = next
		delete(t.captures, c.spec.ID)
	})
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil // and the rest is gone too
	}
	return t.shareOut()
}

// change runs a transaction on one capture; done records it once the kernel has agreed.
// Where a device has taken its chains with it (before Linux 6.16), what is missing is
// forgotten and the rest is tried again.
func (t *Table) change(what, id string, collect, done func(*capture)) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return ErrClosed
	}
	if err := t.ensure(); err != nil {
		return fmt.Errorf("nft: %s capture %.8s: %w", what, id, err)
	}
	c, ok := t.captures[id]
	if !ok {
		return fmt.Errorf("nft: %s %q: %w", what, id, ErrUnknown)
	}
	for again := true; ; again = false {
		collect(c)
		err := t.conn.Flush()
		if err == nil {
			done(c)
			return nil
		}
		if !again || !isGone(err) {
			return fmt.Errorf("nft: %s capture %s: %w", what, id[:8], err)
		}
		if lost := t.forgetLost(); lost != nil {
			return fmt.Errorf("nft: %s capture %s: %w", what, id[:8], errors.Join(err, lost))
		}
	}
}

func (t *Table) unhook(c *capture) {
	for _, p := range c.parts {
		for _, j := range p.jumps {
			_ = t.conn.DelRule(j.rule) // fails only without a handle, and then Flush says so
		}
	}
}

// unhook records that the capture's jumps are gone.
func (c *capture) unhook() {
	c.unhooked = true
	for i, p := range c.parts {
		for _, j := range p.jumps {
			j.base.users--
		}
		c.parts[i].jumps = nil
	}
}

// remove puts the deletion of all but the jumps into the transaction, and gives what the
// tables are after it.
func (t *Table) remove(c *capture) [2]owned {
	next := t.tables
	for _, p := range c.parts {
		o := &next[p.family]
		for _, ch := range p.chains {
			t.conn.FlushChain(ch)
		}
		for _, ch := range p.chains {
			t.conn.DelChain(ch)
		}
		for _, s := range p.sets {
			t.conn.DelSet(s)
		}
		if p.rate != nil {
			t.conn.DeleteObject(p.rate)
		}
		var kept []*base
		for _, b := range o.bases {
			ours := slices.ContainsFunc(p.jumps, func(j jump) bool { return j.base == b })
			if b.users > 1 || (b.users == 1 && !ours) {
				kept = append(kept, b)
				continue
			}
			t.conn.DelChain(b.chain)
		}
		o.bases = kept
		if t.needed(p.family, c) {
			continue
		}
		if o.alive != nil {
			t.conn.DelSet(o.alive)
			o.alive = nil
		}
		for i, s := range o.own {
			t.conn.DelSet(s)
			o.own[i] = nil
		}
		if p.family == netdev {
			t.conn.DelTable(o.table)
			o.table = nil
		}
	}
	return next
}

// needed tells whether a capture other than c has rules in a table.
func (t *Table) needed(f family, c *capture) bool {
	for _, other := range t.captures {
		if other != c && slices.ContainsFunc(other.parts, func(p part) bool { return p.family == f }) {
			return true
		}
	}
	return false
}

// forgetLost drops base chains from the state that the kernel has deleted along with
// their device.
func (t *Table) forgetLost() error {
	there, err := t.conn.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
	if err != nil {
		return fmt.Errorf("list chains: %w", err)
	}
	lost := func(b *base) bool {
		return b.hook.device != "" && !slices.ContainsFunc(there, func(c *nftables.Chain) bool {
			return c.Table.Name == tableName && c.Name == b.chain.Name
		})
	}
	t.forget(lost)
	return nil
}

// forget drops base chains that are gone from the state.
func (t *Table) forget(gone func(*base) bool) {
	for _, c := range t.captures {
		for i := range c.parts {
			p := &c.parts[i]
			p.jumps = slices.DeleteFunc(p.jumps, func(j jump) bool { return gone(j.base) })
		}
	}
	o := &t.tables[netdev]
	o.bases = slices.DeleteFunc(slices.Clone(o.bases), gone)
}
