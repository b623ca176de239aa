package nft

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// links lists the interfaces of the network namespace in which it was opened, and hears
// of changes.
type links struct {
	conn   *netlink.Conn
	events *netlink.Conn
	known  map[int32]linkNews // by index, as next has told them; whoever calls next owns it
}

func openLinks() (*links, error) {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, fmt.Errorf("nft: open a route netlink socket: %w", err)
	}
	events, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{Groups: unix.RTMGRP_LINK})
	if err != nil {
		return nil, fmt.Errorf("nft: listen for new interfaces: %w", errors.Join(err, conn.Close()))
	}
	l := &links{conn: conn, events: events}
	if l.known, err = l.list(); err != nil { // after listening: what changes meanwhile is heard
		return nil, fmt.Errorf("nft: %w", errors.Join(err, l.close()))
	}
	return l, nil
}

// close ends also a next that waits.
func (l *links) close() error { return errors.Join(l.conn.Close(), l.events.Close()) }

// news is what happened to interfaces.
type news struct {
	left     []departure
	appeared []string // or were renamed, or changed otherwise
	gone     bool     // some were deleted
	lost     bool     // news were lost: anything may have happened
	vrf      bool     // there is a VRF now
}

// departure is a name that no interface has any more.
type departure struct {
	name string
	how  string // what happened to the interface, as in "was deleted"
	to   string // its name now; "" = it has left
}

// next waits for news. Its error is final.
func (l *links) next() (news, error) {
	messages, err := l.events.Receive()
	if errors.Is(err, unix.ENOBUFS) {
		return l.compare()
	}
	if err != nil {
		return news{}, err
	}
	var n news
	for _, m := range messages {
		link, ok := parseLink(m)
		if !ok {
			continue
		}
		old, known := l.known[link.index]
		switch m.Header.Type {
		case unix.RTM_NEWLINK:
			n.appeared = append(n.appeared, link.name)
			l.known[link.index] = link
			if known && old.name != link.name {
				n.left = append(n.left, departure{old.name, "was renamed to " + link.name, link.name})
			}
		case unix.RTM_DELLINK:
			n.gone = true
			delete(l.known, link.index)
			if !known {
				continue
			}
			how := "was deleted"
			if link.moved {
				how = "was moved to another network namespace"
			}
			n.left = append(n.left, departure{name: old.name, how: how})
		}
	}
	n.vrf = l.vrf()
	return n, nil
}

// vrf tells whether there is a VRF among the known interfaces.
func (l *links) vrf() bool {
	for _, link := range l.known {
		if link.kind == "vrf" {
			return true
		}
	}
	return false
}

// compare finds out what happened while news were lost.
func (l *links) compare() (news, error) {
	now, err := l.list()
	if err != nil {
		return news{}, err
	}
	n := news{gone: true, lost: true}
	for index, old := range l.known {
		switch link, there := now[index]; {
		case !there:
			n.left = append(n.left, departure{name: old.name, how: "has left"})
		case link.name != old.name:
			n.left = append(n.left, departure{old.name, "was renamed to " + link.name, link.name})
		}
	}
	for _, link := range now {
		n.appeared = append(n.appeared, link.name)
	}
	l.known = now
	n.vrf = l.vrf()
	return n, nil
}

// linkNews is what a message says about an interface.
type linkNews struct {
	index int32
	name  string
	kind  string // such as vrf or veth; "" = none, or the message does not say
	moved bool   // to another network namespace
	// Indexes of the interface that it is a port of, and of the one that it stands on; 0 = none.
	master, link int32
}

// parseLink takes a message apart; it is not ok where it is about something else: of family
// bridge are those that tell of a bridge's ports.
func parseLink(m netlink.Message) (n linkNews, ok bool) {
	if len(m.Data) < unix.SizeofIfInfomsg || m.Data[0] != unix.AF_UNSPEC {
		return n, false
	}
	attrs, err := netlink.NewAttributeDecoder(m.Data[unix.SizeofIfInfomsg:])
	if err != nil {
		return n, false
	}
	elsewhere := false                                      // link is an index of another network namespace
	n.index = int32(binary.NativeEndian.Uint32(m.Data[4:])) // struct ifinfomsg: ifi_index
	for attrs.Next() {
		switch attrs.Type() {
		case unix.IFLA_IFNAME:
			n.name = attrs.String()
		case unix.IFLA_LINKINFO:
			attrs.Nested(func(info *netlink.AttributeDecoder) error {
				for info.Next() {
					if info.Type() == unix.IFLA_INFO_KIND {
						n.kind = info.String()
					}
				}
				return nil
			})
		case unix.IFLA_MASTER:
			n.master = attrs.Int32()
		case unix.IFLA_LINK:
			n.link = attrs.Int32()
		case unix.IFLA_LINK_NETNSID:
			elsewhere = true
		case unix.IFLA_NEW_NETNSID, unix.IFLA_NEW_IFINDEX:
			n.moved = true
		}
	}
	if elsewhere {
		n.link = 0
	}
	return n, n.name != ""
}

// list gives the interfaces by their index.
func (l *links) list() (map[int32]linkNews, error) {
	all, err := listLinks(l.conn)
	out := make(map[int32]linkNews, len(all))
	for _, n := range all {
		out[n.index] = n
	}
	return out, err
}

// listLinks lists the interfaces of a socket's network namespace, in the order of their
// indexes.
func listLinks(conn *netlink.Conn) ([]linkNews, error) {
	messages, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETLINK, Flags: netlink.Request | netlink.Dump},
		Data:   make([]byte, unix.SizeofIfInfomsg),
	})
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var out []linkNews
	for _, m := range messages {
		if n, ok := parseLink(m); ok {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, func(a, b linkNews) int { return cmp.Compare(a.index, b.index) })
	return out, nil
}

// names lists the interfaces' names, in the order of their indexes.
func (l *links) names() ([]string, error) {
	all, err := listLinks(l.conn)
	var names []string
	for _, n := range all {
		names = append(names, n.name)
	}
	return names, err
}

// expand gives the names of the interfaces that patterns stand for, each once. Those with
// a * may stand for none yet.
func (l *links) expand(patterns []string) ([]string, error) {
	there, err := l.names()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, pattern := range patterns {
		found := false
		for _, name := range there {
			if !covers(pattern, name) {
				continue
			}
			found = true
			if !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
		if !found && !strings.HasSuffix(pattern, "*") {
			return nil, fmt.Errorf("%w: %s", ErrNoInterface, pattern)
		}
	}
	return out, nil
}
