// Package nearest says which of the names that are valid somewhere was meant by one that
// is not. It is pure, and a room of its own because the configuration, the control
// interface and capctl all refuse unknown names, and none of them may import another.
package nearest

import (
	"slices"
	"strings"
)

// longest is the length in bytes from which on a name is not compared: it comes from
// outside, and the work grows with it.
const longest = 64

// Hint gives the hint for an error about name: the valid name that it is a slip of the
// pen of, or all valid names. It does not change valid.
func Hint(name string, valid []string) string {
	if len(valid) == 0 {
		return "leave it out: there are none here"
	}
	valid = slices.Sorted(slices.Values(valid))
	best, least := "", len(name)
	if len(name) <= longest {
		for _, v := range valid {
			if d := Distance(strings.ToLower(name), v); d < least {
				best, least = v, d
			}
		}
	}
	if best != "" && least <= max(2, len(best)/3) {
		return `did you mean "` + best + `"?`
	}
	return "valid here: " + strings.Join(valid, ", ")
}

// Distance is the number of letters to insert, delete, change or swap with their
// neighbour to make b of a.
func Distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := last[j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			row[j] = min(last[j]+1, row[j-1]+1, change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
