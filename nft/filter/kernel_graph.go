package filter

import "slices"

// simplify leads every way past the tests that what is known on it decides, and past
// those whose outcome makes no difference, and counts the ways to each test. It gives the
// first test.
func (g *graph) simplify(start place) place {
	for range 8 { // each round can open new short cuts; there are seldom more than two
		var changed bool
		start, changed = g.round(start)
		if !changed {
			break
		}
	}
	return start
}

// round is one pass of simplify. Tests lead to earlier ones only, so that going down from
// the start meets each test after all that lead to it.
func (g *graph) round(start place) (_ place, changed bool) {
	start = g.follow(start, nil)
	for i := range g.tests {
		g.tests[i].ways, g.tests[i].known = 0, nil
	}
	arrive := func(at place, f facts) {
		if at < 0 {
			return
		}
		t := &g.tests[at]
		if t.ways == 0 {
			t.known = f
		} else {
			t.known = t.known.common(f)
		}
		t.ways++
	}
	arrive(start, nil)
	for i := int(start); i >= 0; i-- {
		t := &g.tests[i]
		if t.ways == 0 {
			continue
		}
		for _, way := range []struct {
			to    *place
			holds bool
		}{{&t.yes, true}, {&t.no, false}} {
			f := t.known.with(t.literal, way.holds)
			to := g.follow(*way.to, f)
			if to != *way.to {
				*way.to, changed = to, true
			}
			arrive(to, f)
		}
	}
	return start, changed
}

// follow goes on from a place as far as the facts decide.
func (g *graph) follow(at place, f facts) place {
	for at >= 0 {
		t := &g.tests[at]
		holds, known := f.decide(t.literal)
		switch {
		case known && holds, t.yes == t.no && (t.safe || !g.exact):
			at = t.yes
		case known:
			at = t.no
		case g.dead(at, f, nil, new(int)):
			return miss
		default:
			return at
		}
	}
	return at
}

// dead tells whether no packet of which the facts hold, and which is too short for a test
// (or for none: nil), is wanted wherever the way leads from a place on. It gives up after
// a number of steps.
func (g *graph) dead(at place, f facts, short *literal, steps *int) bool {
	const most = 100
	for at >= 0 {
		if *steps++; *steps > most {
			return false
		}
		t := &g.tests[at]
		if short != nil && t.ends(*short) {
			return true
		}
		holds, known := f.decide(t.literal)
		switch {
		case known && holds:
			at = t.yes
			continue
		case known:
			at = t.no
			continue
		}
		if !g.dead(t.yes, f.with(t.literal, true), short, steps) {
			return false
		}
		at, f = t.no, f.with(t.literal, false)
	}
	return at == miss
}

// maxFacts bounds what is remembered on a way. The first facts are kept: they are the
// most general ones, such as the IP version.
const maxFacts = 40

func (f facts) with(l literal, holds bool) facts {
	if len(f) >= maxFacts {
		return f
	}
	return append(f[:len(f):len(f)], fact{l, holds})
}

// common gives the facts that are in both lists.
func (f facts) common(other facts) facts {
	var out facts
	for _, have := range f {
		if slices.ContainsFunc(other, func(o fact) bool { return o.holds == have.holds && o.id == have.id }) {
			out = append(out, have)
		}
	}
	return out
}
