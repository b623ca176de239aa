package ctl

import (
	"errors"
	"regexp"
	"strconv"
	"strings"

	"capd/ctl/wire"
)

// columnOf finds the column in an answer about a filter: bytes, from 1 on.
var columnOf = regexp.MustCompile(`\bcolumn ([0-9]{1,7})\b`)

// pointAt gives an error about a filter the place in it: the expression, and below it a
// caret. Other errors stay as they are.
func (a *app) pointAt(expression string, err error) error {
	var answered *wire.Error
	if !errors.As(err, &answered) || answered.Field != "filter" {
		return err
	}
	found := columnOf.FindStringSubmatch(answered.Message)
	if found == nil {
		return err
	}
	column, convErr := strconv.Atoi(found[1])
	if convErr != nil || column < 1 || column > len(expression)+1 {
		return err
	}
	exit, message, hint := verdict(err)
	return &exitError{exit: exit, message: message, hint: hint, excerpt: caret(expression, column-1, 76)}
}

// caret shows a part of a text around a place, at most so many columns wide, and a caret
// below it.
func caret(text string, at, width int) []string {
	const dots = "…"
	before, after := flat(text[:at]), flat(text[at:])
	if columnsOf(before) > width-16 {
		for columnsOf(before) > width-16-len(dots) {
			_, before = firstRune(before)
		}
		before = dots + before
	}
	room := width - columnsOf(before)
	if columnsOf(after) > room {
		kept := ""
		for {
			r, rest := firstRune(after)
			if columnsOf(kept+r)+1 > room {
				break
			}
			kept, after = kept+r, rest
		}
		after = kept + dots
	}
	return []string{"  " + before + after, "  " + strings.Repeat(" ", columnsOf(before)) + "^"}
}

// flat makes a text one clean line of the same number of characters where it can.
func flat(text string) string {
	return clean(strings.NewReplacer("\n", " ", "\r", " ", "\t", " ").Replace(text))
}

func firstRune(s string) (first, rest string) {
	for i := range s {
		if i > 0 {
			return s[:i], s[i:]
		}
	}
	return s, ""
}
