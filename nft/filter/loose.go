package filter

import (
	"fmt"
	"slices"
)

// This file writes a condition as rules where kernel_rules.go cannot: nf_tables lets a
// packet come through 16 chains at most, and a list of alternatives, each of which has
// alternatives inside, can need one for each. The rules written here are all in one chain,
// or in a few for conditions that are joined by and, and may want more than the filter
// does: too short packets, and alternatives of which some conditions are left out because
// writing them would multiply the rules. The Matcher does the rest.

// maxProduct bounds how many rules one of several alternatives may become.
const maxProduct = 12

// maxLooseChains bounds how many chains follow one another.
const maxLooseChains = 8

// loose writes chains.
type loose struct{ chains []Chain }

// looseRules writes a form as chains that want at least what it wants.
func looseRules(f form) []Chain {
	var l loose
	l.chain(positive(f, false), 0)
	return l.chains
}

// positive brings a form into one in which only single tests are negated.
func positive(f form, negated bool) form {
	list := func(parts []form) []form {
		out := make([]form, len(parts))
		for i, p := range parts {
			out[i] = positive(p, negated)
		}
		return out
	}
	switch f := f.(type) {
	case formConst:
		return formConst(bool(f) != negated)
	case formNot:
		return positive(f.x, !negated)
	case formAnd:
		if negated {
			return formOr(list(f))
		}
		return formAnd(list(f))
	case formOr:
		if negated {
			return formAnd(list(f))
		}
		return formOr(list(f))
	case literal:
		if negated {
			return f.negation()
		}
	}
	return f
}

// chain writes a form at whose end there is nothing more to try, and gives its name.
func (l *loose) chain(f form, depth int) string {
	name := ""
	if depth > 0 {
		name = fmt.Sprintf("part%d", depth)
	}
	at := len(l.chains)
	l.chains = append(l.chains, Chain{Name: name})
	verdict, target := Hit, ""
	if and, ok := f.(formAnd); ok && depth < maxLooseChains {
		// What comes first leads to what comes next. Tests that are one rule go along.
		n := 1
		for n < len(and) && count(and[n]) == 1 {
			n++
		}
		if n < len(and) && count(and[:n])*count(and[n]) > maxRules {
			verdict, target = Goto, l.chain(and[n:], depth+1)
			f = and[:n]
		}
	}
	for _, matches := range product(f) {
		l.chains[at].Rules = append(l.chains[at].Rules, Rule{Matches: plain(matches), Verdict: verdict, Target: target})
	}
	return name
}

// count is how many rules a form becomes when nothing is left out.
func count(f form) int {
	n := 1
	switch f := f.(type) {
	case formConst:
		if !f {
			return 0
		}
	case formAnd:
		for _, p := range f {
			n = min(n*count(p), 1<<20)
		}
	case formOr:
		n = 0
		for _, p := range f {
			n += count(p)
		}
	}
	return n
}

// product gives the rules of a form: a packet is wanted for which all tests of one of
// them hold. Conditions joined by and that would make too many rules are left out.
func product(f form) [][]literal {
	switch f := f.(type) {
	case formConst:
		if f {
			return [][]literal{nil}
		}
		return nil
	case literal:
		return [][]literal{{f}}
	case formOr:
		var out [][]literal
		for _, p := range f {
			out = append(out, product(p)...)
		}
		return out
	case formAnd:
		out := [][]literal{nil}
		for _, p := range f {
			right := product(p)
			if n := len(out) * len(right); n > maxProduct && n > len(right) && n > len(out) {
				continue
			}
			var next [][]literal
			for _, a := range out {
				for _, b := range right {
					switch {
					case len(a) == 0:
						next = append(next, b)
					case len(a)+len(b) > maxMatches:
						next = append(next, a) // the rest is left out
					default:
						if both := append(slices.Clip(a), b...); !contradict(both) {
							next = append(next, both)
						}
					}
				}
			}
			out = next
		}
		return out
	}
	return nil
}

// contradict tells whether no packet can pass all tests.
func contradict(all []literal) bool {
	var known facts
	for _, l := range all {
		if holds, decided := known.decide(l); decided && !holds {
			return true
		}
		known = known.with(l, true)
	}
	return false
}
