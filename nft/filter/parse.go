package filter

import (
	"fmt"
	"strings"
	"unicode"
)

// Bounds of a filter's text: a request has a megabyte at most, a list of a thousand
// hosts some 25,000 bytes.
const (
	maxText  = 256 << 10
	maxDepth = 100 // parentheses, not and index expressions inside each other
)

// Parse reads an expression of pcap-filter(7). The empty text wants every packet. Its
// errors are *Error with the column and what was expected there.
//
// Beyond libpcap's grammar it takes "ip proto tcp" for "ip proto \tcp", "gre" for "proto
// 47", "ifname NAME" on any link, and more parentheses around ids. What it refuses, and why, stands in docs/filters.md.
func Parse(text string) (*Filter, error) { return parse(text, nil) }

// parse is Parse; hosts says what names of hosts stand for.
func parse(text string, hosts *resolving) (*Filter, error) {
	if len(text) > maxText {
		return nil, &Error{Field: "filter", Message: fmt.Sprintf("the filter has %d bytes", len(text)),
			Hint: fmt.Sprintf("write it in %d bytes or less, with networks instead of many hosts", maxText)}
	}
	p := &parser{lexer: lexer{text: text}, hosts: hosts}
	if err := p.advance(); err != nil {
		return nil, err
	}
	if p.tok.kind == tokEnd {
		return &Filter{}, nil
	}
	root, _, err := p.expression(noQualifier)
	if err != nil {
		return nil, err
	}
	if p.tok.kind != tokEnd {
		return nil, p.unexpected(joint)
	}
	return New(ungroup(root)), nil
}

// qualifier is what stands before an id, and what a later id without one repeats.
type qualifier struct {
	proto Proto
	dir   Dir
	what  string // host, net, port, portrange, proto, protochain; "" = as host; see noQualifier
}

// noQualifier is that of a primitive that has none to repeat, such as "tcp".
var noQualifier = qualifier{what: "none"}

// parser reads tokens one ahead.
type parser struct {
	lexer lexer
	tok   token
	last  token // the one before it
	depth int
	hosts *resolving // nil: names of hosts are refused
	isID  bool       // the last term was an id alone, or such ids in parentheses
}

func (p *parser) advance() (err error) {
	p.last = p.tok
	p.tok, err = p.lexer.next()
	return err
}

// is tells whether the next token is this keyword or symbol.
func (p *parser) is(text string) bool {
	return (p.tok.kind == tokWord || p.tok.kind == tokSymbol) && p.tok.text == text
}

// accept takes the next token if it is this keyword or symbol.
func (p *parser) accept(text string) (bool, error) {
	if !p.is(text) {
		return false, nil
	}
	return true, p.advance()
}

func (p *parser) expect(text string) error {
	ok, err := p.accept(text)
	if err == nil && !ok {
		err = p.unexpected(text)
	}
	return err
}

// wrong is an error at a token.
func (p *parser) wrong(t token, hint, message string, args ...any) error {
	return p.lexer.wrong(t.at, t.text, fmt.Sprintf(message, args...), hint)
}

// unexpected is an error at the next token.
func (p *parser) unexpected(expected string) error {
	if p.tok.kind == tokEnd {
		return p.wrong(p.tok, "", "the filter ends where %s is expected", expected)
	}
	hint := p.misplaced(expected)
	if why, ok := refusedWords[p.tok.text]; ok && p.tok.kind == tokWord {
		if hint == "" || expected == joint && !strings.HasPrefix(hint, "write") {
			hint = why
		}
		return p.refused(hint)
	}
	return p.wrong(p.tok, hint, "%q stands where %s is expected", p.lexer.text[p.tok.at:p.lexer.at], expected)
}

// refused is an error at a keyword of pcap-filter(7) that is not supported.
func (p *parser) refused(hint string) error {
	if hint == "" {
		return p.wrong(p.tok, "leave it out", "%s is for kinds of links that the kernel's packet filter does not have", p.tok.text)
	}
	return p.wrong(p.tok, hint, "%s is not supported", p.tok.text)
}

// deeper bounds recursion; the caller calls p.shallower when it is done.
func (p *parser) deeper() error {
	p.depth++
	if p.depth > maxDepth {
		return p.wrong(p.tok, "write it with fewer parentheses", "more than %d levels inside each other", maxDepth)
	}
	return nil
}

func (p *parser) shallower() { p.depth-- }

// expression reads terms joined by and and or, which bind equally and to the left. The
// qualifier is what an id without one repeats; the one returned is what an id after the
// expression repeats.
func (p *parser) expression(q qualifier) (Node, qualifier, error) {
	left, q, err := p.booleanTerm(q)
	if err != nil {
		return nil, q, err
	}
	return p.more(left, q)
}

// more reads what follows a first term. After an id alone, which parentheses can begin
// with, only ids follow.
func (p *parser) more(left Node, q qualifier) (Node, qualifier, error) {
	ids := p.isID
	for p.is("and") || p.is("or") {
		and := p.is("and")
		if err := p.advance(); err != nil {
			return nil, q, err
		}
		at := p.tok
		var right Node
		var err error
		right, q, err = p.booleanTerm(q)
		if err == nil && ids && !p.isID {
			err = p.wrong(at, "write before the first of them what it is, such as host or port",
				"%q stands in a list of ids in parentheses", at.text)
		}
		if err != nil {
			return nil, q, err
		}
		if and {
			left = joinAnd(left, right)
		} else {
			left = joinOr(left, right)
		}
	}
	p.isID = ids
	return left, q, nil
}

// group is what stood in parentheses; it keeps lists apart that were written apart.
type group struct{ Node }

func joinAnd(left, right Node) Node {
	if l, ok := left.(AllOf); ok {
		return append(l, ungroup(right)) // left is more's own
	}
	return AllOf{ungroup(left), ungroup(right)}
}

func joinOr(left, right Node) Node {
	if l, ok := left.(AnyOf); ok {
		return append(l, ungroup(right)) // left is more's own
	}
	return AnyOf{ungroup(left), ungroup(right)}
}

func ungroup(n Node) Node {
	if g, ok := n.(group); ok {
		return g.Node
	}
	return n
}

// booleanTerm reads a term that is not a number.
func (p *parser) booleanTerm(q qualifier) (Node, qualifier, error) {
	at := p.tok
	node, number, q, err := p.term(q)
	if n, ok := number.(Number); ok && err == nil {
		p.isID = true
		node, err := p.number(at, uint32(n), q) // nothing is compared with it: an id
		return node, q, err
	}
	if err == nil && number != nil {
		err = p.wrong(at, comparisonHint(number), "a comparison is expected after the number %s: =, !=, <, >, <= or >=", number)
	}
	return node, q, err
}

// term reads a primitive, an id, a comparison, or something in parentheses. What stands
// in parentheses can also be a number: then node is nil.
func (p *parser) term(q qualifier) (node Node, number Expr, _ qualifier, err error) {
	if err := p.deeper(); err != nil {
		return nil, nil, q, err
	}
	defer p.shallower()
	p.isID = false
	switch {
	case p.is("not"):
		if err := p.advance(); err != nil {
			return nil, nil, q, err
		}
		node, q, err := p.booleanTerm(q)
		return Not{ungroup(node)}, nil, q, err
	case p.is("("):
		node, number, q, err = p.parentheses(q)
	case p.tok.kind == tokNumber:
		at := p.tok
		if number, err = p.arithmetic(0); err != nil {
			return nil, nil, q, err
		}
		if n, ok := number.(Number); ok && !p.isRelation() && !p.is(")") {
			p.isID = true
			node, err := p.number(at, uint32(n), q)
			return node, nil, q, err
		}
	case p.is("-"), p.is("len"):
		number, err = p.arithmetic(0)
	case p.tok.kind == tokWord:
		return p.primitive(q)
	case p.tok.kind == tokEnd, p.tok.kind == tokSymbol:
		return nil, nil, q, p.unexpected("a primitive such as host, net, port or tcp")
	default:
		p.isID = true
		node, err = p.id(q)
		return node, nil, q, err
	}
	if err != nil || number == nil {
		return node, nil, q, err
	}
	return p.relation(number, q)
}

// parentheses reads ( … ): an expression, ids, or a number. What stands inside gives no
// qualifier to what stands after.
func (p *parser) parentheses(q qualifier) (Node, Expr, qualifier, error) {
	if err := p.advance(); err != nil {
		return nil, nil, q, err
	}
	at := p.tok
	node, number, inner, err := p.term(q) // inner: what an id inside the parentheses repeats
	if err != nil {
		return nil, nil, q, err
	}
	if number != nil {
		if err := p.expectClose(number); err != nil {
			return nil, nil, q, err
		}
		if n, ok := number.(Number); ok && !p.isRelation() && !p.isOperator() && !p.is(")") && q != noQualifier {
			p.isID = true
			node, err := p.number(at, uint32(n), q)
			return node, nil, q, err
		}
		return nil, number, q, nil
	}
	if node, _, err = p.more(node, inner); err != nil {
		return nil, nil, q, err
	}
	return group{ungroup(node)}, nil, q, p.expect(")")
}

func (p *parser) expectClose(number Expr) error {
	if p.is(")") {
		return p.advance()
	}
	return p.unexpected(fmt.Sprintf(") or a comparison after the number %s", number))
}

// primitive reads what begins with a keyword.
func (p *parser) primitive(q qualifier) (Node, Expr, qualifier, error) {
	word := p.tok
	if proto, ok := protoWords[word.text]; ok {
		if err := p.advance(); err != nil {
			return nil, nil, q, err
		}
		return p.afterProto(proto, word, q)
	}
	done := func(node Node, err error) (Node, Expr, qualifier, error) { return node, nil, noQualifier, err }
	switch word.text {
	case "src", "dst", "host", "net", "port", "portrange", "proto", "protochain":
		node, q, err := p.head(Any)
		return node, nil, q, err
	case "broadcast", "multicast":
		return done(Cast{LinkLayer, word.text == "broadcast", word.at + 1}, p.advance())
	case "less", "greater":
		if err := p.advance(); err != nil {
			return done(nil, err)
		}
		if p.tok.kind != tokNumber {
			return done(nil, p.unexpected("a length in bytes"))
		}
		op := map[string]string{"less": "<=", "greater": ">="}[word.text]
		return done(Relation{op, PacketLength{}, Number(p.tok.value)}, p.advance())
	case "vlan":
		n, err := p.labelled("a VLAN's number", 4095)
		return done(VLAN{n, word.at + 1}, err)
	case "mpls":
		n, err := p.labelled("an MPLS label", 1<<20-1)
		return done(MPLS{n, word.at + 1}, err)
	case "pppoes":
		n, err := p.labelled("a PPPoE session's number", 65535)
		return done(PPPoE{n, word.at + 1}, err)
	case "llc":
		return done(p.llc())
	case "l1", "l2", "iih", "lsp", "snp", "csnp", "psnp":
		return done(ISISType{word.text, word.at + 1}, p.advance())
	case "inbound", "outbound":
		return done(Direction{word.text == "outbound"}, p.advance())
	case "ifname", "on":
		return done(p.ifName())
	}
	return done(nil, p.unexpected("a primitive such as host, net, port or tcp"))
}

// afterProto reads what follows a protocol's name.
func (p *parser) afterProto(proto Proto, word token, q qualifier) (Node, Expr, qualifier, error) {
	switch {
	case p.is("["):
		number, err := p.load(proto, word)
		if err == nil {
			number, err = p.arithmeticFrom(number, 0)
		}
		if err != nil {
			return nil, nil, q, err
		}
		return p.relation(number, q)
	case p.is("broadcast"), p.is("multicast"):
		broadcast := p.is("broadcast")
		at := p.tok
		switch {
		case proto == IP && broadcast:
			return nil, nil, q, p.wrong(at, "write ip dst host and the network's broadcast address, or ether broadcast",
				"ip broadcast depends on a netmask, of which a box has many")
		case proto != LinkLayer && proto != IP && (proto != IP6 || broadcast):
			return nil, nil, q, p.wrong(at, "", "%s has no %s", proto, at.text)
		}
		return Cast{proto, broadcast, word.at + 1}, nil, noQualifier, p.advance()
	case p.is("src"), p.is("dst"), p.is("host"), p.is("net"), p.is("port"), p.is("portrange"), p.is("proto"), p.is("protochain"):
		node, q, err := p.head(proto)
		return node, nil, q, err
	case proto == LinkLayer:
		return nil, nil, q, p.unexpected("host, src, dst, proto, broadcast, multicast or [")
	}
	return Is{proto, word.at + 1}, nil, noQualifier, nil
}

// head reads the qualifiers of an id, and the id.
func (p *parser) head(proto Proto) (Node, qualifier, error) {
	q := qualifier{proto: proto}
	for _, first := range []string{"src", "dst"} {
		ok, err := p.accept(first)
		if err != nil {
			return nil, q, err
		}
		if !ok {
			continue
		}
		other := map[string]string{"src": "dst", "dst": "src"}[first]
		q.dir = map[string]Dir{"src": Src, "dst": Dst}[first]
		if p.is("or") || p.is("and") {
			q.dir = map[string]Dir{"or": SrcOrDst, "and": SrcAndDst}[p.tok.text]
			if err := p.advance(); err != nil {
				return nil, q, err
			}
			if err := p.expect(other); err != nil {
				return nil, q, err
			}
		}
		break
	}
	at := p.tok
	switch {
	case p.is("host"), p.is("net"), p.is("port"), p.is("portrange"):
		q.what = p.tok.text
	case p.is("proto"), p.is("protochain"):
		if q.dir != SrcOrDst {
			return nil, q, p.unexpected("host, net, port or portrange")
		}
		q.what = p.tok.text
	}
	if q.what != "" {
		if err := p.advance(); err != nil {
			return nil, q, err
		}
	}
	if q.what == "protochain" {
		return nil, q, p.wrong(at, "write proto NUMBER for the first header after IPv4's or IPv6's; filter_v1's protocol finds the one after all extension headers",
			"protochain is a loop, which no filter in the kernel can have")
	}
	node, err := p.id(q)
	return node, q, err
}

// ids reads ids in parentheses, joined by and and or.
func (p *parser) ids(q qualifier) (Node, error) {
	if err := p.advance(); err != nil { // the parenthesis
		return nil, err
	}
	left, err := p.id(q)
	for err == nil && (p.is("and") || p.is("or")) {
		and := p.is("and")
		if err = p.advance(); err != nil {
			break
		}
		var right Node
		if right, err = p.id(q); err == nil && and {
			left = joinAnd(left, right)
		} else if err == nil {
			left = joinOr(left, right)
		}
	}
	if err != nil {
		return nil, err
	}
	return group{ungroup(left)}, p.expect(")")
}

// plainNumber reads a number that is no expression.
func (p *parser) plainNumber(what string) (uint32, error) {
	if ok, err := p.accept("("); ok || err != nil {
		if err != nil {
			return 0, err
		}
		if err := p.deeper(); err != nil {
			return 0, err
		}
		defer p.shallower()
		n, err := p.plainNumber(what)
		if err != nil {
			return 0, err
		}
		return n, p.expect(")")
	}
	if p.tok.kind != tokNumber {
		return 0, p.unexpected(what)
	}
	n := p.tok.value
	return n, p.advance()
}

// labelled reads a keyword that a number can follow; -1 = none does.
func (p *parser) labelled(what string, largest uint32) (int, error) {
	if err := p.advance(); err != nil {
		return 0, err
	}
	if p.tok.kind != tokNumber && !p.is("(") {
		return -1, nil
	}
	at := p.tok
	n, err := p.plainNumber(what)
	if err == nil && n > largest {
		err = p.wrong(at, "", "%d is not %s: they go from 0 to %d", n, what, largest)
	}
	return int(min(n, largest)), err
}

// llc reads llc and the kind of frame, if one follows.
func (p *parser) llc() (Node, error) {
	n := LLC{Column: p.tok.at + 1}
	if err := p.advance(); err != nil {
		return n, err
	}
	if _, ok := llcTypes[p.tok.text]; ok && p.tok.kind != tokSymbol {
		n.Type = p.tok.text
		return n, p.advance()
	}
	if p.tok.kind == tokName {
		return n, p.wrong(p.tok, "write one of i, s, u, rr, rnr, rej, ui, ua, disc, sabme, test, xid, frmr", "%q is no kind of LLC frame", p.tok.text)
	}
	return n, nil
}

func (p *parser) ifName() (Node, error) {
	if err := p.advance(); err != nil {
		return nil, err
	}
	// Interfaces have names that look like anything, also like keywords.
	name := strings.TrimPrefix(p.lexer.text[p.tok.at:p.lexer.at], "\\")
	if p.tok.kind == tokEnd || p.tok.kind == tokSymbol || p.tok.kind == tokWord && !isLetterOrDigit(name[0]) {
		return nil, p.unexpected("an interface's name")
	}
	unfit := func(r rune) bool { return r > unicode.MaxASCII || !unicode.IsPrint(r) }
	if len(name) > 15 || strings.ContainsAny(name, "/:*\"\\ ") || strings.ContainsFunc(name, unfit) {
		return nil, p.wrong(p.tok, "", "%q is no interface name: 1 to 15 printable characters without / : * \" and \\", name)
	}
	return IfName{name}, p.advance()
}
