package wire

import "strings"

// NameHint says in words what ValidName holds for.
const NameHint = "1 to 64 of a-z, A-Z, 0-9, dot, dash and underscore, beginning with a letter or digit"

// ValidName holds for names of captures, destinations, hosts and groups and for label keys.
func ValidName(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i, c := range []byte(s) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || !strings.ContainsRune("._-", rune(c))) {
			return false
		}
	}
	return true
}
