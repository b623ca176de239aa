package ctl

import (
	"fmt"
	"io"
	"strings"
	"time"

	"capd/ctl/wire"
)

// progress shows how far a capture is, on stderr: on a terminal in one line that is
// written again and again, elsewhere as lines now and then.
type progress struct {
	out    io.Writer
	screen func() screen // asked each time: a window may change its size
	now    func() time.Time
	quiet  bool
	every  time.Duration // between two lines where there is no terminal

	drawn  bool   // the cursor stands in the line
	status string // as last shown
	last   time.Time
	notes  string // as last said
}

func (a *app) newProgress() *progress {
	return &progress{
		out:    a.stderr,
		screen: func() screen { return a.screenOf(a.stderr) },
		now:    a.now,
		quiet:  a.quiet,
		every:  a.timing.plain,
	}
}

// show draws a capture.
func (p *progress) show(c wire.Capture) {
	if p.quiet {
		return
	}
	p.notes = ""
	s := p.screen()
	if s.live {
		if s.width <= 0 {
			s.width = 80
		}
		// One column stays free, so that no terminal wraps the line.
		fmt.Fprint(p.out, "\r"+progressBar(s, c, p.now(), s.width-1)+"\x1b[K")
		p.drawn = true
		return
	}
	now := p.now()
	if c.Status != p.status || now.Sub(p.last) >= p.every {
		p.status, p.last = c.Status, now
		fmt.Fprintln(p.out, oneLine(c.Status+": "+strings.Join(progressParts(c, now), ", ")))
	}
}

// say writes a line of its own, once where it is said again and again.
func (p *progress) say(text string) {
	if p.quiet || text == p.notes {
		return
	}
	p.end()
	p.notes = text
	fmt.Fprintln(p.out, oneLine(text))
}

// end leaves the line.
func (p *progress) end() {
	if p.drawn {
		fmt.Fprintln(p.out)
		p.drawn = false
	}
}

// progressBar gives one line of at most so many columns: status, bar, figures. Figures
// that do not fit are left out, the last first, and before them the bar.
func progressBar(s screen, c wire.Capture, now time.Time, width int) string {
	status := fmt.Sprintf("%-10s", clean(c.Status))
	parts := progressParts(c, now)
	const least, most = 10, 30
	for {
		text := strings.Join(parts, "  ")
		room := width - columnsOf(status) - columnsOf(text) - 2*len(gap) - len(" 100%")
		if room >= least || len(parts) <= 1 {
			share := progressShare(c, now)
			line := s.cut(status+gap+text, width)
			if share >= 0 && room >= least { // then all fits; the bar's colours are no columns to cut
				line = status + " " + s.bar(share, min(room, most)) + fmt.Sprintf(" %4s", percent(share, 1)) + gap + text
			}
			if lossNoted(c) {
				lost := lostText(c)
				line = strings.Replace(line, lost, s.paint(red, lost), 1)
			}
			return line
		}
		parts = parts[:len(parts)-1]
	}
}

// bar draws a share from 0 to 1.
func (s screen) bar(share float64, width int) string {
	full := int(max(0, min(share, 1)) * float64(width))
	return s.paint(green, strings.Repeat(s.glyph("█", "#"), full)) + s.paint(dim, strings.Repeat(s.glyph("░", "."), width-full))
}

// delivering reports whether a capture is past its packets.
func delivering(c wire.Capture) bool {
	return c.Status == wire.StatusDelivering || (finished(c) && c.Destination != "")
}

// progressShare gives how near a capture is to its nearest limit, or how much of it is
// delivered; -1 where that can't be said.
func progressShare(c wire.Capture, now time.Time) float64 {
	if delivering(c) {
		done, whole := delivered(c)
		if whole == 0 {
			return -1
		}
		return float64(done) / float64(whole)
	}
	share := -1.0
	nearer := func(part, whole float64) {
		if whole > 0 {
			share = max(share, min(part/whole, 1))
		}
	}
	if c.TimeLimit != nil {
		nearer(running(c, now).Seconds(), c.TimeLimit.Duration().Seconds())
	}
	if c.PacketLimit != nil {
		nearer(float64(c.Packets.Captured), float64(*c.PacketLimit))
	}
	if c.ByteLimit != nil {
		nearer(float64(c.Bytes.Written), float64(*c.ByteLimit))
	}
	return share
}

// progressParts gives the figures, the most telling first.
func progressParts(c wire.Capture, now time.Time) []string {
	if delivering(c) {
		files := 0
		waiting := ""
		for _, f := range c.Files {
			if f.Status == wire.FileDelivered || f.Status == wire.FileRemoved {
				files++
			} else if f.Error != "" {
				waiting = fmt.Sprintf("try %d failed: %s", f.Attempts, clean(f.Error))
			}
		}
		done, whole := delivered(c)
		parts := []string{
			fmt.Sprintf("%d/%s", files, plural(uint64(len(c.Files)), "file", "files")),
			ratio(wire.About(done), wire.About(whole)),
			lostText(c),
		}
		if waiting != "" {
			parts = append(parts, waiting)
		}
		return parts
	}
	elapsed := span(running(c, now))
	if c.TimeLimit != nil && *c.TimeLimit > 0 {
		elapsed += "/" + c.TimeLimit.String()
	}
	packets := count(c.Packets.Captured)
	if c.PacketLimit != nil && *c.PacketLimit > 0 {
		packets += "/" + count(*c.PacketLimit)
	}
	bytes := wire.About(c.Bytes.Written)
	if c.ByteLimit != nil && *c.ByteLimit > 0 {
		bytes = ratio(bytes, limitSize(*c.ByteLimit))
	}
	return []string{elapsed, packets + " packets", lostText(c), bytes}
}

// ratio writes part/whole and says a unit that both share once.
func ratio(part, whole string) string {
	n, unit, ok := strings.Cut(part, " ")
	if _, wholeUnit, wholeOk := strings.Cut(whole, " "); ok && wholeOk && unit == wholeUnit {
		part = n
	}
	return part + "/" + whole
}

// lostText says in words what is lost.
func lostText(c wire.Capture) string {
	if !lossUnknown(c) {
		return count(lost(c.Packets)) + " lost"
	}
	if n := lost(c.Packets); n > 0 {
		return count(n) + " or more lost"
	}
	return "loss not known"
}

// delivered gives the bytes at the destination and all that are to be there.
func delivered(c wire.Capture) (done, whole uint64) {
	for _, f := range c.Files {
		whole += f.Bytes
		if f.Status == wire.FileDelivered {
			done += f.Bytes
		}
	}
	return max(done, min(c.Bytes.Delivered, whole)), whole
}

// running gives how long a capture has run, by this machine's clock.
func running(c wire.Capture, now time.Time) time.Duration {
	if c.Started == nil {
		return 0
	}
	if c.Stopped != nil {
		now = c.Stopped.Time
	}
	d := max(0, now.Sub(c.Started.Time))
	if c.TimeLimit != nil && *c.TimeLimit > 0 {
		d = min(d, c.TimeLimit.Duration())
	}
	return d
}
