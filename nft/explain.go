package nft

import (
	"fmt"
	"slices"
	"strings"

	"capd/nft/filter"
)

// The preset "simple": one packet in SimpleSample, its first SimpleSnaplen bytes.
const (
	SimpleSample  = 100
	SimpleSnaplen = 160
)

// DefaultGroups is how many NFLOG groups a capture has for each kind of hook when nobody
// says otherwise: one for each CPU, at most 16.
func DefaultGroups() int { return min(CPUs(), 16) }

// WithGroups gives the Spec numbers that stand for the groups that the kernel will give, so
// many for each kind of hook that the capture has.
func (s Spec) WithGroups(perClass int) Spec {
	next := uint16(1)
	number := func(needed bool) (out []uint16) {
		for range perClass {
			if needed {
				out = append(out, next)
				next++
			}
		}
		return out
	}
	clocked := func(h string) bool { return h == "output" || h == "postrouting" }
	s.Stamped = number(slices.ContainsFunc(s.Hooks, func(h string) bool { return !clocked(h) }))
	s.Clocked = number(slices.ContainsFunc(s.Hooks, clocked))
	return s
}

// DefaultHooks gives the hooks of a capture for which none are asked. Of named interfaces
// it sees what they carry; else each packet once (Spec.Once), where it enters the box or
// is born on it; simple captures see what enters.
func DefaultHooks(interfaces []string, simple bool) (hooks []string, once bool) {
	switch {
	case len(interfaces) > 0:
		return []string{"ingress", "egress"}, false
	case simple:
		return []string{"prerouting"}, false
	}
	return []string{"prerouting", "output"}, true
}

// Framed tells whether all packets of such hooks come with their link-layer header.
func Framed(hooks []string) bool {
	return !slices.ContainsFunc(hooks, func(h string) bool { return !slices.Contains(netdevHooks, h) })
}

// link is what the filter has to expect at the hooks of the family.
func (s Spec) link(f family) filter.Link {
	if s.Bare || len(s.Offloaded) > 0 {
		return filter.LinkRaw
	}
	return f.link()
}

// devices are the names and patterns of the interfaces that ingress and egress are of.
func (s Spec) devices() []string {
	if len(s.Offloaded) > 0 {
		return s.Offloaded
	}
	return s.Interfaces
}

// links gives the links of a capture's hooks.
func (s Spec) links() []filter.Link {
	var links []filter.Link
	for _, f := range []family{inet, netdev} {
		names := inetHooks
		if f == netdev {
			names = netdevHooks
		}
		if slices.ContainsFunc(s.Hooks, func(h string) bool { return slices.Contains(names, h) }) {
			links = append(links, s.link(f))
		}
	}
	return links
}

// Staged tells whether the kernel decides the filter alone at all the capture's hooks. If
// it does not, filter.Matcher has to judge each packet, and sample and snaplen come after
// it: the Spec given is without them. The error is filter.Compile's.
func (s Spec) Staged() (kernel Spec, alone bool, err error) {
	for _, link := range s.links() {
		program, err := s.Filter.Compile(link)
		if err != nil {
			return s, false, err
		}
		if !program.Exact {
			s.Sample, s.SampleFlow, s.Snaplen = 0, false, 0
			return s, false, nil
		}
	}
	return s, true, nil
}

// etherHeader is the length of an Ethernet header in bytes.
const etherHeader = 14

// CopyRange is how many bytes of each packet the log rules hand over, which every reader of
// their groups has to know; 0 = all. At egress what is handed over begins with the
// link-layer header: where it does not count in Snaplen, there is that much more.
func (s Spec) CopyRange() uint32 {
	if s.Snaplen > 0 && s.Raw && slices.Contains(s.Hooks, "egress") {
		return s.Snaplen + etherHeader
	}
	return s.Snaplen
}

// Explanation is a capture in words.
type Explanation struct {
	Ruleset string   // as nft prints it
	Kernel  string   // what of the filter the kernel decides; "" = nothing: every packet
	User    string   // what of it is left to filter.Matcher; "" = nothing
	Hooks   []string // with their priorities: "prerouting -450"
	Reader  []string // what is done to a packet besides the filter, and where
}

// Explain says what Install would do with a capture, sample and snaplen as they were asked
// for (Staged is Explain's business). It needs no rights and touches nothing. Its errors
// are Ruleset's.
func Explain(s Spec) (Explanation, error) {
	s, err := s.check()
	if err != nil {
		return Explanation{}, err
	}
	kernel, alone, err := s.Staged()
	if err != nil {
		return Explanation{}, err
	}
	var e Explanation
	if e.Ruleset, err = Ruleset(kernel); err != nil {
		return Explanation{}, err
	}
	if e.Kernel, e.User, err = s.parts(); err != nil {
		return Explanation{}, err
	}
	for _, h := range append(slices.Clone(inetHooks), netdevHooks...) {
		if slices.Contains(s.Hooks, h) {
			text := fmt.Sprintf("%s %d", h, Priority(h))
			if slices.Contains(netdevHooks, h) && len(s.Offloaded) > 0 {
				text += " of " + strings.Join(s.Offloaded, " and ") + " instead of prerouting"
			}
			e.Hooks = append(e.Hooks, text)
		}
	}
	e.Reader = s.reader(alone)
	return e, nil
}

// parts gives the filter's two parts in words; where they are not the same at all hooks,
// each with the hooks that it is of.
func (s Spec) parts() (kernel, user string, err error) {
	type texts struct{ kernel, user string }
	links := s.links()
	all := make([]texts, len(links))
	for i, link := range links {
		if all[i].kernel, all[i].user, err = s.Filter.Parts(link); err != nil {
			return "", "", err
		}
	}
	if len(all) == 1 || all[0] == all[1] {
		return all[0].kernel, all[0].user, nil
	}
	join := func(one func(texts) string) string {
		var out []string
		for i, names := range [][]string{inetHooks, netdevHooks} {
			here := slices.DeleteFunc(slices.Clone(names), func(h string) bool { return !slices.Contains(s.Hooks, h) })
			text := one(all[i])
			if text == "" {
				text = "nothing"
			}
			out = append(out, strings.Join(here, ", ")+": "+text)
		}
		return strings.Join(out, "; ")
	}
	kernel = join(func(t texts) string { return t.kernel })
	if all[0].user != "" || all[1].user != "" {
		user = join(func(t texts) string { return t.user })
	}
	return kernel, user, nil
}

// reader says what happens to packets besides the filter.
func (s Spec) reader(alone bool) []string {
	where := "in the kernel"
	if !alone {
		where = "by capd, after its part of the filter"
	}
	var out []string
	switch {
	case s.Sample > 1 && s.SampleFlow:
		out = append(out, fmt.Sprintf("one flow in %d is kept, chosen %s", s.Sample, where))
	case s.Sample > 1:
		out = append(out, fmt.Sprintf("one packet in %d is kept, chosen %s", s.Sample, where))
	}
	if s.CopyRange() > s.Snaplen {
		where = "by capd, because at egress the kernel's begin with the link-layer header"
	}
	if s.Snaplen > 0 {
		out = append(out, fmt.Sprintf("the first %d bytes of each packet are kept, cut %s", s.Snaplen, where))
	} else {
		out = append(out, "packets are kept whole")
	}
	if s.HeadersOnly {
		out = append(out, "payloads are cut off by capd: headers only")
	}
	if s.Annotate {
		out = append(out, "packets get comments (docs/annotations.md)")
	}
	if s.Rate > 0 {
		out = append(out, fmt.Sprintf("at most %d packets a second are logged, by all running captures together (limits.max_packet_rate)", s.Rate))
	}
	groups := len(s.Stamped) + len(s.Clocked)
	return append(out, fmt.Sprintf("%d NFLOG groups are read; their numbers are chosen at the start", groups))
}
