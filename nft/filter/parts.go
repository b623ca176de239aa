package filter

import "slices"

// Parts gives the filter as two texts: what of it the kernel decides at such a link, and
// what is left to the Matcher; "" is nothing. Where the kernel cannot decide alone, it
// matches at least what the filter wants, and the Matcher judges the whole filter over
// again; user names the conditions that this is for. Its errors are those of Compile.
func (f *Filter) Parts(link Link) (kernel, user string, err error) {
	if f.All() {
		return "", "", nil
	}
	program, err := f.Compile(link)
	if err != nil {
		return "", "", err
	}
	if program.Exact {
		return f.String(), "", nil
	}
	s := splitter{newMeaning(link)}
	conjuncts, ok := f.root.(AllOf)
	if !ok {
		conjuncts = AllOf{f.root}
	}
	var can, cannot []Node
	for _, part := range conjuncts {
		weak, whole, err := s.weaken(part, false)
		if err != nil {
			return "", "", err
		}
		if weak != truth(true) {
			can = append(can, weak)
		}
		if !whole {
			cannot = append(cannot, part)
		}
	}
	if len(cannot) > 0 && hasLayer(f.root) {
		cannot = []Node{f.root} // what stands after vlan, mpls or pppoes means something else without it
	}
	if len(cannot) == 0 {
		// Every condition can be written as rules, but not all of them together: there are
		// too many (looseRules).
		return "at least: " + f.String(), f.String(), nil
	}
	text := func(parts []Node) string {
		if n := all(parts...); n != nil {
			return n.String()
		}
		return ""
	}
	return text(can), text(cannot), nil
}

// truth is a condition of which the kernel knows nothing: it is taken for true, or for
// false below a negation, so that what is left wants at least what the filter wants.
type truth bool

func (truth) node() {}

func (t truth) String() string {
	if t {
		return "anything"
	}
	return "nothing"
}

// inPart is a condition of which the kernel decides a part, such as a port behind a VLAN
// tag: the protocol, but not the number.
type inPart struct{ Node }

func (n inPart) String() string { return "(" + n.Node.String() + ", in part)" }

// splitter goes through a tree in the order of the text, as meaning does.
type splitter struct{ m *meaning }

// weaken leaves out what the kernel cannot decide; whole tells that nothing is. negated
// tells that the node stands below an odd number of negations.
func (s splitter) weaken(n Node, negated bool) (weak Node, whole bool, err error) {
	switch n := n.(type) {
	case AllOf:
		parts, decided, whole, err := s.list(n, negated, true)
		switch {
		case err != nil:
			return nil, false, err
		case decided != nil || len(parts) == 0:
			return truth(decided == nil), whole, nil
		case len(parts) == 1:
			return parts[0], whole, nil
		}
		return AllOf(parts), whole, nil
	case AnyOf:
		parts, decided, whole, err := s.list(n, negated, false)
		switch {
		case err != nil:
			return nil, false, err
		case decided != nil || len(parts) == 0:
			return truth(decided != nil), whole, nil
		case len(parts) == 1:
			return parts[0], whole, nil
		}
		return AnyOf(parts), whole, nil
	case Not:
		x, whole, err := s.weaken(n.X, !negated)
		if t, ok := x.(truth); ok {
			return !t, whole, err
		}
		return Not{x}, whole, err
	}
	c, err := s.m.node(n)
	if err != nil {
		return nil, false, err
	}
	exact := true
	switch f := kernelForm(c, negated, s.m.link, &exact).(type) {
	case formConst:
		if !exact {
			return truth(f), false, nil
		}
	default:
		if !exact {
			return inPart{n}, false, nil
		}
	}
	return n, true, nil
}

// list weakens parts that are joined by and, or by or. A part that decides the whole is
// decided; parts that make no difference are left out.
func (s splitter) list(nodes []Node, negated, and bool) (parts []Node, decided Node, whole bool, err error) {
	whole = true
	for _, n := range nodes {
		weak, all, err := s.weaken(n, negated)
		if err != nil {
			return nil, nil, false, err
		}
		whole = whole && all
		switch weak {
		case truth(and):
		case truth(!and):
			decided = weak
		default:
			parts = append(parts, weak)
		}
	}
	return parts, decided, whole, nil
}

// hasLayer tells whether a tree has a primitive that changes the meaning of later ones.
func hasLayer(n Node) bool {
	switch n := n.(type) {
	case AllOf:
		return slices.ContainsFunc(n, hasLayer)
	case AnyOf:
		return slices.ContainsFunc(n, hasLayer)
	case Not:
		return hasLayer(n.X)
	case VLAN, MPLS, PPPoE:
		return true
	}
	return false
}
