package nearest

import (
	"slices"
	"strings"
	"testing"
)

func TestHint(t *testing.T) {
	fields := []string{"snaplen", "filter", "filter_v1", "time_limit", "name"}
	for _, c := range []struct {
		name  string
		valid []string
		want  string
	}{
		{"snaplenn", fields, `did you mean "snaplen"?`},
		{"SNAPLEN", fields, `did you mean "snaplen"?`},
		{"nmae", fields, `did you mean "name"?`}, // two letters swapped are one slip
		{"filtr", fields, `did you mean "filter"?`},
		{"destination", fields, "valid here: filter, filter_v1, name, snaplen, time_limit"},
		{"", fields, "valid here: filter, filter_v1, name, snaplen, time_limit"},
		{strings.Repeat("name", 17), fields, "valid here: filter, filter_v1, name, snaplen, time_limit"},
		{"x", nil, "leave it out: there are none here"},
	} {
		before := slices.Clone(c.valid)
		if got := Hint(c.name, c.valid); got != c.want {
			t.Errorf("%q: %s, want %s", c.name, got, c.want)
		}
		if !slices.Equal(before, c.valid) {
			t.Errorf("%q: the caller's list was changed to %v", c.name, c.valid)
		}
	}
}
