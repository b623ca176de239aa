package main

import (
	"fmt"
	"html"
	"slices"
	"strings"
)

// bar is one reader in one panel of the plot.
type bar struct {
	name  string
	value float64
}

// plot draws what the samples lost and what they cost, a panel for each frame length, as
// SVG. It gives "" where there is nothing to compare.
func plot(samples []sample) string {
	const (
		width, left, barHeight, gap = 760, 270, 18, 6
		panelHead                   = 34
	)
	type panel struct {
		title, unit string
		bars        []bar
	}
	var panels []panel
	var lengths []int
	for _, s := range samples {
		if !slices.Contains(lengths, s.Frame) {
			lengths = append(lengths, s.Frame)
		}
	}
	slices.Sort(lengths)
	for _, length := range lengths {
		lost := medians(samples, length, sample.lostPercent)
		if len(lost) == 0 {
			continue
		}
		panels = append(panels,
			panel{fmt.Sprintf("%d-byte frames: packets lost", length), "%", lost},
			panel{fmt.Sprintf("%d-byte frames: CPU per captured packet", length), "ns", medians(samples, length, sample.perPacket)})
	}
	if len(panels) == 0 {
		return ""
	}
	var b strings.Builder
	y := 10
	for _, p := range panels {
		most := 1e-9
		for _, x := range p.bars {
			most = max(most, x.value)
		}
		fmt.Fprintf(&b, `<text x="10" y="%d" font-weight="bold">%s</text>`+"\n", y+16, html.EscapeString(p.title))
		y += panelHead
		for _, x := range p.bars {
			colour := "#8a8f98"
			if strings.HasPrefix(x.name, "capd") {
				colour = "#1f6feb"
			}
			length := x.value / most * (width - left - 90)
			fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text><rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/><text x="%.1f" y="%d">%s %s</text>`+"\n",
				left-8, y+13, html.EscapeString(x.name), left, y, max(length, 1), barHeight, colour, left+length+6, y+13, number(x.value), p.unit)
			y += barHeight + gap
		}
		y += 14
	}
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n"+
		`<rect width="100%%" height="100%%" fill="white"/>`+"\n%s</svg>\n", width, y, b.String())
}

// medians gives each reader's median over its samples of one frame length, in the order
// in which readers first appeared.
func medians(samples []sample, length int, of func(sample) float64) []bar {
	var names []string
	values := make(map[string][]float64)
	for _, s := range samples {
		if s.Frame != length {
			continue
		}
		if !slices.Contains(names, s.Reader) {
			names = append(names, s.Reader)
		}
		values[s.Reader] = append(values[s.Reader], of(s))
	}
	bars := make([]bar, len(names))
	for i, name := range names {
		bars[i] = bar{name, median(values[name])}
	}
	return bars
}
