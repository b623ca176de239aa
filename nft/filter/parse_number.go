package filter

import "slices"

// precedences of the operators of numbers. Higher binds tighter; all bind to the left.
// % and ^ have none in libpcap's grammar, so that yacc lets everything after them belong
// to their right side, and them to the right side of what stands before: 2 * 7 % 4 is 2 *
// (7 % 4), and 7 % 4 * 2 is 7 % (4 * 2).
var precedences = map[string]int{"|": 1, "&": 2, "<<": 3, ">>": 3, "+": 4, "-": 4, "*": 5, "/": 5}

const negativePrecedence = 6

var relations = []string{"=", "!=", "<", ">", "<=", ">="}

func (p *parser) isRelation() bool {
	return p.tok.kind == tokSymbol && slices.Contains(relations, p.tok.text)
}

func (p *parser) isOperator() bool {
	return p.tok.kind == tokSymbol && (precedences[p.tok.text] > 0 || p.tok.text == "%" || p.tok.text == "^")
}

// relation reads a comparison after its left side; without one, number is what there is.
func (p *parser) relation(left Expr, q qualifier) (Node, Expr, qualifier, error) {
	left, err := p.arithmeticFrom(left, 0)
	if err != nil || !p.isRelation() {
		return nil, left, q, err
	}
	op := p.tok.text
	if err := p.advance(); err != nil {
		return nil, nil, q, err
	}
	right, err := p.arithmetic(0)
	return Relation{op, left, right}, nil, noQualifier, err
}

// arithmetic reads operands joined by operators that bind at least as tight as lowest.
func (p *parser) arithmetic(lowest int) (Expr, error) {
	if err := p.deeper(); err != nil {
		return nil, err
	}
	defer p.shallower()
	left, err := p.operand()
	if err != nil {
		return nil, err
	}
	return p.arithmeticFrom(left, lowest)
}

// arithmeticFrom is arithmetic whose first operand has been read.
func (p *parser) arithmeticFrom(left Expr, lowest int) (Expr, error) {
	for p.isOperator() {
		op := p.tok
		next := 0
		if precedence := precedences[op.text]; precedence > 0 {
			if precedence < lowest {
				break
			}
			next = precedence + 1
		}
		if err := p.advance(); err != nil {
			return nil, err
		}
		right, err := p.arithmetic(next)
		if err != nil {
			return nil, err
		}
		n, constant := right.(Number)
		switch {
		case constant && n == 0 && (op.text == "/" || op.text == "%"):
			return nil, p.wrong(op, "", "division by zero")
		case constant && n > 31 && (op.text == "<<" || op.text == ">>"):
			return nil, p.wrong(op, "", "a shift by %d bits: numbers have 32", n)
		}
		left = Binary{op.text, left, right}
	}
	return left, nil
}

// operand reads a number, len, a load, - and an operand, or an expression in
// parentheses.
func (p *parser) operand() (Expr, error) {
	t := p.tok
	switch {
	case t.kind == tokNumber:
		return Number(t.value), p.advance()
	case p.is("len"):
		return PacketLength{}, p.advance()
	case p.is("-"):
		if err := p.advance(); err != nil {
			return nil, err
		}
		x, err := p.arithmetic(negativePrecedence)
		return Negative{x}, err
	case p.is("("):
		if err := p.advance(); err != nil {
			return nil, err
		}
		x, err := p.arithmetic(0)
		if err != nil {
			return nil, err
		}
		return x, p.expect(")")
	case t.kind == tokWord:
		if proto, ok := protoWords[t.text]; ok {
			if err := p.advance(); err != nil {
				return nil, err
			}
			if p.is("[") {
				return p.load(proto, t)
			}
			return nil, p.unexpected("[ after " + t.text)
		}
	}
	return nil, p.unexpected("a number, len, or bytes such as ip[8]")
}

// load reads [index] or [index:size] after a protocol.
func (p *parser) load(proto Proto, at token) (Expr, error) {
	switch proto {
	case AARP, ISO, STP, IPX, NetBEUI, PPPoED, CLNP, ESIS, ISIS:
		return nil, p.wrong(at, "count from the beginning of the frame, as in ether[14]", "the bytes of %s cannot be counted from its own header", proto)
	case AH, ESP, GRE:
		return nil, p.wrong(at, "count from the IP header, as in ip[20]", "the bytes of %s cannot be counted from its own header", proto)
	}
	if err := p.expect("["); err != nil {
		return nil, err
	}
	index, err := p.arithmetic(0)
	if err != nil {
		return nil, err
	}
	size := 1
	if ok, err := p.accept(":"); err != nil {
		return nil, err
	} else if ok {
		t := p.tok
		if t.kind != tokNumber || t.value != 1 && t.value != 2 && t.value != 4 {
			return nil, p.unexpected("1, 2 or 4, how many bytes,")
		}
		size = int(t.value)
		if err := p.advance(); err != nil {
			return nil, err
		}
	}
	return Load{proto, index, size, at.at + 1}, p.expect("]")
}
