// Command man makes capd.toml(5) from packaging/capd.toml.example, which a test of
// daemon/config holds against what capd reads: every key is there, with its default. So
// the manual cannot drift from the program.
package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"

	"capd/ctl/roff"
	"capd/ctl/wire"
)

//go:generate go run . ../capd.toml.example capd.toml.5

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: man EXAMPLE PAGE")
		os.Exit(2)
	}
	text, err := os.ReadFile(os.Args[1])
	if err == nil {
		err = os.WriteFile(os.Args[2], []byte(page(string(text))), 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "man:", err)
		os.Exit(1)
	}
}

// Lines of the example.
var (
	setting = regexp.MustCompile(`^# ?([a-z_]+) = (.*)$`)
	table   = regexp.MustCompile(`^#?(\[[a-z_.]+\])$`)
	begins  = regexp.MustCompile(`^(Sizes:|Durations:|SIGHUP |A flag )`) // a paragraph of the preamble
	named   = regexp.MustCompile(`^\[(access\.group|destination)\.[a-z]+\]$`)
)

// page turns the example into a manual page.
func page(example string) string {
	p := roff.New("capd.toml", 5, "configuration of capd", "capd "+wire.Version, roff.Date())
	p.Head("Synopsis")
	p.Synopsis("/etc/capd/capd.toml")
	p.Synopsis("/etc/capd/destinations.d/NAME.toml")
	p.Head("Description")
	p.Text(`capd reads its configuration from a file of TOML, and from files of one destination each
beside it. It runs without any, on the defaults that stand here. What it does not know or
cannot make sense of it refuses with file, line and key; capd --check-config tells.

Below, each key stands with its default, or with an example where it has none or stands in
a table that is not there by default.`)
	preamble, rest, _ := strings.Cut(example, "\n\n")
	_, preamble, _ = strings.Cut(preamble, "--check-config\n") // what is said above
	var said []string
	for _, line := range strings.Split(preamble, "\n") {
		line = strings.Join(strings.Fields(strings.TrimPrefix(line, "#")), " ")
		if begins.MatchString(line) {
			said = append(said, "")
		}
		said = append(said, line)
	}
	p.Text(strings.Join(said, "\n"))
	p.Head("Keys")
	var remark []string
	flush := func() {
		p.Text(strings.Join(remark, "\n"))
		remark = nil
	}
	lines := strings.Split(rest, "\n")
	for i := 0; i < len(lines); i++ {
		line := lines[i]
		switch {
		case table.MatchString(line):
			flush()
			p.Subhead(named.ReplaceAllString(table.FindStringSubmatch(line)[1], "[$1.NAME]"))
		case setting.MatchString(line):
			var terms []string
			for ; i < len(lines) && setting.MatchString(lines[i]); i++ {
				m := setting.FindStringSubmatch(lines[i])
				terms = append(terms, m[1]+" = "+m[2])
			}
			i--
			if len(remark) == 0 {
				remark = []string{"See above."}
			}
			p.Items(terms, strings.Join(remark, "\n"))
			remark = nil
		case line == "", line == "#": // what ends here belongs to no key
			flush()
		default:
			remark = append(remark, strings.TrimPrefix(strings.TrimPrefix(line, "#"), " "))
		}
	}
	flush()
	p.Head("Files")
	p.Item("/etc/capd/capd.toml", "read at the start and on SIGHUP.")
	p.Item("/etc/capd/destinations.d/NAME.toml", "a destination, its keys at top level; one that is defined twice is an error.")
	p.Item("/usr/share/doc/capd/capd.toml.example", "all of this as a file.")
	p.See("capd(8)", "capctl(1)")
	return p.String()
}
