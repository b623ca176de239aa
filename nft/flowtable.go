package nft

import (
	"fmt"
	"slices"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"capd/nft/filter"
)

// A flowtable leads the packets of established, forwarded flows from the ingress of its
// devices straight to an egress, past all inet hooks. What stands at ingress before it sees
// them all: a capture of everything takes what comes in by such devices there, instead of at
// prerouting (Spec.Offloaded). This file finds flowtables, and says which devices that is
// possible for and what stays hidden.

// Offloaded looks in the calling thread's network namespace for devices of flowtables that a
// capture of everything takes at ingress. Its errors are those of Hazards.
func Offloaded() ([]string, error) {
	l, err := newLooker()
	if err != nil {
		return nil, err
	}
	defer l.close()
	return l.offloaded()
}

// Offloaded is as the function of this name, in the table's network namespace.
func (t *Table) Offloaded() ([]string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, ErrClosed
	}
	if t.features.Ingress != nil {
		return nil, nil
	}
	return t.looker.offloaded()
}

func (l *looker) offloaded() ([]string, error) {
	tables, err := l.flowtables()
	if err != nil || len(tables) == 0 {
		return nil, err
	}
	there, err := listLinks(l.links)
	if err != nil {
		return nil, err
	}
	seen, _ := detour(tables, there)
	return seen, nil
}

// detour tells which devices of flowtables a capture of everything can take at ingress, each
// packet once, and what of the flowtables' flows stays hidden from it, in words.
func detour(tables []flowtable, there []linkNews) (seen, hidden []string) {
	index := func(i int32) *linkNews {
		if n := slices.IndexFunc(there, func(d linkNews) bool { return d.index == i }); n >= 0 {
			return &there[n]
		}
		return &linkNews{}
	}
	hide := func(format string, args ...any) {
		if text := fmt.Sprintf(format, args...); !slices.Contains(hidden, text) {
			hidden = append(hidden, text)
		}
	}
	for _, ft := range tables {
		for _, name := range ft.devices {
			i := slices.IndexFunc(there, func(d linkNews) bool { return d.name == name })
			switch {
			case ft.priority <= Priority("ingress"):
				hide("%s, where the flowtable stands before capd (priority %d)", name, ft.priority)
				continue
			case strings.HasSuffix(name, "*"):
				hide("%s", name) // some that come later may be ports of a bridge
				continue
			case i < 0:
				continue
			}
			// What a bridge or bond takes from its ports comes by prerouting under its own
			// name; a VRF leaves its devices theirs.
			d := there[i]
			if master := index(d.master); d.master != 0 && master.kind != "vrf" {
				hide("%s, a port of %s", name, master.name)
				continue
			}
			var above []linkNews
			for _, upper := range there {
				if upper.link == d.index && slices.Contains([]string{"vlan", "ipvlan", "ipvtap"}, upper.kind) {
					above = append(above, upper)
				}
			}
			if i := slices.IndexFunc(above, func(d linkNews) bool { return d.kind != "vlan" }); i >= 0 {
				hide("%s, with %s on it", name, above[i].name) // they have its address
				continue
			}
			for _, vlan := range above {
				hide("%s, a VLAN on %s", vlan.name, name)
			}
			if !slices.Contains(seen, name) {
				seen = append(seen, name)
			}
		}
	}
	return seen, hidden
}

// offloaded adds the chain that lets through what would come by prerouting under its device's
// name: IP packets for this host, as it routes them too. Frames with VLAN tags go on to
// another device. Copies of multicast and broadcast sent from here, which are looped back,
// have no link-layer header; where no packet has one, they are the only ones that are not
// told to be for this host alone.
func (b *builder) offloaded(name, target string) string {
	not := func(m filter.Match) filter.Match {
		m.Op = filter.NotEqual
		return m
	}
	ip := [][]byte{{0x08, 0x00}, {0x86, 0xdd}}
	first := chain{name: b.base + "_" + name}
	add := func(why string, v verdict, to string, matches ...filter.Match) {
		first.rules = append(first.rules, rule{matches: matches, verdict: v, target: to, comment: b.comment(why)})
	}
	bare := not(is(keyIIfType, nativeUint16(unix.ARPHRD_ETHER)))
	for _, ethertype := range ip {
		add("", doGoto, target, bare, is(filter.EthType, ethertype), is(filter.PktType, []byte{packetHost}))
	}
	add("not seen at prerouting", doReturn, "", bare)
	for _, ethertype := range ip {
		add("", doGoto, target, is(keyEthertype, ethertype), not(is(filter.PktType, []byte{packetOther})))
	}
	b.chains = append(b.chains, first)
	return first.name
}

// flowtable is one that nftables has. linux/netfilter/nf_tables.h: NFTA_FLOWTABLE_*.
type flowtable struct {
	family, table, name string
	devices             []string // with a * at the end for any rest
	priority            int32    // at ingress
	offload             bool     // flows go to hardware
}

// hazard tells what a flowtable hides from a capture, or makes it see elsewhere. there is
// what detour takes.
func (f flowtable) hazard(s Spec, there []linkNews) (Hazard, bool) {
	forwarded := slices.ContainsFunc(s.Hooks, func(h string) bool { return h != "input" && h != "output" })
	concerned := len(s.Interfaces) == 0 || slices.ContainsFunc(s.Interfaces, func(pattern string) bool {
		return slices.ContainsFunc(f.devices, func(d string) bool { return covers(pattern, d) || strings.HasSuffix(d, "*") && covers(d, pattern) })
	})
	if !forwarded || !concerned {
		return Hazard{}, false
	}
	what := fmt.Sprintf("flowtable %s %s %s (%s)", f.family, f.table, f.name, strings.Join(f.devices, ", "))
	seen, hidden := detour([]flowtable{f}, there)
	if len(s.Offloaded) == 0 {
		seen = nil
	}
	if f.offload {
		text := what + " gives established flows to the network hardware, where no hook sees them: of forwarded flows only the first packets are captured"
		if len(seen) > 0 {
			text += "; flows that the hardware does not take are captured at ingress of " + strings.Join(seen, ", ")
		}
		return Hazard{HazardFlowtable, text}, true
	}
	var passed []string
	for _, h := range []string{"prerouting", "forward", "postrouting"} {
		if slices.Contains(s.Hooks, h) {
			passed = append(passed, h)
		}
	}
	past := what + " leads established flows past " + strings.Join(passed, ", ") + ": "
	switch {
	case len(passed) == 0:
		return Hazard{}, false // ingress stands before the flowtable, egress behind it
	case len(seen) > 0 && len(hidden) == 0:
		return Hazard{HazardIngress, past + "what comes in by " + strings.Join(seen, ", ") + " is captured at ingress instead, before it, so that nothing is hidden"}, true
	}
	var flags []string
	for _, d := range f.devices {
		flags = append(flags, "-i "+d)
	}
	mend := "ingress and egress see them all: " + strings.Join(flags, " ")
	if len(seen) == 0 {
		return Hazard{HazardFlowtable, past + "of forwarded flows only the first packets are captured there; " + mend}, true
	}
	return Hazard{HazardFlowtable, past + "what comes in by " + strings.Join(seen, ", ") + " is captured at ingress instead, before it, but of flows by others (" +
		strings.Join(hidden, "; ") + ") only the first packets; " + mend}, true
}

// Numbers of linux/netfilter/nf_tables.h that x/sys/unix does not have.
const (
	getFlowtable       = 23 // NFT_MSG_GETFLOWTABLE
	flowtableTable     = 1  // NFTA_FLOWTABLE_TABLE
	flowtableName      = 2
	flowtableHook      = 3
	flowtableFlags     = 7
	flowtablePriority  = 2 // NFTA_FLOWTABLE_HOOK_PRIORITY
	flowtableHookDevs  = 3 // NFTA_FLOWTABLE_HOOK_DEVS
	deviceName         = 1 // NFTA_DEVICE_NAME
	devicePrefix       = 2 // NFTA_DEVICE_PREFIX, Linux 6.16
	flowtableHWOffload = 1 // NFT_FLOWTABLE_HW_OFFLOAD
)

func (l *looker) flowtables() ([]flowtable, error) {
	messages, err := l.dump(getFlowtable, unix.NFPROTO_UNSPEC, nil)
	if err != nil {
		return nil, fmt.Errorf("nft: list flowtables: %w", err)
	}
	var out []flowtable
	for _, m := range messages {
		f, err := parseFlowtable(m.Data)
		if err != nil {
			return out, fmt.Errorf("nft: list flowtables: %w", err)
		}
		out = append(out, f)
	}
	return out, nil
}

func parseFlowtable(data []byte) (flowtable, error) {
	family, attrs, err := decode(data)
	if err != nil {
		return flowtable{}, err
	}
	f := flowtable{family: family}
	for attrs.Next() {
		switch attrs.Type() {
		case flowtableTable:
			f.table = attrs.String()
		case flowtableName:
			f.name = attrs.String()
		case flowtableFlags:
			f.offload = attrs.Uint32()&flowtableHWOffload != 0
		case flowtableHook:
			attrs.Nested(func(hook *netlink.AttributeDecoder) error {
				for hook.Next() {
					switch hook.Type() {
					case flowtablePriority:
						f.priority = int32(hook.Uint32())
					case flowtableHookDevs:
						hook.Nested(f.addDevices)
					}
				}
				return nil
			})
		}
	}
	return f, attrs.Err()
}

func (f *flowtable) addDevices(attrs *netlink.AttributeDecoder) error {
	for attrs.Next() {
		switch attrs.Type() {
		case deviceName:
			f.devices = append(f.devices, attrs.String())
		case devicePrefix:
			f.devices = append(f.devices, attrs.String()+"*")
		}
	}
	return nil
}
