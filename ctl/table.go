package ctl

import (
	"io"
	"strings"
)

// column is one column of a table.
type column struct {
	head  string
	right bool // numbers
	least int  // may be cut down to so many columns; 0 = never
	drop  int  // left out where space lacks, the highest first; 0 = never
}

// cell is text from wherever, to be cleaned, and its style.
type cell struct {
	text  string
	style style
}

const gap = "  "

// table writes rows under a head, fitted to the screen: first columns are left out in
// the order they allow, then the widest of those that may be cut are cut.
func (s screen) table(w io.Writer, columns []column, rows [][]cell) error {
	widths := make([]int, len(columns))
	for i, c := range columns {
		widths[i] = columnsOf(c.head)
		for _, row := range rows {
			widths[i] = max(widths[i], columnsOf(clean(row[i].text)))
		}
	}
	s.fit(columns, widths)

	var b strings.Builder
	line := func(text func(i int) string, st func(i int) style) {
		first, pad := true, 0
		for i, c := range columns {
			if widths[i] == 0 {
				continue
			}
			t := s.cut(text(i), widths[i])
			fill := widths[i] - columnsOf(t)
			if !first {
				pad += len(gap)
			}
			first = false
			if c.right {
				pad += fill
				fill = 0
			}
			// Spaces are owed until something follows, so that no line ends in them.
			if t != "" {
				b.WriteString(strings.Repeat(" ", pad))
				pad = 0
			}
			b.WriteString(s.paint(st(i), t))
			pad += fill
		}
		b.WriteByte('\n')
	}
	line(func(i int) string { return columns[i].head }, func(int) style { return bold })
	for _, row := range rows {
		line(func(i int) string { return clean(row[i].text) }, func(i int) style { return row[i].style })
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// fit brings the widths within the screen; a width of 0 leaves the column out.
func (s screen) fit(columns []column, widths []int) {
	if s.width <= 0 {
		return
	}
	over := func(width func(i int) int) int {
		total := -len(gap)
		for i := range columns {
			if widths[i] > 0 {
				total += width(i) + len(gap)
			}
		}
		return total - s.width
	}
	least := func(i int) int {
		if l := columns[i].least; l > 0 {
			return min(widths[i], max(l, columnsOf(columns[i].head)))
		}
		return widths[i]
	}
	for over(least) > 0 {
		drop := -1
		for i, c := range columns {
			if widths[i] > 0 && c.drop > 0 && (drop < 0 || c.drop > columns[drop].drop) {
				drop = i
			}
		}
		if drop < 0 {
			break
		}
		widths[drop] = 0
	}
	for n := over(func(i int) int { return widths[i] }); n > 0; n-- {
		widest := -1
		for i := range columns {
			if widths[i] > least(i) && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			return
		}
		widths[widest]--
	}
}
