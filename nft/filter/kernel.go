package filter

import (
	"bytes"
	"fmt"
	"slices"
)

// This file turns a condition into chains of rules, in three steps.
//
// First the condition is brought into the kernel's terms: tests that the kernel cannot
// make are taken for true, or for false below a negation, so that what is left wants at
// least what the filter wants (kernelForm). Then it becomes a graph of tests, each with a
// test to go on with for yes and for no, in libpcap's order (graph.add). Last the graph is
// written as rules: a way through it that leads to a verdict is one rule, and a test that
// several ways lead to begins a chain (kernel_rules.go). So nothing is written twice, and
// the size of the rules is that of the filter.

// form is a condition in the kernel's terms.
type form interface{ form() }

type (
	formConst bool
	formAnd   []form
	formOr    []form
	formNot   struct{ x form }
)

func (formConst) form() {}
func (formAnd) form()   {}
func (formOr) form()    {}
func (formNot) form()   {}
func (literal) form()   {}

// kernelForm brings a condition into its form; negated tells that it stands below an odd
// number of negations. exact is set to false where the kernel cannot make a test.
func kernelForm(c cond, negated bool, link Link, exact *bool) form {
	switch c := c.(type) {
	case condConst:
		return formConst(c)
	case condNot:
		return formNot{kernelForm(c.x, !negated, link, exact)}
	case condAnd:
		return junction(c, true, negated, link, exact)
	case condOr:
		return junction(c, false, negated, link, exact)
	case condHint:
		l := literal{match: c.match, safe: c.safe}
		if c.match.Key.isTransport() {
			l.header, l.end = "th", map[Key]uint32{ThSport: 2, ThDport: 4}[c.match.Key]
		}
		return l
	case condKernel:
		var all formAnd
		for _, m := range c {
			all = append(all, literal{match: m, safe: true})
		}
		return all
	case condIfName:
		name := []Span{{Lo: []byte(c)}}
		return formOr{
			literal{match: Match{Key: IIfName, Values: name}, safe: true},
			literal{match: Match{Key: OIfName, Values: name}, safe: true},
		}
	case *condTest:
		if l, ok := c.literal(link); ok {
			return l
		}
	}
	*exact = false
	return formConst(!negated)
}

// junction joins the forms of parts by and, or by or, without lists inside lists of the
// same kind.
func junction(parts []cond, and, negated bool, link Link, exact *bool) form {
	var out []form
	for _, part := range parts {
		f := kernelForm(part, negated, link, exact)
		if c, ok := f.(formConst); ok {
			if bool(c) == and {
				continue // it makes no difference
			}
			// What stands after it is not looked at; what stands before can still end it all.
			out = append(out, f)
			break
		}
		inner, isAnd := f.(formAnd)
		alternatives, isOr := f.(formOr)
		switch {
		case and && isAnd:
			out = append(out, inner...)
		case !and && isOr:
			out = append(out, alternatives...)
		default:
			out = append(out, f)
		}
	}
	switch {
	case len(out) == 0:
		return formConst(and)
	case len(out) == 1:
		return out[0]
	case and:
		return formAnd(out)
	}
	return gather(out)
}

// alternative is one of several, in the shape that gather looks for: tests that cannot
// look beyond the end, and then one equation, or one of source and one of destination.
type alternative struct {
	form   form
	before formAnd   // the tests
	last   []literal // one or two equations; none: it has another shape
	name   string    // all of it but the values of the last
}

// joined is what several alternatives of one name become: for two equations, that of the
// first alternative's source, then all destinations, then all other sources. A packet
// that has a destination has a source, so that one which is too short is ended where the
// first alternative alone would have ended it.
func (a alternative) joined() form {
	out := slices.Clone(a.before)
	var last formOr
	for _, l := range a.last {
		l.match.Values = union(l.match.Values)
		l.match.Op = In
		if len(l.match.Values) == 1 {
			l.match.Op = Equal
		}
		last = append(last, l)
	}
	switch {
	case len(last) == 1 && len(out) == 0:
		return last[0]
	case len(last) == 1:
		return formAnd(append(out, last[0]))
	case len(out) == 0:
		return last
	}
	return formAnd(append(out, last))
}

// take adds the values of an alternative of the same name.
func (a *alternative) take(b alternative) {
	add := func(to *literal, from literal) {
		to.match.Values = append(to.match.Values, from.match.Values...) // newAlternative's own
	}
	switch {
	case len(a.last) == 1:
		add(&a.last[0], b.last[0])
		return
	case len(a.last) == 2:
		a.last = append(a.last, b.last[0])
	default:
		add(&a.last[2], b.last[0])
	}
	add(&a.last[1], b.last[1])
}

// newAlternative finds out the shape of a form.
func newAlternative(f form) alternative {
	a := alternative{form: f}
	parts, ok := f.(formAnd)
	if !ok {
		parts = formAnd{f}
	}
	var name bytes.Buffer
	for _, part := range parts[:len(parts)-1] {
		l, ok := part.(literal)
		if !ok || !l.safe {
			return a
		}
		fmt.Fprintf(&name, "%s %d %q %v;", l.match.Key, l.match.Op, l.match.Mask, l.match.Values)
	}
	a.before = parts[:len(parts)-1]
	last, ok := parts[len(parts)-1].(formOr)
	if !ok {
		last = formOr{parts[len(parts)-1]}
	}
	var literals []literal
	for _, f := range last {
		l, ok := f.(literal)
		if !ok || l.match.Op != Equal && l.match.Op != In || l.match.Mask != nil || isInterface(l.match.Key) {
			return a
		}
		fmt.Fprintf(&name, "%s;", l.match.Key)
		l.match.Values = slices.Clone(l.match.Values)
		literals = append(literals, l)
	}
	if len(literals) == 1 || len(literals) == 2 && literals[0].header == literals[1].header && literals[1].end > literals[0].end {
		a.last, a.name = literals, name.String()
	}
	return a
}

func isInterface(k Key) bool { return k == IIfName || k == OIfName }

// safe tells whether no test of a form can look beyond the end.
func safeForm(f form) bool {
	all := func(parts []form) bool {
		return !slices.ContainsFunc(parts, func(f form) bool { return !safeForm(f) })
	}
	switch f := f.(type) {
	case literal:
		return f.safe
	case formNot:
		return safeForm(f.x)
	case formAnd:
		return all(f)
	case formOr:
		return all(f)
	}
	return true
}

// excludes tells whether no packet can come to the last tests of both alternatives.
func (a alternative) excludes(b alternative) bool {
	n := numbers{}
	var known facts
	for _, f := range a.before {
		known = known.with(n.number(f).(literal), true)
	}
	return slices.ContainsFunc(b.before, func(f form) bool {
		holds, decided := known.decide(n.number(f).(literal))
		return decided && !holds
	})
}

// gather joins alternatives that compare the same thing with different values into one
// that compares it with a set. An alternative changes its place for it only where no
// packet is too short for one of those that it passes, or none can come to both.
func gather(parts []form) form {
	var out []alternative
	places := map[string]int{}
	for _, part := range parts {
		a := newAlternative(part)
		at, ok := places[a.name]
		free := ok && a.name != "" && !slices.ContainsFunc(out[at+1:], func(passed alternative) bool {
			return !safeForm(passed.form) && !passed.excludes(a)
		})
		if free {
			out[at].take(a)
			continue
		}
		if a.name != "" {
			places[a.name] = len(out)
		}
		out = append(out, a)
	}
	forms := make(formOr, len(out))
	for i, a := range out {
		forms[i] = a.form
		if a.name != "" {
			forms[i] = a.joined()
		}
	}
	if len(forms) == 1 {
		return forms[0]
	}
	return forms
}

// union sorts ranges of numbers and joins those that overlap.
func union(values []Span) []Span {
	values = slices.Clone(values)
	slices.SortFunc(values, func(a, b Span) int { return bytes.Compare(a.Lo, b.Lo) })
	end := func(s Span) []byte {
		if s.Hi == nil {
			return s.Lo
		}
		return s.Hi
	}
	out := values[:1]
	for _, v := range values[1:] {
		last := &out[len(out)-1]
		switch {
		case bytes.Compare(v.Lo, end(*last)) > 0:
			out = append(out, v)
		case bytes.Compare(end(v), end(*last)) > 0:
			last.Hi = end(v)
		}
	}
	return out
}

// graph is a condition as tests to go through.
type graph struct {
	tests []test
	exact bool
}

// numbers gives out the numbers of literals.
type numbers map[string]int

// of gives a thing's number, from 1 on.
func (n numbers) of(thing string) int {
	if _, ok := n[thing]; !ok {
		n[thing] = len(n) + 1
	}
	return n[thing]
}

// number gives all literals of a form their numbers.
func (n numbers) number(f form) form {
	list := func(parts []form) []form {
		for i, p := range parts {
			parts[i] = n.number(p)
		}
		return parts
	}
	switch f := f.(type) {
	case formNot:
		return formNot{n.number(f.x)}
	case formAnd:
		return formAnd(list(f))
	case formOr:
		return formOr(list(f))
	case literal:
		f.subject = n.of(f.match.subject())
		f.id = n.of(fmt.Sprintf("%s %d %v", f.match.subject(), f.match.Op, f.match.Values))
		return f
	}
	return f
}

// place is a test's number in the graph, or hit or miss.
type place int

const (
	hit  place = -1
	miss place = -2
)

type test struct {
	literal
	yes, no place
	ways    int   // how many ways lead here
	known   facts // what is known on all of them
}

// add appends the tests of a form and gives the place of the first.
func (g *graph) add(f form, yes, no place) place {
	switch f := f.(type) {
	case formConst:
		if f {
			return yes
		}
		return no
	case formAnd:
		for i := len(f) - 1; i >= 0; i-- {
			yes = g.add(f[i], yes, no)
		}
		return yes
	case formOr:
		for i := len(f) - 1; i >= 0; i-- {
			no = g.add(f[i], yes, no)
		}
		return no
	case formNot:
		return g.add(f.x, no, yes)
	case literal:
		g.tests = append(g.tests, test{literal: f, yes: yes, no: no})
	}
	return place(len(g.tests) - 1)
}
