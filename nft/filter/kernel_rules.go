package filter

import (
	"fmt"
	"slices"
	"strings"
)

// draft is a rule that leads to a place of the graph.
type draft struct {
	matches []literal
	to      place
}

// writer writes a graph as chains.
type writer struct {
	graph
	names map[place]string // chains that were begun
	queue []place
}

// maxRules bounds how many rules begin with the same test in one chain: instead of more,
// the test is turned around, or what follows it gets a chain of its own.
const maxRules = 3

// maxMatches bounds how many tests stand in one rule. nf_tables allows a rule 128 expressions
// (NFT_RULE_MAXEXPRS), and a test can need five.
const maxMatches = 20

// rules writes the graph from start on.
func (g graph) rules(start place) []Chain {
	w := &writer{graph: g, names: map[place]string{start: ""}, queue: []place{start}}
	var chains []Chain
	for len(w.queue) > 0 {
		at := w.queue[0]
		w.queue = w.queue[1:]
		c := Chain{Name: w.names[at]}
		for _, d := range w.from(at, miss, 0) {
			r := Rule{Matches: plain(d.matches)}
			switch d.to {
			case hit:
				r.Verdict = Hit
			case miss:
				r.Verdict = Return
			default:
				r.Verdict, r.Target = Goto, w.chain(d.to)
			}
			c.Rules = append(c.Rules, r)
		}
		chains = append(chains, c)
	}
	return chains
}

// chain gives the name of the chain that begins at a place.
func (w *writer) chain(at place) string {
	name, ok := w.names[at]
	if !ok {
		name = fmt.Sprintf("part%d", len(w.names))
		w.names[at] = name
		w.queue = append(w.queue, at)
	}
	return name
}

// size is how many rules from would write, roughly, or more than maxRules.
func (w *writer) size(at, next place) int {
	n := 0
	for at != next && n <= maxRules {
		if at < 0 || w.tests[at].ways > 1 {
			return n + 1
		}
		t := w.tests[at]
		if t.yes == next {
			at, next = t.no, t.yes // written as its negation
			continue
		}
		n += w.size(t.yes, t.no)
		at = t.no
	}
	return n
}

// from writes the rules from a place on. Behind the last of them a packet goes on at
// next. before is how many tests stand before it in the same rule; where there are none, the
// place begins a chain and cannot be left to one.
func (w *writer) from(at, next place, before int) []draft {
	if at == next {
		return nil
	}
	if at < 0 || before > 0 && w.tests[at].ways > 1 {
		return []draft{{to: at}}
	}
	t := w.tests[at]
	l, yes, no := t.literal, t.yes, t.no
	// What is too short for a test goes on behind the rules, as what it does not hold for.
	if yes == next && (t.safe || !w.exact || next == miss) {
		l, yes, no = l.negation(), no, yes
	}
	// In an exact program, a packet that is too short is not wanted. Where others for which
	// the test does not hold may be, they have to be told apart from it.
	known := t.known.with(t.literal, no == t.yes && no != t.no)
	split := w.exact && !t.safe && !w.dead(no, known, &t.literal, new(int))
	behind := no
	if split {
		behind = miss
	}
	var inner []draft
	switch {
	case before < maxMatches && w.size(yes, behind) <= maxRules:
		inner = w.from(yes, behind, max(before, 0)+1)
	case before < maxMatches && no < 0 && t.safe:
		// Turned around: what is not so goes to its verdict, and the rest follows.
		return append([]draft{{[]literal{l.negation()}, no}}, w.from(yes, next, max(before, 1))...)
	case yes < 0:
		inner = []draft{{to: yes}}
	default:
		w.tests[yes].ways = 2 // a chain of its own
		inner = []draft{{to: yes}}
	}
	var out []draft
	for _, d := range inner {
		out = append(out, draft{append([]literal{l}, d.matches...), d.to})
	}
	if split {
		if no >= 0 {
			w.tests[no].ways = 2
		}
		return append(out, draft{[]literal{l.negation()}, no}, draft{to: miss})
	}
	return append(out, w.from(no, next, max(before, 1))...)
}

// plain gives a rule's matches, without those that others of them imply.
func plain(literals []literal) []Match {
	var out []Match
	for _, l := range literals {
		m := l.match
		implied := slices.ContainsFunc(literals, func(other literal) bool {
			o := other.match
			switch {
			case m.Key == NFProto && m.Op == Equal && m.Values[0].Lo[0] == afInet:
				return strings.HasPrefix(string(o.Key), "ip ")
			case m.Key == NFProto && m.Op == Equal:
				return strings.HasPrefix(string(o.Key), "ip6 ")
			}
			// What equals one value differs from all others.
			return m.Op == NotEqual && o.Op == Equal && o.subject() == m.subject() && o.Values[0].Hi == nil && m.holds(o.Values[0].Lo)
		})
		if !implied && !slices.ContainsFunc(out, m.equal) {
			out = append(out, m)
		}
	}
	return out
}

// maxChains bounds how many chains a packet may come through one after the other: nf_tables
// allows 16 (NFT_JUMP_STACK_SIZE), of which package nft needs five around the program.
const maxChains = 10

// tooDeep tells whether a way leads through too many chains.
func tooDeep(chains []Chain) bool {
	index := map[string]int{}
	depth := make([]int, len(chains))
	for i, c := range chains {
		index[c.Name] = i
	}
	var visit func(i, d int) bool
	visit = func(i, d int) bool {
		if depth[i] >= d {
			return false // seen behind as many chains
		}
		depth[i] = d
		return d > maxChains || slices.ContainsFunc(chains[i].Rules, func(r Rule) bool {
			return r.Verdict == Goto && visit(index[r.Target], d+1)
		})
	}
	return visit(0, 1)
}
