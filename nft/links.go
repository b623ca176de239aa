package nft

import (
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// links lists the interfaces of the network namespace in which it was opened.
type links struct{ conn *netlink.Conn }

func openLinks() (*links, error) {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, fmt.Errorf("nft: open a route netlink socket: %w", err)
	}
	return &links{conn}, nil
}

func (l *links) close() error { return l.conn.Close() }

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
		if len(m.Data) < unix.SizeofIfInfomsg {
			continue
		}
		attrs, err := netlink.NewAttributeDecoder(m.Data[unix.SizeofIfInfomsg:])
		if err != nil {
			return nil, fmt.Errorf("list interfaces: %w", err)
		}
		for attrs.Next() {
			if attrs.Type() == unix.IFLA_IFNAME {
				names = append(names, attrs.String())
			}
		}
		if err := attrs.Err(); err != nil {
			return nil, fmt.Errorf("list interfaces: %w", err)
		}
	}
	return names, nil
}

// expand gives the names of the interfaces that patterns stand for, each once.
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
		if !found {
			return nil, fmt.Errorf("%w: %s", ErrNoInterface, pattern)
		}
	}
	return out, nil
}
