package daemon

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"capd/ring"
)

// link is what a file says about an interface.
type link struct {
	name   string
	hwType uint16 // ARPHRD_*, include/uapi/linux/if_arp.h
}

// links resolves interface indexes to names. It asks the kernel once for all of them,
// again when an index is new (for one that the kernel did not know either, at most once a
// second), and when it is told that names have changed.
type links struct {
	changes atomic.Uint32 // how often names may have changed

	mu      sync.Mutex
	known   map[uint32]link
	missing map[uint32]time.Time // when the kernel was asked
}

// get never fails: an interface that is gone is called by its index.
func (l *links) get(index uint32) link {
	l.mu.Lock()
	defer l.mu.Unlock()
	if found, ok := l.known[index]; ok {
		return found
	}
	if index == 0 {
		return link{name: "any"}
	}
	if asked, ok := l.missing[index]; !ok || time.Since(asked) > time.Second {
		if known, err := listLinks(); err == nil {
			if l.known == nil {
				l.known = known
			}
			maps.Copy(l.known, known)
		}
		if found, ok := l.known[index]; ok {
			delete(l.missing, index)
			return found
		}
		if l.missing == nil {
			l.missing = map[uint32]time.Time{}
		}
		l.missing[index] = time.Now()
	}
	return link{name: fmt.Sprintf("if%d", index)}
}

// refresh asks the kernel for names again. Interfaces that are gone keep theirs: packets of
// them may still wait in a ring.
func (l *links) refresh() error {
	known, err := listLinks()
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.known == nil {
		l.known = map[uint32]link{}
	}
	maps.Copy(l.known, known)
	l.changes.Add(1)
	return nil
}

// unframed gives the first interface among those that the patterns cover (a * at the end
// stands for any rest) whose packets have no Ethernet header, "" where all have one, and the
// first whose packets have.
func (l *links) unframed(patterns []string) (bare, framed string, err error) {
	known, err := listLinks()
	if err != nil {
		return "", "", err
	}
	for _, index := range slices.Sorted(maps.Keys(known)) {
		found := known[index]
		if !slices.ContainsFunc(patterns, func(p string) bool { return covers(p, found.name) }) {
			continue
		}
		if ring.EthernetDevice(found.hwType) {
			framed = cmp.Or(framed, found.name)
		} else {
			bare = cmp.Or(bare, found.name)
		}
	}
	return bare, framed, nil
}

// covers tells whether a pattern (a * at the end stands for any rest) stands for an interface.
func covers(pattern, name string) bool {
	stem, open := strings.CutSuffix(pattern, "*")
	return pattern == name || open && strings.HasPrefix(name, stem)
}

// absent gives the patterns that stand for no interface here, and the names of those that
// are here, in their order.
func absent(patterns []string) (none, here []string, err error) {
	known, err := listLinks()
	if err != nil {
		return nil, nil, err
	}
	for _, index := range slices.Sorted(maps.Keys(known)) {
		here = append(here, known[index].name)
	}
	for _, p := range patterns {
		if !slices.ContainsFunc(here, func(name string) bool { return covers(p, name) }) {
			none = append(none, p)
		}
	}
	return none, here, nil
}

// listLinks dumps the interfaces of this network namespace by rtnetlink(7).
func listLinks() (map[uint32]link, error) {
	data, err := syscall.NetlinkRIB(syscall.RTM_GETLINK, syscall.AF_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	messages, err := syscall.ParseNetlinkMessage(data)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	known := make(map[uint32]link)
	for i := range messages {
		m := &messages[i]
		if m.Header.Type != syscall.RTM_NEWLINK || len(m.Data) < syscall.SizeofIfInfomsg {
			continue
		}
		info := (*syscall.IfInfomsg)(unsafe.Pointer(&m.Data[0]))
		attrs, err := syscall.ParseNetlinkRouteAttr(m)
		if err != nil {
			continue
		}
		for _, a := range attrs {
			if a.Attr.Type == syscall.IFLA_IFNAME && len(a.Value) > 1 {
				known[uint32(info.Index)] = link{name: string(a.Value[:len(a.Value)-1]), hwType: info.Type}
			}
		}
	}
	return known, nil
}
