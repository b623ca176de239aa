package ctl

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"capd/ctl/wire"
)

// view is what the screen of capctl watch shows; keys change it.
type view struct {
	selected string // station and id
	first    int    // the first row of the table that is shown
	details  bool   // everything about the selected capture instead of the table
	scroll   int    // in the details, and in the help
	help     bool
	asking   *watched // whether to stop it
	said     string   // the last action's outcome
}

func (c *watched) key() string { return c.station.label + " " + c.ID }

// rows are all captures, those that run first, else as capd lists them: newest first.
func (w *watcher) rows() []*watched {
	var rows []*watched
	for _, s := range w.stations {
		rows = append(rows, s.captures...)
	}
	rank := func(c *watched) int {
		switch {
		case unstopped(c.Capture):
			return 0
		case !finished(c.Capture):
			return 1
		}
		return 2
	}
	slices.SortStableFunc(rows, func(x, y *watched) int { return rank(x) - rank(y) })
	return rows
}

// current is the capture that is chosen, nil where there is none.
func (w *watcher) current() (*watched, int) {
	rows := w.rows()
	for i, c := range rows {
		if c.key() == w.view.selected {
			return c, i
		}
	}
	if len(rows) == 0 {
		return nil, 0
	}
	w.view.selected = rows[0].key()
	return rows[0], 0
}

// frame draws the screen: at most height lines of at most s.width columns.
func (w *watcher) frame(s screen, height int, now time.Time) []string {
	width := s.width
	var lines []string
	lines = append(lines, w.head(s, now)...)
	foot := w.foot(s)
	body := height - len(lines) - 1
	current, index := w.current()
	switch {
	case body < 1:
	case w.view.help:
		lines = append(lines, w.part(helpLines(s), body)...)
	case w.view.details && current != nil:
		var b strings.Builder
		w.app.printCaptureOn(s, &b, current.Capture)
		var fitted []string
		for _, line := range strings.Split(strings.TrimRight(b.String(), "\n"), "\n") {
			fitted = append(fitted, wrapStyled(line, width)...)
		}
		lines = append(lines, w.part(fitted, body)...)
	default:
		lines = append(lines, w.table(s, body, current, index, now)...)
	}
	for len(lines) < height-1 {
		lines = append(lines, "")
	}
	lines = append(lines[:max(0, height-1)], foot)
	for i, line := range lines {
		lines[i] = wrapStyled(line, width)[0]
	}
	return lines
}

// part gives the lines that fit, from where the user has scrolled to.
func (w *watcher) part(lines []string, height int) []string {
	w.view.scroll = max(0, min(w.view.scroll, len(lines)-height))
	return lines[w.view.scroll:min(len(lines), w.view.scroll+height)]
}

// head is the first line, and one more for each capd that does not answer.
func (w *watcher) head(s screen, now time.Time) []string {
	running, delivering, finishedOnes := 0, 0, 0
	spool, spoolSize := uint64(0), uint64(0)
	var names, complaints []string
	for _, st := range w.stations {
		running += st.status.Captures.Running
		delivering += st.status.Captures.Delivering
		finishedOnes += st.status.Captures.Finished
		spool += uint64(st.status.Spool.Used)
		spoolSize += uint64(st.status.Spool.Size)
		if st.label == "" {
			names = append(names, st.status.Host)
		} else {
			names = append(names, st.label)
		}
		if st.err != nil {
			complaints = append(complaints, notAnswering(st, now))
		}
	}
	who := strings.TrimSpace("capd " + clean(names[0]))
	if len(names) > 1 {
		who = fmt.Sprintf("%d boxes", len(names))
	}
	parts := []string{fmt.Sprintf("%d running", running)}
	if delivering > 0 {
		parts = append(parts, fmt.Sprintf("%d delivering", delivering))
	}
	parts = append(parts, fmt.Sprintf("%d finished", finishedOnes))
	if spoolSize > 0 {
		parts = append(parts, "spool "+ratio(wire.About(spool), wire.About(spoolSize)))
	}
	clock := w.app.inZone(now).Format("15:04:05")
	text := who + "  " + strings.Join(parts, ", ")
	text = s.cut(text, max(1, s.width-len(clock)-2))
	line := s.paint(bold, text) + strings.Repeat(" ", max(1, s.width-columnsOf(text)-len(clock))) + clock
	lines := []string{line}
	const most = 3
	for i, c := range complaints {
		if i == most {
			lines = append(lines, s.paint(red, fmt.Sprintf("and %d more do not answer", len(complaints)-most)))
			break
		}
		lines = append(lines, s.paint(red, s.cut(clean(c), s.width)))
	}
	return lines
}

// foot is the last line: a question, what an action came to, or the keys.
func (w *watcher) foot(s screen) string {
	if c := w.view.asking; c != nil {
		return s.paint(yellow, s.cut("stop "+nameOf(c)+"? y or n", s.width))
	}
	if w.view.said != "" {
		return s.cut(clean(w.view.said), s.width)
	}
	keys := "j k choose   Enter details   s stop   ? help   q quit"
	if w.view.details || w.view.help {
		keys = "j k scroll   Enter back   s stop   q quit"
	}
	return s.paint(dim, s.cut(keys, s.width))
}

func nameOf(c *watched) string {
	name := short(c.ID)
	if c.Name != "" {
		name = clean(c.Name) + " (" + name + ")"
	}
	if c.station.label != "" {
		name += " on " + c.station.label
	}
	return name
}

// paneHeight is how many lines the chosen capture takes below the table.
const paneHeight = 8

// table draws the captures, and below them the chosen one's limits and state.
func (w *watcher) table(s screen, height int, current *watched, index int, now time.Time) []string {
	rows := w.rows()
	if len(rows) == 0 {
		text := "no captures: capctl start makes one"
		for _, st := range w.stations {
			if !st.asked {
				text = "asking capd"
			} else if st.err != nil {
				text = ""
			}
		}
		return []string{"", s.cut(text, s.width)}
	}
	pane := 0
	if height >= paneHeight+4 {
		pane = paneHeight
	}
	visible := max(1, height-1-pane)
	w.view.first = max(0, min(w.view.first, len(rows)-visible))
	w.view.first = max(min(w.view.first, index), index-visible+1)
	shown := rows[w.view.first:min(len(rows), w.view.first+visible)]

	const mark = 2
	graph := 12
	if s.width > 100 {
		graph = 30
	}
	columns := []column{
		{head: "ID"}, {head: "NAME", least: 6}, {head: "STATUS    "}, {head: "  PKT/S", right: true, drop: 1}, {head: "   BYTE/S", right: true, drop: 2},
		{head: fmt.Sprintf("%-*s", graph, "LAST MINUTE"), drop: 4}, {head: "  LOST", right: true}, {head: "LEFT", right: true, drop: 3}, {head: "FILTER", least: 10, drop: 5},
	}
	if len(w.stations) > 1 {
		columns = append([]column{{head: "HOST", least: 6}}, columns...)
	}
	var cells [][]cell
	for _, c := range shown {
		lost := cell{text: knownLoss(c.Capture)}
		if lossNoted(c.Capture) {
			lost.style = red
		}
		row := []cell{
			{text: short(c.ID)}, {text: orElse(c.Name, "-")}, {text: c.Status, style: statusStyle(c.Status)},
			{text: perSecond(c, c.packets, "")}, {text: perSecond(c, c.bytes, "B")}, {text: s.sparkline(c.packets, graph)}, lost, {text: leftOf(c.Capture, now)},
			{text: filterText(c.StartRequest)},
		}
		if len(w.stations) > 1 {
			row = append([]cell{{text: c.station.label}}, row...)
		}
		cells = append(cells, row)
	}
	var b strings.Builder
	narrow := s
	narrow.width = s.width - mark
	_ = narrow.table(&b, columns, cells) // a strings.Builder takes everything
	var lines []string
	for i, line := range strings.Split(strings.TrimRight(b.String(), "\n"), "\n") {
		sign := "  "
		if i > 0 && shown[i-1] == current {
			sign = s.paint(bold, s.glyph("▸ ", "> "))
		}
		lines = append(lines, sign+line)
	}
	if more := len(rows) - len(shown); more > 0 {
		lines[0] += s.paint(dim, s.cut(fmt.Sprintf("  (%d more)", more), max(0, s.width-columnsOf(stripped(lines[0])))))
	}
	if pane > 0 {
		for len(lines) < height-pane {
			lines = append(lines, "")
		}
		lines = append(lines, w.pane(s, current, now)...)
	}
	return lines
}

// perSecond writes a rate of a capture that runs.
func perSecond(c *watched, rates []float64, unit string) string {
	if c.Status != wire.StatusRunning || len(rates) == 0 {
		return "-"
	}
	if unit == "" {
		if r := rate(rates); r < 99999.5 {
			return count(uint64(r + 0.5))
		}
		text, _ := strings.CutSuffix(wire.About(uint64(rate(rates))), "B")
		return strings.ReplaceAll(text, " ", "") // 1.23M
	}
	return wire.About(uint64(rate(rates) + 0.5))
}

// leftOf says what is left of the limit that is nearest, or how far the delivery is.
func leftOf(c wire.Capture, now time.Time) string {
	if delivering(c) {
		files := 0
		for _, f := range c.Files {
			if f.Status == wire.FileDelivered || f.Status == wire.FileRemoved {
				files++
			}
		}
		return fmt.Sprintf("%d/%d", files, len(c.Files))
	}
	if finished(c) || c.Status != wire.StatusRunning {
		return "-"
	}
	text, least := "-", 2.0
	nearer := func(left, whole float64, words string) {
		if whole > 0 && left/whole < least {
			text, least = words, left/whole
		}
	}
	if c.TimeLimit != nil {
		left := c.TimeLimit.Duration() - running(c, now)
		nearer(left.Seconds(), c.TimeLimit.Duration().Seconds(), span(left.Round(time.Second)))
	}
	if c.PacketLimit != nil && *c.PacketLimit > 0 {
		left := *c.PacketLimit - min(c.Packets.Captured, *c.PacketLimit)
		nearer(float64(left), float64(*c.PacketLimit), count(left)+"p")
	}
	if c.ByteLimit != nil && *c.ByteLimit > 0 {
		left := uint64(*c.ByteLimit) - min(c.Bytes.Written, uint64(*c.ByteLimit))
		nearer(float64(left), float64(*c.ByteLimit), wire.About(left))
	}
	return text
}

// sparkline draws the last minute in so many columns, its highest rate at full height.
func (s screen) sparkline(rates []float64, width int) string {
	signs := []rune(s.glyph("▁▂▃▄▅▆▇█", "._-=+*#@"))
	blank := s.glyph(" ", " ")
	buckets := make([]float64, width)
	seen := make([]bool, width)
	top := 0.0
	for i, r := range rates {
		at := (minute - len(rates) + i) * width / minute
		buckets[at] = max(buckets[at], r) // a burst is to be seen
		seen[at] = true
		top = max(top, r)
	}
	var b strings.Builder
	for i, r := range buckets {
		switch {
		case !seen[i]:
			b.WriteString(blank)
		case r == 0 || top == 0:
			b.WriteRune(signs[0])
		default:
			b.WriteRune(signs[min(len(signs)-1, 1+int(r/top*float64(len(signs)-2)))])
		}
	}
	return b.String()
}

// pane shows the chosen capture: limits with bars, loss, ring, spool and delivery.
func (w *watcher) pane(s screen, c *watched, now time.Time) []string {
	title := nameOf(c)
	if f := filterText(c.StartRequest); f != "" {
		title += "  " + clean(f)
	}
	lines := []string{s.paint(bold, s.cut(title, s.width))}
	const label = 10
	row := func(st style, name, text string) {
		lines = append(lines, fmt.Sprintf("%-*s", label, name)+s.paint(st, s.cut(clean(text), s.width-label)))
	}
	limit := func(name string, part, whole float64, text string) {
		if whole <= 0 {
			row(plain, name, text)
			return
		}
		width := min(30, max(10, s.width-label-36))
		lines = append(lines, fmt.Sprintf("%-*s", label, name)+s.bar(part/whole, width)+s.cut(fmt.Sprintf(" %4s  %s", percent(part, whole), text), s.width-label-width))
	}
	elapsed := running(c.Capture, now)
	timeText, timeLimit := span(elapsed), 0.0
	if c.TimeLimit != nil && *c.TimeLimit > 0 {
		timeText, timeLimit = timeText+"/"+c.TimeLimit.String(), c.TimeLimit.Duration().Seconds()
	}
	limit("time", elapsed.Seconds(), timeLimit, timeText)
	packets, packetLimit := count(c.Packets.Captured), 0.0
	if c.PacketLimit != nil && *c.PacketLimit > 0 {
		packets, packetLimit = packets+"/"+count(*c.PacketLimit), float64(*c.PacketLimit)
	}
	limit("packets", float64(c.Packets.Captured), packetLimit, packets)
	bytes, byteLimit := wire.About(c.Bytes.Written), 0.0
	if c.ByteLimit != nil && *c.ByteLimit > 0 {
		bytes, byteLimit = ratio(bytes, limitSize(*c.ByteLimit)), float64(*c.ByteLimit)
	}
	limit("bytes", float64(c.Bytes.Written), byteLimit, bytes)
	switch n := lost(c.Packets); {
	case lossUnknown(c.Capture):
		row(red, "lost", "not known: "+knownLoss(c.Capture))
	case n > 0:
		row(red, "lost", fmt.Sprintf("%s of %s packets", count(n), count(told(c.Packets))))
	default:
		row(plain, "lost", "0")
	}
	if c.ring != nil {
		limit("ring", float64(c.ring.Used), float64(c.ring.Size), ratio(wire.About(uint64(c.ring.Used)), wire.About(uint64(c.ring.Size))))
	} else {
		row(plain, "status", statusWords(c.Capture))
	}
	st, text := deliveryText(c.Capture, now)
	row(st, "delivery", text)
	if c.Error != nil {
		row(red, "error", c.Error.Message)
	} else if n := len(c.Warnings); n > 0 {
		row(yellow, "warning", c.Warnings[n-1].Message)
	}
	return lines
}

// statusWords is the status with the reason of its end.
func statusWords(c wire.Capture) string {
	if c.StopReason != "" {
		return c.Status + ", stopped: " + c.StopReason
	}
	return c.Status
}

// deliveryText says where the files are.
func deliveryText(c wire.Capture, now time.Time) (style, string) {
	here, there, waiting := uint64(0), 0, ""
	kept := 0
	for _, f := range c.Files {
		switch f.Status {
		case wire.FileDelivered:
			there++
		case wire.FileOpen, wire.FileSpooled, wire.FileUploading, wire.FileFailed:
			kept++
			here += f.Bytes
		}
		if f.Error != "" && f.Status != wire.FileDelivered {
			waiting = fmt.Sprintf("try %d failed: %s", f.Attempts, f.Error)
			if f.NextAttempt != nil {
				waiting = fmt.Sprintf("next try in %s, %s", span(f.NextAttempt.Sub(now).Round(time.Second)), waiting)
			}
		}
	}
	if unstopped(c) && (c.Ring == nil || *c.Ring == 0) { // the open file's size is not told
		here = max(here, c.Bytes.Written-min(c.Bytes.Written, c.Bytes.Delivered))
	}
	if c.Destination == "" {
		return plain, fmt.Sprintf("%s kept here, %s", plural(uint64(kept), "file", "files"), wire.About(here))
	}
	text := fmt.Sprintf("to %s: %d of %s there, here %s", c.Destination, there, plural(uint64(len(c.Files)), "file", "files"), wire.About(here))
	if waiting != "" {
		return yellow, text + "; " + waiting
	}
	return plain, text
}

func helpLines(s screen) []string {
	return []string{
		"",
		"  j, down      the next capture, or scroll down",
		"  k, up        the one before, or scroll up",
		"  g, G         the first, the last",
		"  Enter        everything about the capture; again: back",
		"  s            stop it (y to confirm)",
		"  ?, h         this help",
		"  q, Ctrl-C    leave; the captures go on",
		"",
		s.cut("  The graph is packets/s, its highest value in the last minute at full height.", s.width),
		s.cut("  LEFT is what remains of the limit that is nearest, or the files delivered.", s.width),
	}
}
