package nft

import (
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
	return &links{conn, events}, nil
}

// close ends also a next that waits.
func (l *links) close() error { return errors.Join(l.conn.Close(), l.events.Close()) }

// news is what happened to interfaces.
type news struct {
	appeared []string // or were renamed, or changed otherwise
	gone     bool     // some went
	lost     bool     // news were lost: anything may have happened
}

// next waits for news. Its error is final.
func (l *links) next() (news, error) {
	messages, err := l.events.Receive()
	if errors.Is(err, unix.ENOBUFS) {
		return news{gone: true, lost: true}, nil
	}
	if err != nil {
		return news{}, err
	}
	var n news
	for _, m := range messages {
		switch m.Header.Type {
		case unix.RTM_DELLINK:
			n.gone = true
		case unix.RTM_NEWLINK:
			if name := linkName(m); name != "" {
				n.appeared = append(n.appeared, name)
			}
		}
	}
	return n, nil
}

// linkName gives the name of the interface that a message is about; "" = it has none.
func linkName(m netlink.Message) string {
	if len(m.Data) < unix.SizeofIfInfomsg {
		return ""
	}
	attrs, err := netlink.NewAttributeDecoder(m.Data[unix.SizeofIfInfomsg:])
	if err != nil {
		return ""
	}
	for attrs.Next() {
		if attrs.Type() == unix.IFLA_IFNAME {
			return attrs.String()
		}
	}
	return ""
}

// names lists the interfaces' names.
func (l *links) names() ([]string, error) {
	messages, err := l.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETLINK, Flags: netlink.Request | netlink.Dump},
		Data:   make([]byte, unix.SizeofIfInfomsg),
	})
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var names []string
	for _, m := range messages {
		if name := linkName(m); name != "" {
			names = append(names, name)
		}
	}
	return names, nil
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
