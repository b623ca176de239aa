package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Hazard is something in the kernel because of which a capture sees less than its words
// say. The capture still does its work.
type Hazard struct {
	Code    string // Hazard…
	Message string
}

// Codes of hazards.
const (
	HazardFlowtable = "flowtable_bypass"
	HazardIngress   = "flowtable_ingress" // nothing is hidden: it is seen elsewhere
	HazardNAT       = "nat_half_blind"
	HazardNoSwitch  = "no_dead_man_switch"
	HazardTwice     = "seen_twice"
)

// Hazards looks in the calling thread's network namespace for what would hide packets from
// a capture. The error says that it could not look, for want of CAP_NET_ADMIN or of
// nftables; what was found until then is given too.
func Hazards(s Spec) ([]Hazard, error) {
	l, err := newLooker()
	if err != nil {
		return nil, err
	}
	defer l.close()
	return l.hazards(s)
}

// Hazards is as the function of this name, in the table's network namespace, and tells what
// this kernel cannot do for the capture too.
func (t *Table) Hazards(s Spec) ([]Hazard, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, ErrClosed
	}
	out, err := t.looker.hazards(s)
	return append(out, t.features.hazards(s)...), err
}

// looker reads what others have set up in nftables. It takes messages apart by itself and
// looks at no more of them than it needs, since rules of other programs can hold anything.
type looker struct{ conn, links *netlink.Conn }

func newLooker() (*looker, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("nft: open a netlink socket: %w", err)
	}
	links, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, fmt.Errorf("nft: open a route netlink socket: %w", errors.Join(err, conn.Close()))
	}
	return &looker{conn, links}, nil
}

func (l *looker) close() error { return errors.Join(l.conn.Close(), l.links.Close()) }

func (l *looker) hazards(s Spec) ([]Hazard, error) {
	var out []Hazard
	tables, err := l.flowtables()
	var there []linkNews
	if len(tables) > 0 {
		var listErr error
		there, listErr = listLinks(l.links)
		err = errors.Join(err, listErr)
	}
	for _, ft := range tables {
		if h, ok := ft.hazard(s, there); ok {
			out = append(out, h)
		}
	}
	named, byFlow := s.Filter.NamesHosts(), s.Sample > 1 && s.SampleFlow
	if !named && !byFlow || seesBothSides(s) {
		return out, err
	}
	where, natErr := l.translations()
	if len(where) > 0 {
		translated := fmt.Sprintf("addresses are translated here (%s), and ", strings.Join(where, ", "))
		at := "the hooks " + strings.Join(s.Hooks, ", ")
		const mend = "; --hook prerouting,postrouting sees both sides of the translation"
		if named {
			out = append(out, Hazard{HazardNAT, translated + "the filter names some: of a translated flow " + at + " see one direction with other addresses than the filter's" + mend})
		}
		if byFlow {
			out = append(out, Hazard{HazardNAT, translated + "the sample is by flow: to " + at + " the two directions of a translated flow are two flows, of which one may be in the sample and the other not" + mend})
		}
	}
	return out, errors.Join(err, natErr)
}

// seesBothSides tells whether a capture sees both directions of a flow with the same
// addresses, also where they are translated. Ingress and egress show what is on the wire,
// with prerouting and postrouting together every packet comes by once with either address.
func seesBothSides(s Spec) bool {
	return Framed(s.Hooks) || slices.Contains(s.Hooks, "prerouting") && slices.Contains(s.Hooks, "postrouting")
}

var familyNames = map[uint8]string{unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6",
	unix.NFPROTO_ARP: "arp", unix.NFPROTO_NETDEV: "netdev", unix.NFPROTO_BRIDGE: "bridge"}

// dump lists all objects of a kind; data are attributes that choose among them.
func (l *looker) dump(kind, family uint8, data []byte) ([]netlink.Message, error) {
	return l.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | int(kind)), Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{family, unix.NFNETLINK_V0, 0, 0}, data...),
	})
}

// decode reads the attributes behind the header of an nftables message.
func decode(data []byte) (family string, attrs *netlink.AttributeDecoder, err error) {
	if len(data) < 4 {
		return "", nil, errors.New("a message without header")
	}
	attrs, err = netlink.NewAttributeDecoder(data[4:])
	if err == nil {
		attrs.ByteOrder = binary.BigEndian
	}
	return familyNames[data[0]], attrs, err
}

// translations names the tables that have rules which translate addresses.
func (l *looker) translations() ([]string, error) {
	var out []string
	chains, err := l.dump(unix.NFT_MSG_GETCHAIN, unix.NFPROTO_UNSPEC, nil)
	if err != nil {
		return nil, fmt.Errorf("nft: list chains: %w", err)
	}
	type place struct {
		family uint8
		table  string
	}
	var places []place
	for _, m := range chains {
		_, attrs, err := decode(m.Data)
		if err != nil {
			return nil, fmt.Errorf("nft: list chains: %w", err)
		}
		table, kind := "", ""
		for attrs.Next() {
			switch attrs.Type() {
			case unix.NFTA_CHAIN_TABLE:
				table = attrs.String()
			case unix.NFTA_CHAIN_TYPE:
				kind = attrs.String()
			}
		}
		if p := (place{m.Data[0], table}); attrs.Err() == nil && kind == "nat" && !slices.Contains(places, p) {
			places = append(places, p)
		}
	}
	for _, p := range places {
		name, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_RULE_TABLE, Data: append([]byte(p.table), 0)}})
		if err != nil {
			return out, fmt.Errorf("nft: list rules: %w", err)
		}
		rules, err := l.dump(unix.NFT_MSG_GETRULE, p.family, name)
		if err != nil {
			return out, fmt.Errorf("nft: list rules: %w", err)
		}
		if slices.ContainsFunc(rules, translates) {
			out = append(out, fmt.Sprintf("table %s %s", familyNames[p.family], p.table))
		}
	}
	// iptables of old keeps its tables elsewhere, and lists them once they are in use.
	for file, name := range map[string]string{"/proc/net/ip_tables_names": "iptables-legacy", "/proc/net/ip6_tables_names": "ip6tables-legacy"} {
		names, err := os.ReadFile(file)
		if err == nil && slices.Contains(strings.Fields(string(names)), "nat") {
			out = append(out, name+" table nat")
		}
	}
	slices.Sort(out)
	return out, nil
}

// translates tells whether a rule has a statement that changes addresses, nft's own or
// one of iptables' targets.
func translates(m netlink.Message) bool {
	_, attrs, err := decode(m.Data)
	if err != nil {
		return false
	}
	found := false
	for attrs.Next() {
		if attrs.Type() != unix.NFTA_RULE_EXPRESSIONS {
			continue
		}
		attrs.Nested(func(list *netlink.AttributeDecoder) error {
			for list.Next() {
				list.Nested(func(expression *netlink.AttributeDecoder) error {
					found = found || changesAddresses(expression)
					return nil
				})
			}
			return nil
		})
	}
	return found
}

// changesAddresses looks at one expression of a rule.
func changesAddresses(attrs *netlink.AttributeDecoder) bool {
	name, target := "", ""
	for attrs.Next() {
		switch attrs.Type() {
		case unix.NFTA_EXPR_NAME:
			name = attrs.String()
		case unix.NFTA_EXPR_DATA:
			if name != "target" {
				continue
			}
			attrs.Nested(func(data *netlink.AttributeDecoder) error {
				for data.Next() {
					if data.Type() == unix.NFTA_TARGET_NAME {
						target = data.String()
					}
				}
				return nil
			})
		}
	}
	return slices.Contains([]string{"nat", "masq", "redir"}, name) ||
		slices.Contains([]string{"SNAT", "DNAT", "MASQUERADE", "REDIRECT", "NETMAP"}, target)
}
