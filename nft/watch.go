package nft

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
)

// watch extends captures at ingress and egress to interfaces that appear later, and
// forgets chains that went with their interface. It ends when the links are closed. Between
// an interface's birth and its chain lies the time that the news takes, some milliseconds
// on a box that is not busy, in which its packets are not seen.
func (t *Table) watch() {
	defer close(t.watching)
	for {
		n, err := t.links.next()
		if ended := t.hear(n, err); ended {
			return
		}
	}
}

// hear does what news ask for, and tells whether there will be no more.
func (t *Table) hear(n news, final error) (ended bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return true
	}
	err := final
	if err == nil && n.gone && len(t.tables[netdev].bases) > 0 {
		err = t.forgetLost()
	}
	if err == nil && n.lost {
		n.appeared, err = t.links.names()
	}
	if err == nil {
		err = t.follow(n.appeared)
	}
	if err != nil {
		t.missed = fmt.Errorf("nft: follow new interfaces: %w", err)
	}
	return final != nil
}

// Missed says, once, what could not be done since the last call for interfaces that
// appeared: captures that cover them may not see them.
func (t *Table) Missed() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	missed := t.missed
	t.missed = nil
	return missed
}

// follow hooks the captures that cover interfaces into them, where they are not yet.
func (t *Table) follow(names []string) error {
	var errs []error
	for _, name := range names {
		if err := t.followOne(name); err != nil && !isGone(err) { // gone again is no error
			errs = append(errs, fmt.Errorf("interface %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func (t *Table) followOne(name string) error {
	type hooked struct {
		part *part
		jump jump
	}
	var added []hooked
	o := t.tables[netdev]
	if o.table == nil {
		return nil
	}
	o.bases = slices.Clone(o.bases)
	low := &lowerer{conn: t.conn, table: o.table, fam: netdev, sets: map[string]*nftables.Set{}}
	for _, c := range t.captures {
		if c.unhooked || !slices.ContainsFunc(c.spec.Interfaces, func(pattern string) bool { return covers(pattern, name) }) {
			continue
		}
		for i := range c.parts {
			p := &c.parts[i]
			if p.family != netdev {
				continue
			}
			for _, hookName := range netdevHooks {
				want := deviceBase(hookName, name)
				here := func(j jump) bool { return j.base.hook == *want.hook }
				if !slices.Contains(c.spec.Hooks, hookName) || slices.ContainsFunc(p.jumps, here) {
					continue
				}
				b := t.base(&o, want)
				r := rule{verdict: doJump, target: p.target, comment: comment(c.spec, "")}
				added = append(added, hooked{p, jump{b, t.conn.AddRule(&nftables.Rule{
					Table: o.table, Chain: b.chain, Exprs: low.rule(r), UserData: commentData(r.comment)})}})
			}
		}
	}
	if len(added) == 0 {
		return nil
	}
	if err := t.conn.Flush(); err != nil {
		return err
	}
	for _, h := range added {
		h.jump.base.users++
		h.part.jumps = append(h.part.jumps, h.jump)
	}
	t.tables[netdev] = o
	return nil
}
