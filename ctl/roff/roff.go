// Package roff writes manual pages in the man(7) macros, as groff and mandoc read them.
package roff

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Page is a manual page that is being written.
type Page struct {
	b     strings.Builder
	fresh bool // a section has just begun, and needs no request for a paragraph
}

// New begins the page NAME(SECTION) with its title lines; short says in a few words what
// it is about. The date is UTC.
func New(name string, section int, short, source string, date time.Time) *Page {
	p := new(Page)
	fmt.Fprintf(&p.b, ".TH %s %d %s %q \"capd manual\"\n", strings.ToUpper(escape(name)), section, date.UTC().Format("2006-01-02"), source)
	p.Head("Name")
	fmt.Fprintf(&p.b, "%s \\- %s\n", escape(name), escape(short))
	return p
}

// Date is that of a build: SOURCE_DATE_EPOCH (reproducible-builds.org) where it is set,
// else now.
func Date() time.Time {
	if n, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64); err == nil {
		return time.Unix(n, 0)
	}
	return time.Now()
}

// String gives the page.
func (p *Page) String() string { return p.b.String() }

// Head begins a section.
func (p *Page) Head(title string) {
	fmt.Fprintf(&p.b, ".SH %s\n", quote(strings.ToUpper(title)))
	p.fresh = true
}

// Subhead begins a part of a section.
func (p *Page) Subhead(title string) {
	fmt.Fprintf(&p.b, ".SS %s\n", quote(title))
	p.fresh = true
}

// paragraph begins one.
func (p *Page) paragraph() {
	if !p.fresh {
		p.b.WriteString(".PP\n")
	}
	p.fresh = false
}

// Synopsis writes a line of use in bold.
func (p *Page) Synopsis(line string) {
	p.fresh = false
	fmt.Fprintf(&p.b, ".nf\n\\fB%s\\fR\n.fi\n", escape(line))
}

// Text writes paragraphs, which empty lines part. Lines that begin with space are shown
// as they are.
func (p *Page) Text(text string) {
	if text == "" {
		return
	}
	var literal []string
	begun := false
	flush := func() {
		if len(literal) > 0 {
			p.Example(strings.Join(literal, "\n"))
			literal, begun = nil, false
		}
	}
	for _, line := range strings.Split(strings.Trim(text, "\n"), "\n") {
		switch {
		case strings.HasPrefix(line, " "):
			literal = append(literal, line)
		case strings.TrimSpace(line) == "":
			flush()
			begun = false
		default:
			flush()
			if !begun {
				p.paragraph()
				begun = true
			}
			p.line(line)
		}
	}
	flush()
}

// Example shows lines as they are, indented.
func (p *Page) Example(text string) {
	p.paragraph()
	p.b.WriteString(".RS 4\n.EX\n")
	for _, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		p.line(strings.TrimPrefix(line, "  "))
	}
	p.b.WriteString(".EE\n.RE\n")
}

// Item writes a term, in bold, and what it means.
func (p *Page) Item(term, text string) { p.Items([]string{term}, text) }

// Items writes terms that one text explains.
func (p *Page) Items(terms []string, text string) {
	p.fresh = false
	for i, term := range terms {
		macro := ".TP"
		if i > 0 {
			macro = ".TQ"
		}
		fmt.Fprintf(&p.b, "%s\n\\fB%s\\fR\n", macro, escape(term))
	}
	for _, line := range strings.Split(strings.TrimSpace(text), "\n") {
		p.line(line)
	}
}

// See writes references such as capctl(1).
func (p *Page) See(pages ...string) {
	p.Head("See also")
	for i, page := range pages {
		name, section, _ := strings.Cut(page, "(")
		after := ","
		if i == len(pages)-1 {
			after = ""
		}
		fmt.Fprintf(&p.b, ".BR %s (%s%s\n", escape(name), section, after)
	}
}

// line writes one line of text, which cannot become a request.
func (p *Page) line(text string) { p.b.WriteString(escape(text) + "\n") }

// escape makes text mean itself: groff_char(7), and man(7) on dashes.
func escape(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`).Replace(text)
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		text = `\&` + text
	}
	return text
}

func quote(text string) string { return `"` + strings.ReplaceAll(escape(text), `"`, `\(dq`) + `"` }
