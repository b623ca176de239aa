package api

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"capd/ctl/wire"
)

// unknownField is the 422 of a field that no request has; field is its dotted path and
// name its last part.
func unknownField(field, name string, valid []string) *wire.Error {
	return &wire.Error{Status: http.StatusUnprocessableEntity, Code: wire.CodeUnknownField, Message: "unknown field " + shown(field), Field: field, Hint: suggest(name, valid)}
}

// suggest says which of the valid names was meant, or which there are.
func suggest(name string, valid []string) string {
	if len(valid) == 0 {
		return "leave it out: there are none here"
	}
	slices.Sort(valid)
	best, least := "", len(name)
	if len(name) <= 64 {
		for _, v := range valid {
			if d := distance(strings.ToLower(name), v); d < least {
				best, least = v, d
			}
		}
	}
	if best != "" && least <= max(2, len(best)/3) {
		return fmt.Sprintf("did you mean %q?", best)
	}
	return "valid here: " + strings.Join(valid, ", ")
}

// distance is the number of letters to insert, delete, change or swap with their
// neighbour to make b of a. (daemon/config has the like: the two share nothing else.)
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
