package nft

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

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
	if err == nil {
		t.notice(n)
		err = t.leave(n.left)
	}
	if err == nil && n.gone && len(t.tables[netdev].bases) > 0 {
		err = t.forgetLost()
	}
	if err == nil {
		err = t.follow(n.appeared)
	}
	if now := t.now; err == nil && now.vrf != n.vrf {
		now.vrf = n.vrf
		err = t.adapt(now)
	}
	if err != nil {
		t.missed = fmt.Errorf("nft: follow new interfaces: %w", err)
	}
	return final != nil
}

// Change is an interface that captures name and that went, or came back.
type Change struct {
	ID        string // of the capture
	Interface string // the name or pattern, as in Spec.Interfaces
	// Left says what happened to the last interface of this name, as in "was deleted"; ""
	// = there is one again.
	Left string
	To   string // the name that it has now, where it was renamed
	At   time.Time
}

// maxChanges is how many changes wait for whoever asks for them.
const maxChanges = 1024

// Changes gives, once, what has happened since the last call to interfaces that captures
// name: one whose last interface goes sees nothing there, until there is one again.
func (t *Table) Changes() []Change {
	t.mu.Lock()
	defer t.mu.Unlock()
	changes := t.changes
	t.changes = nil
	return changes
}

// LinksChanged tells whether any interface has come, gone or been renamed since the last
// call.
func (t *Table) LinksChanged() bool { return t.linksChanged.Swap(false) }

// notice finds captures that name interfaces of which there is news.
func (t *Table) notice(n news) {
	now := time.Now()
	t.linksChanged.Store(true)
	for _, c := range t.captures {
		if c.unhooked {
			continue
		}
		for _, pattern := range c.spec.Interfaces {
			here := false
			for _, link := range t.links.known {
				here = here || covers(pattern, link.name)
			}
			change := Change{ID: c.spec.ID, Interface: pattern, At: now}
			for _, d := range n.left {
				if covers(pattern, d.name) {
					change.Left, change.To = d.how, d.to
				}
			}
			only := !strings.HasSuffix(pattern, "*") // where one has left, what is here is another
			if change.Left != "" && (!here || only) && !c.absent[pattern] {
				c.absent[pattern] = true
				t.keep(change)
			}
			if c.absent[pattern] && here {
				delete(c.absent, pattern)
				t.keep(Change{ID: c.spec.ID, Interface: pattern, At: now})
			}
		}
	}
}

// keep keeps a change for whoever asks.
func (t *Table) keep(c Change) {
	if len(t.changes) < maxChanges {
		t.changes = append(t.changes, c)
	}
}

// leave takes the base chains from devices that have another name now, so that it does not
// depend on the kernel whether they stay: since Linux 6.16 a chain goes by its device's name
// as it is, before it stayed with the device.
func (t *Table) leave(left []departure) error {
	o := t.tables[netdev]
	at := func(b *base) bool {
		return slices.ContainsFunc(left, func(d departure) bool { return d.to != "" && d.name == b.hook.device })
	}
	if !slices.ContainsFunc(o.bases, at) {
		return nil
	}
	for _, b := range o.bases {
		if at(b) {
			t.conn.FlushChain(b.chain)
			t.conn.DelChain(b.chain)
		}
	}
	if err := t.conn.Flush(); err != nil && !isGone(err) {
		return fmt.Errorf("leave a renamed interface: %w", err)
	}
	t.forget(at)
	return nil
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
		if c.unhooked || !slices.ContainsFunc(c.spec.devices(), func(pattern string) bool { return covers(pattern, name) }) {
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
