package daemon

import (
	"slices"
	"testing"

	"capd/nft"
	"capd/ring"
)

// TestSettle: what is lost is what the log rule counted and nobody received, however the
// kernel's numbers are shared.
func TestSettle(t *testing.T) {
	const number = 5000
	for name, test := range map[string]struct {
		group                        ring.GroupStats
		counted, discarded           uint64
		reset, unknown               bool
		matched, sequence, tail, bad uint64
		warnings                     []string
	}{
		"nothing lost":             {group: ring.GroupStats{Received: 10}, counted: 10, discarded: 3, matched: 10},
		"gaps":                     {group: ring.GroupStats{Received: 10, Gaps: 4}, counted: 14, matched: 14, sequence: 4},
		"gaps and a tail":          {group: ring.GroupStats{Received: 10, Gaps: 4, Malformed: 1}, counted: 20, matched: 20, sequence: 4, tail: 5, bad: 1},
		"counter set back":         {group: ring.GroupStats{Received: 10, Gaps: 4}, counted: 9, matched: 14, sequence: 4, warnings: []string{"counters_reset"}},
		"foreign, nothing lost":    {group: ring.GroupStats{Received: 10, Foreign: 90}, counted: 10, matched: 10, warnings: []string{"foreign_packets"}},
		"foreign, only theirs":     {group: ring.GroupStats{Received: 10, Foreign: 90, Gaps: 70}, counted: 10, matched: 10, warnings: []string{"foreign_packets"}},
		"foreign, theirs and ours": {group: ring.GroupStats{Received: 10, Foreign: 90, Gaps: 70}, counted: 25, matched: 25, sequence: 15, warnings: []string{"foreign_packets"}},
		"foreign, all gaps ours":   {group: ring.GroupStats{Received: 10, Foreign: 90, Gaps: 7, Malformed: 2}, counted: 25, matched: 25, sequence: 7, bad: 2, tail: 6, warnings: []string{"foreign_packets"}},
		"foreign and set back":     {group: ring.GroupStats{Received: 10, Foreign: 90, Gaps: 7}, counted: 12, reset: true, matched: 17, sequence: 7, warnings: []string{"foreign_packets", "counters_reset"}},
		"not known":                {group: ring.GroupStats{Received: 10, Gaps: 4}, unknown: true, sequence: 4, warnings: []string{"counters_unknown"}},
	} {
		t.Run(name, func(t *testing.T) {
			var live liveCounts
			live.captured.Store(test.group.Received - test.discarded)
			live.discarded.Store(test.discarded)
			test.group.Number = number
			kernel := nft.Counters{Matched: map[uint16]uint64{number: test.counted}, Reset: test.reset}
			p, warnings := settle(kernel, !test.unknown, []ring.GroupStats{test.group}, &live)
			var codes []string
			for _, w := range warnings {
				codes = append(codes, w.Code)
			}
			if !slices.Equal(codes, test.warnings) {
				t.Errorf("warnings %q, want %q", codes, test.warnings)
			}
			if p.LostBy.Sequence != test.sequence || p.LostBy.Tail != test.tail || p.LostBy.Decode != test.bad || p.Discarded == nil || *p.Discarded != test.discarded {
				t.Errorf("lost by %+v, want by sequence %d, tail %d, decode %d", p.LostBy, test.sequence, test.tail, test.bad)
			}
			if test.unknown {
				if p.Matched != nil || p.Seen != nil || p.Lost != nil {
					t.Errorf("matched %v, seen %v and lost %v of counters that are not known", p.Matched, p.Seen, p.Lost)
				}
				return
			}
			if *p.Lost != test.sequence+test.tail+test.bad {
				t.Errorf("lost %d by %+v", *p.Lost, p.LostBy)
			}
			if *p.Matched != test.matched || *p.Matched != p.Captured+*p.Lost+*p.Discarded {
				t.Errorf("matched %d (want %d) is not captured %d + lost %d + discarded %d", *p.Matched, test.matched, p.Captured, *p.Lost, *p.Discarded)
			}
		})
	}
}
