package filter

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Resolve reads an expression in which hosts may be named and gives it with the names
// replaced by their addresses, all of them: "host web" becomes "host (192.0.2.7 or
// 2001:db8::7)". The caller looks names up: the package itself opens no connection. lookup
// is called once for each name, in the order of the text. Where only addresses of one
// family can stand, only those are taken. Its errors are Parse's, and lookup's as *Error
// at the name's column, which unwrap to lookup's own.
func Resolve(text string, lookup func(name string) ([]netip.Addr, error)) (string, error) {
	r := &resolving{lookup: lookup, known: map[string][]netip.Addr{}}
	if _, err := parse(text, r); err != nil {
		return "", err
	}
	var b strings.Builder
	at := 0
	for _, e := range r.edits {
		b.WriteString(text[at:e.from])
		b.WriteString(e.text)
		at = e.to
	}
	b.WriteString(text[at:])
	return b.String(), nil
}

// resolving is what the parser needs for names of hosts.
type resolving struct {
	lookup func(string) ([]netip.Addr, error)
	known  map[string][]netip.Addr
	edits  []edit
}

// edit replaces text[from:to].
type edit struct {
	from, to int
	text     string
}

// resolve makes a node of a host's name.
func (p *parser) resolve(t token, q qualifier) (Node, error) {
	if err := p.hostProto(t, q, q.proto != IP6); err != nil {
		return nil, err
	}
	addresses, ok := p.hosts.known[t.text]
	if !ok {
		found, err := p.hosts.lookup(t.text)
		if err != nil {
			return nil, &Error{Field: "filter", Value: t.text, Column: t.at + 1, Hint: "write the address",
				Message: fmt.Sprintf("%q cannot be looked up: %v", t.text, err), cause: err}
		}
		for _, a := range found {
			if a = a.Unmap().WithZone(""); !slices.Contains(addresses, a) {
				addresses = append(addresses, a)
			}
		}
		p.hosts.known[t.text] = addresses
	}
	var nodes AnyOf
	var texts []string
	for _, a := range addresses {
		if a.Is4() && q.proto == IP6 || a.Is6() && (q.proto == IP || q.proto == ARP || q.proto == RARP) {
			continue
		}
		ones, _ := netip.AddrFromSlice(bytes.Repeat([]byte{0xff}, a.BitLen()/8))
		nodes = append(nodes, Host{q.proto, q.dir, a, ones, t.at + 1})
		texts = append(texts, a.String())
	}
	if len(nodes) == 0 {
		return nil, p.wrong(t, "write the address", "%q has no address of the kind that can stand here", t.text)
	}
	end := t.at + len(t.text)
	if t.kind == tokEscaped {
		end++ // the backslash
	}
	replaced := edit{t.at, end, texts[0]}
	if len(texts) > 1 {
		replaced.text = "(" + strings.Join(texts, " or ") + ")"
	}
	p.hosts.edits = append(p.hosts.edits, replaced)
	if len(nodes) == 1 {
		return nodes[0], nil
	}
	return group{nodes}, nil
}
