package config

import (
	"slices"
	"strings"
)

// suggest says which of the valid names was meant, or which there are.
func suggest(name string, valid []string) string {
	slices.Sort(valid)
	best, least := "", len(name)
	for _, v := range valid {
		if d := distance(strings.ToLower(name), v); d < least {
			best, least = v, d
		}
	}
	if best != "" && least <= max(2, len(best)/3) {
		return `did you mean "` + best + `"?`
	}
	return "valid here: " + strings.Join(valid, ", ")
}

// distance is the number of letters to insert, delete, change or swap with their
// neighbour to make b of a.
func distance(a, b string) int {
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
