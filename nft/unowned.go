package nft

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Before Linux 5.12 tables have no owner: everybody with CAP_NET_ADMIN can change capd's,
// and they outlive it. What stands in for the flag:
//
//   - A lock keeps two capds apart: an NFLOG group, which one process in a network
//     namespace can have, which needs CAP_NET_ADMIN, and which ends with the process.
//   - An empty chain marks the tables as capd's. Whoever holds the lock may take marked
//     tables for the leftovers of a capd that was killed; others are never touched.
//   - The dead-man switch ends the logging of leftovers.
//   - Before each change, and each time the switch is renewed, Table looks whether its
//     rules are still there, and otherwise puts them back (nft flush ruleset, as firewall
//     reloads have it, removes them).

// markChain is in every table of capd's that has no owner.
const markChain = "made_by_capd"

// lockGroup is the NFLOG group that is the lock. Nothing is ever logged to it. It is far
// from the numbers that people choose; ring goes on to the next where it meets it.
const lockGroup = 51965

// include/uapi/linux/netfilter/nfnetlink.h, nfnetlink_log.h.
const (
	ulogConfig  = netlink.HeaderType(unix.NFNL_SUBSYS_ULOG<<8 | 1) // NFULNL_MSG_CONFIG
	configCmd   = 1                                                // NFULA_CFG_CMD
	configBind  = 1                                                // NFULNL_CFG_CMD_BIND
	familyUnset = 0                                                // AF_UNSPEC, then NFNETLINK_V0
)

// lockNamespace takes the lock of the calling thread's network namespace; closing the
// connection gives it back. ErrOwned: another process has it.
func lockNamespace() (*netlink.Conn, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("nft: open a netlink socket: %w", err)
	}
	bind, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: configCmd, Data: []byte{configBind}}})
	if err == nil {
		_, err = conn.Execute(netlink.Message{
			Header: netlink.Header{Type: ulogConfig, Flags: netlink.Request | netlink.Acknowledge},
			Data:   append([]byte{familyUnset, unix.NFNETLINK_V0, lockGroup >> 8, lockGroup & 0xff}, bind...),
		})
	}
	if err != nil {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EBUSY) {
			err = fmt.Errorf("%w: is another capd running in this network namespace? %w", ErrOwned, err)
		}
		return nil, errors.Join(fmt.Errorf("nft: take NFLOG group %d, by which only one capd has the tables %s: %w", lockGroup, tableName, err), conn.Close())
	}
	return conn, nil
}

// clear deletes the tables of capd's that are there.
func (t *Table) clear() error {
	for _, f := range []family{inet, netdev} {
		chains, err := t.chains(f)
		if err != nil {
			return err
		}
		if !slices.Contains(chains, markChain) {
			continue
		}
		t.conn.DelTable(newTable(f, false))
		if err := t.conn.Flush(); err != nil && !isGone(err) {
			return fmt.Errorf("nft: remove the leftover table %s %s: %w", f, tableName, err)
		}
	}
	return nil
}

// chains lists the chains of the family's table that has capd's name.
func (t *Table) chains(f family) (names []string, err error) {
	all, err := t.conn.ListChainsOfTableFamily(f.kernel())
	if err != nil {
		return nil, fmt.Errorf("nft: list chains: %w", err)
	}
	for _, c := range all {
		if c.Table.Name == tableName {
			names = append(names, c.Name)
		}
	}
	return names, nil
}

// ensure puts rules back that somebody else has removed or changed. It does nothing where
// the kernel keeps others away. The error says that it could not look.
func (t *Table) ensure() error {
	if t.lock == nil {
		return nil
	}
	intact, err := t.intact()
	if err != nil || intact {
		return err
	}
	t.restore()
	return nil
}

// intact tells whether everything is there that was installed.
func (t *Table) intact() (bool, error) {
	var there [2][]string
	for f := range t.tables {
		if t.tables[f].table == nil {
			continue
		}
		var err error
		if there[f], err = t.chains(family(f)); err != nil {
			return false, err
		}
		if !slices.Contains(there[f], markChain) {
			return false, nil
		}
	}
	for _, c := range t.captures {
		for _, p := range c.parts {
			if whole, err := t.whole(p, there[p.family]); err != nil || !whole {
				return false, err
			}
		}
	}
	if slices.ContainsFunc(t.tables[netdev].bases, func(b *base) bool { return !slices.Contains(there[netdev], b.chain.Name) }) {
		// A device has taken its chains with it (watch hears of that too), or somebody has.
		if err := t.forgetLost(); err != nil {
			return false, err
		}
		names, err := t.links.names()
		if err != nil {
			return false, err
		}
		return true, t.follow(names)
	}
	return true, nil
}

// whole tells whether a part's chains have the rules that were put there, and its jumps are
// there. Base chains at devices may be gone.
func (t *Table) whole(p part, there []string) (bool, error) {
	for i, c := range p.chains {
		rules, err := t.rules(c)
		if err != nil || len(rules) != p.rules[i] {
			return false, err
		}
	}
	for _, j := range p.jumps {
		if j.base.hook.device != "" && !slices.Contains(there, j.base.chain.Name) {
			continue
		}
		rules, err := t.rules(j.base.chain)
		if err != nil || !slices.ContainsFunc(rules, func(r *nftables.Rule) bool { return r.Handle == j.rule.Handle }) {
			return false, err
		}
	}
	return true, nil
}

// rules lists a chain's rules; there are none where it is gone.
func (t *Table) rules(c *nftables.Chain) ([]*nftables.Rule, error) {
	rules, err := t.conn.GetRules(c.Table, c)
	if err != nil && !isGone(err) {
		return nil, fmt.Errorf("nft: list chain %s: %w", c.Name, err)
	}
	return rules, nil
}

// errRemoved is why rules are not there that capd has installed.
var errRemoved = errors.New("somebody else has removed capd's rules (nft flush ruleset?), which this kernel does not prevent (tables with an owner, Linux 5.12)")

// restore begins anew: it deletes what is left of capd's tables and installs every capture
// again that has not been unhooked. Their counts go on from what was read last.
func (t *Table) restore() {
	before := t.captures
	t.tables, t.captures = [2]owned{}, make(map[string]*capture, len(before))
	failed := t.clear()
	if failed == nil {
		table := t.create(inet)
		if err := t.conn.Flush(); err != nil {
			failed = t.refused(inet, err)
		} else {
			t.tables[inet].table = table
		}
	}
	for id, c := range before {
		ended := c.gone || c.unhooked
		err := failed
		if err == nil && !ended {
			err = t.install(c.spec)
		}
		if err == nil && !ended {
			t.captures[id].inherit(c)
			t.restored[id] = nil
			continue
		}
		c.parts, c.unhooked, c.gone, c.reset = nil, true, true, true
		t.captures[id] = c
		if !ended {
			t.restored[id] = fmt.Errorf("%w, and they could not be put back: %w", errRemoved, err)
		}
	}
}

// inherit goes on from another capture's counts.
func (c *capture) inherit(old *capture) {
	c.reset, c.absent = true, old.absent
	for _, n := range old.counts {
		if i := slices.IndexFunc(c.counts, func(m count) bool { return m.role == n.role && m.group == n.group }); i >= 0 {
			c.counts[i].lost += n.lost + n.last
		}
	}
}

// Restored gives, once, the captures whose rules somebody else has removed since the last
// call: with nil those that were put back, and see packets again, with an error those that
// were not, and see none.
func (t *Table) Restored() map[string]error {
	t.mu.Lock()
	defer t.mu.Unlock()
	restored := t.restored
	t.restored = map[string]error{}
	return restored
}
