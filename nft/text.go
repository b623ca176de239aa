package nft

import (
	"fmt"
	"strings"

	"capd/nft/filter"
)

// Ruleset prints the rules of a capture as `nft list ruleset` prints them when it is the
// only one, with counters at zero; `nft -f` accepts the text. It needs no rights and
// touches nothing. Chains of ingress and egress stand for each name or pattern in
// Interfaces as it is.
// The rules are those of a box without a VRF and while capd has no connection of its own.
// nft words two things in its own way: bytes that it has a name for (@th,0,8 as icmp type),
// and a source and a destination port side by side, which it reads as one value (@th,0,32).
func Ruleset(s Spec) (string, error) { return ruleset(s, lacks{}, present{}) }

// Ruleset is as the function of this name, for this kernel, which may lack something, and
// for what is on the box now.
func (t *Table) Ruleset(s Spec) (string, error) {
	t.mu.Lock()
	now := t.now
	t.mu.Unlock()
	return ruleset(s, t.features.lacks(), now)
}

func ruleset(s Spec, l lacks, now present) (string, error) {
	s, err := s.check()
	if err != nil {
		return "", err
	}
	tables, err := layout(s, s.devices(), l)
	if err != nil {
		return "", fmt.Errorf("nft: capture %s: %w", s.ID[:8], err)
	}
	w := writer{lacks: l}
	for _, t := range tables {
		limit := ""
		if t.rate != nil {
			limit = t.rate.name
		}
		for i, c := range t.chains {
			if c.gate == nil {
				continue
			}
			if t.chains[i].rules, err = c.gate.rules(now, limit); err != nil {
				return "", fmt.Errorf("nft: capture %s: %w", s.ID[:8], err)
			}
		}
		w.table(t)
	}
	return w.String(), nil
}

// writer prints as nft does (nftables src/rule.c, src/statement.c).
type writer struct {
	strings.Builder
	lacks lacks
	parts bool // the table has some already
}

func (w *writer) line(depth int, format string, args ...any) {
	w.WriteString(strings.Repeat("\t", depth))
	fmt.Fprintf(w, format, args...)
	w.WriteByte('\n')
}

// gap separates the parts of a table.
func (w *writer) gap() {
	if w.parts {
		w.WriteByte('\n')
	}
	w.parts = true
}

func (w *writer) table(t tableRules) {
	w.line(0, "table %s %s {", t.family, tableName)
	if w.parts = !w.lacks.owner; w.parts {
		w.line(1, "flags owner")
	}
	if t.rate != nil {
		w.gap()
		w.line(1, "limit %s {", t.rate.name)
		burst := ""
		if t.rate.burst != 5 { // nft's default is not printed
			burst = fmt.Sprintf(" burst %d packets", t.rate.burst)
		}
		w.line(2, "rate over %d/second%s", t.rate.perSecond, burst)
		w.line(1, "}")
	}
	if !w.lacks.timeout {
		w.gap()
		w.line(1, "set %s {", aliveSet)
		w.line(2, "type mark")
		w.line(2, "flags timeout")
		w.line(2, "comment \"%s\"", aliveComment)
		w.line(2, "elements = { 0x00000000 timeout %s }", RenewTimeout)
		w.line(1, "}")
	}
	for _, s := range ownSets {
		w.gap()
		w.line(1, "set %s {", s.name)
		w.line(2, "type %s", s.key.Name)
		w.line(2, "comment \"%s\"", ownComment)
		w.line(1, "}")
	}
	for _, s := range t.sets {
		w.gap()
		w.set(s)
	}
	if w.lacks.owner {
		w.gap()
		w.chain(chain{name: markChain})
	}
	for _, c := range append(t.bases, t.chains...) {
		w.gap()
		w.chain(c)
	}
	w.line(0, "}")
}

func (w *writer) set(s filter.Set) {
	w.line(1, "set %s {", s.Name)
	k := keyOf(s.Key)
	w.line(2, "type %s", k.typ.Name)
	w.line(2, "flags constant%s", map[bool]string{true: ",interval"}[hasRange(s.Values)])
	w.line(2, "elements = { %s }", strings.Join(k.texts(s.Values), ", "))
	w.line(1, "}")
}

func (w *writer) chain(c chain) {
	w.line(1, "chain %s {", c.name)
	if c.hook != nil {
		device := ""
		if c.hook.device != "" {
			device = fmt.Sprintf(" device %q", c.hook.device)
		}
		w.line(2, "type filter hook %s%s priority %d; policy accept;", c.hook.name, device, c.hook.priority)
	}
	for _, r := range c.rules {
		w.line(2, "%s", ruleText(r))
	}
	w.line(1, "}")
}

// ruleText is one rule on one line.
func ruleText(r rule) string {
	var parts []string
	ports := "th" // what nft calls the header of the ports, by what it has read before
	for _, m := range r.matches {
		text := matchText(m)
		if header, of := strings.CutPrefix(text, "th "); of {
			text = ports + " " + header
		}
		if name, ok := portsOf(m); ok {
			ports = name
		}
		parts = append(parts, text)
	}
	if r.own != nil {
		parts = append(parts, r.own.text)
	}
	if r.byCPU != nil {
		elements := make([]string, len(r.byCPU))
		for cpu, target := range r.byCPU {
			elements[cpu] = fmt.Sprintf("%d : goto %s", cpu, target)
		}
		parts = append(parts, fmt.Sprintf("%s vmap { %s }", keyCPU, strings.Join(elements, ", ")))
	}
	if r.rate != "" {
		parts = append(parts, fmt.Sprintf("limit name \"%s\"", r.rate))
	}
	if r.count != countNothing {
		parts = append(parts, "counter packets 0 bytes 0")
	}
	if r.log != nil {
		parts = append(parts, logText(r.log))
	}
	switch r.verdict {
	case doReturn:
		parts = append(parts, "return")
	case doJump:
		parts = append(parts, "jump "+r.target)
	case doGoto:
		parts = append(parts, "goto "+r.target)
	}
	return strings.Join(append(parts, fmt.Sprintf("comment \"%s\"", r.comment)), " ")
}

// portsOf gives the name of the transport protocol that a match leaves as the only one,
// where that has ports.
func portsOf(m filter.Match) (string, bool) {
	switch m.Key {
	case filter.L4Proto, filter.IPProtocol, filter.IP6NextHdr:
	default:
		return "", false
	}
	if m.Op != filter.Equal || m.Mask != nil || m.Set != "" || len(m.Values) != 1 || m.Values[0].Hi != nil {
		return "", false
	}
	switch name := protocolText(m.Values[0].Lo); name {
	case "tcp", "udp", "udplite", "dccp", "sctp":
		return name, true
	}
	return "", false
}

func logText(l *logging) string {
	text := "log"
	if l.prefix != "" {
		text += fmt.Sprintf(" prefix \"%s\"", l.prefix)
	}
	text += fmt.Sprintf(" group %d", l.group)
	if l.snaplen != 0 {
		text += fmt.Sprintf(" snaplen %d", l.snaplen)
	}
	if l.threshold != 0 {
		text += fmt.Sprintf(" queue-threshold %d", l.threshold)
	}
	return text
}

// opTexts are the operators as nft prints them.
var opTexts = map[filter.Op]string{
	filter.Equal: " ", filter.In: " ", filter.NotEqual: " != ", filter.NotIn: " != ",
	filter.Less: " < ", filter.Greater: " > ", filter.LessEqual: " <= ", filter.GreaterEqual: " >= ",
}

func matchText(m filter.Match) string {
	k := keyOf(m.Key)
	left, op := string(m.Key), opTexts[m.Op]
	if m.Mask != nil {
		left += " & " + k.text(m.Mask)
		if m.Set == "" && op == " " {
			op = " == "
		}
	}
	switch {
	case m.Set != "":
		return left + op + "@" + m.Set
	case m.Op == filter.In || m.Op == filter.NotIn:
		return left + op + "{ " + strings.Join(k.texts(m.Values), ", ") + " }"
	}
	return left + op + k.spanText(m.Values[0])
}
