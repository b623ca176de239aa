package ctl

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"capd/ctl/wire"
)

// count writes a number of things with its thousands apart: 1,234,567.
func count(n uint64) string {
	digits := strconv.FormatUint(n, 10)
	var b strings.Builder
	for i, d := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(d)
	}
	return b.String()
}

// plural writes a number with its noun.
func plural(n uint64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return count(n) + " " + many
}

// limitSize writes a limit shortly and exactly: 10 MB, 64 MiB, 4096 B.
func limitSize(n wire.Size) string {
	text := n.String()
	i := strings.IndexFunc(text, func(r rune) bool { return r < '0' || r > '9' })
	if i <= 0 {
		return text
	}
	unit := text[i:]
	switch unit {
	case "b":
		unit = "B"
	case "kb":
		unit = "kB"
	case "mb", "gb":
		unit = strings.ToUpper(unit)
	}
	return text[:i] + " " + unit
}

// shortAge writes a span in its largest unit: 42s, 5m, 3h, 12d.
func shortAge(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return strconv.Itoa(int(d/time.Second)) + "s"
	case d < time.Hour:
		return strconv.Itoa(int(d/time.Minute)) + "m"
	case d < 48*time.Hour:
		return strconv.Itoa(int(d/time.Hour)) + "h"
	}
	return strconv.Itoa(int(d/(24*time.Hour))) + "d"
}

// span writes a length of time to the second, or below one to the millisecond.
func span(d time.Duration) string {
	if d < 0 {
		d = 0
	}
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return wire.Seconds(d.Round(time.Second)).String()
}

// percent writes a share of a limit, never 100 before it is reached.
func percent(part, whole float64) string {
	if whole <= 0 {
		return ""
	}
	return strconv.Itoa(int(min(part/whole, 1)*100)) + "%"
}

// moment writes a time in the user's zone, to the second, with the zone.
func (a *app) moment(t time.Time) string { return a.inZone(t).Format("2006-01-02 15:04:05 MST") }

// instant is moment to the millisecond.
func (a *app) instant(t time.Time) string { return a.inZone(t).Format("2006-01-02 15:04:05.000 MST") }

func (a *app) inZone(t time.Time) time.Time {
	if a.utc {
		return t.UTC()
	}
	return t.In(a.zone)
}

// printJSON writes one wire object: on a terminal indented, elsewhere on one line.
func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.stdout)
	e.SetEscapeHTML(false)
	if a.screenOf(a.stdout).terminal {
		e.SetIndent("", "  ")
	}
	return e.Encode(v)
}

// note tells the user something that is neither data nor an error: a line, which a
// terminal gets broken between words.
func (a *app) note(format string, args ...any) {
	if a.quiet {
		return
	}
	text := oneLine(fmt.Sprintf(format, args...)) + "\n"
	if s := a.screenOf(a.stderr); s.terminal && s.width > 0 {
		text = fill(text, s.width, "")
	}
	fmt.Fprint(a.stderr, text)
}
