package ctl

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"capd/ctl/wire"
	"capd/nearest"
)

// flagValue is a flag whose value is read by a function.
type flagValue struct {
	kind string // the value's name in the help
	text string // as given
	set  func(string) error
	many bool // each use adds to it
}

// String implements pflag.Value.
func (v *flagValue) String() string { return v.text }

// Type implements pflag.Value; pflag shows it in the help.
func (v *flagValue) Type() string { return v.kind }

// Set implements pflag.Value.
func (v *flagValue) Set(s string) error {
	if err := v.set(s); err != nil {
		return err
	}
	if v.many && v.text != "" {
		s = v.text + "," + s
	}
	v.text = s
	return nil
}

// sizeFlag reads a size such as 10mb.
func sizeFlag(to **wire.Size) *flagValue { return unitFlag(to, "SIZE", wire.ParseSize) }

// secondsFlag reads a duration such as 5m.
func secondsFlag(to **wire.Seconds) *flagValue { return unitFlag(to, "DURATION", wire.ParseSeconds) }

func unitFlag[T any](to **T, kind string, parse func(string) (T, error)) *flagValue {
	return &flagValue{kind: kind, set: func(s string) error {
		v, err := parse(s)
		if err == nil {
			*to = &v
		}
		return err
	}}
}

// numberFlag reads a whole number of at most most.
func numberFlag[T uint32 | uint64](to **T, most T) *flagValue {
	return &flagValue{kind: "N", set: func(s string) error {
		n, err := strconv.ParseUint(s, 10, 64)
		if errors.Is(err, strconv.ErrRange) || err == nil && n > uint64(most) {
			return fmt.Errorf("%s is too large: at most %d", s, most)
		}
		if err != nil {
			return fmt.Errorf("%q is not a whole number of 0 or more", s)
		}
		v := T(n)
		*to = &v
		return nil
	}}
}

// choiceFlag reads one of a few words.
func choiceFlag(to *string, kind string, words ...string) *flagValue {
	return &flagValue{kind: kind, set: func(s string) error {
		if err := oneOf(s, words); err != nil {
			return err
		}
		*to = s
		return nil
	}}
}

// listFlag reads words, with commas between them or in several flags, each judged by
// check.
func listFlag(to *[]string, kind string, check func(string) error) *flagValue {
	return &flagValue{kind: kind, many: true, set: func(s string) error {
		for _, word := range strings.Split(s, ",") {
			word = strings.TrimSpace(word)
			if err := check(word); err != nil {
				return err
			}
			*to = append(*to, word)
		}
		return nil
	}}
}

// labelFlag reads K=V.
func labelFlag(to *map[string]string) *flagValue {
	return &flagValue{kind: "K=V", many: true, set: func(s string) error {
		key, value, ok := strings.Cut(s, "=")
		if !ok || key == "" {
			return fmt.Errorf("%q is not of the form KEY=VALUE (ticket=NET-1234)", s)
		}
		if *to == nil {
			*to = map[string]string{}
		}
		(*to)[key] = value
		return nil
	}}
}

// oneOf refuses what is none of the words, and names the nearest.
func oneOf(s string, words []string) error {
	for _, w := range words {
		if s == w {
			return nil
		}
	}
	message := fmt.Sprintf("%q is none of %s", s, strings.Join(words, ", "))
	if near := closest(s, words); near != "" {
		message += fmt.Sprintf("; did you mean %s?", near)
	}
	return errors.New(message)
}

// closest gives the candidate that a mistyped word most probably meant, or "": at most a
// third of the word, rounded up, may have to be changed, or the word begins the candidate.
func closest(word string, candidates []string) string {
	best, bestCost := "", (len(word)+2)/3+1
	for _, c := range candidates {
		if cost := nearest.Distance(strings.ToLower(word), strings.ToLower(c)); cost < bestCost {
			best, bestCost = c, cost
		}
	}
	if best == "" && len(word) >= 2 {
		for _, c := range candidates {
			if strings.HasPrefix(c, word) {
				return c
			}
		}
	}
	return best
}

// tcpdumpFlags says what does here what tcpdump's flag does, for those who reach for it.
var tcpdumpFlags = map[string]string{
	"r": "files are read with tcpdump -r or wireshark",
	"w": "files go to a destination (-d) or stay on the box for capctl download",
	"C": "as tcpdump's -C: --segment-size 64mb",
	"G": "as tcpdump's -G: --segment-time 60s",
	"W": "as tcpdump's -W: --ring N",
	"B": "the receive buffer is set for the box, in /etc/capd/capd.toml: [ring] receive_buffer",
	"Q": "as tcpdump's -Q: --hook ingress or --hook egress",
	"A": "packets are not printed; fetch them with capctl download, then tcpdump -A -r FILE",
	"X": "packets are not printed; fetch them with capctl download, then tcpdump -X -r FILE",
	"v": "packets are not printed; fetch them with capctl download, then tcpdump -v -r FILE",
	"e": "packets are not printed; fetch them with capctl download, then tcpdump -e -r FILE",
	"p": "the mode of the interface is never changed",
	"y": "as tcpdump's -y: --link-type",
}

// flagError says what is wrong with a flag, and which one may have been meant.
func flagError(cmd *cobra.Command, err error) error {
	var missing *pflag.NotExistError
	var value *pflag.InvalidValueError
	var wanting *pflag.ValueRequiredError
	help := "capctl help " + strings.TrimPrefix(strings.TrimPrefix(cmd.CommandPath(), "capctl"), " ")
	switch {
	case errors.As(err, &missing):
		name := missing.GetSpecifiedName()
		if missing.GetSpecifiedShortnames() != "" {
			e := usagef("unknown flag: -%s", name[:1])
			if hint, ok := tcpdumpFlags[name[:1]]; ok && (cmd.Name() == "start" || cmd.Name() == "explain") {
				return e.withHint("%s", hint)
			}
			return e.withHint("%s", help)
		}
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden {
				names = append(names, f.Name)
			}
		})
		e := usagef("unknown flag: --%s", name)
		if near := closest(name, names); near != "" {
			return e.withHint("did you mean --%s? (%s)", near, help)
		}
		return e.withHint("%s", help)
	case errors.As(err, &value):
		cause := value.Unwrap()
		var number *strconv.NumError // of a boolean flag; pflag's text is strconv's
		if errors.As(cause, &number) {
			cause = fmt.Errorf("%q is not true or false", value.GetValue())
		}
		return usagef("--%s: %v", value.GetFlag().Name, cause)
	case errors.As(err, &wanting):
		f := wanting.GetFlag()
		kind, _ := pflag.UnquoteUsage(f)
		return usagef("--%s wants a value: --%s %s", f.Name, f.Name, kind).withHint("%s", help)
	}
	return usagef("%v", err).withHint("%s", help)
}

// unknownCommand refuses a word that is no command, for commands that only have
// subcommands.
func (a *app) unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var names []string
	meant := ""
	for _, sub := range cmd.Commands() {
		if sub.Hidden {
			continue
		}
		names = append(names, sub.Name())
		for _, other := range sub.SuggestFor {
			if other == args[0] {
				meant = sub.Name()
			}
		}
	}
	if meant == "" {
		meant = closest(args[0], names)
	}
	e := usagef("unknown command: %s %s", cmd.CommandPath(), args[0])
	if meant != "" {
		return e.withHint("did you mean %s %s? (capctl help lists all)", cmd.CommandPath(), meant)
	}
	return e.withHint("commands: %s", strings.Join(names, ", "))
}

// exactly makes the check of a command that takes so many arguments, by their names.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return usagef("%s wants %s", cmd.CommandPath(), article(names[len(args)])).withHint("usage: %s", cmd.UseLine())
		}
		if len(args) > len(names) {
			return usagef("%s: one argument too many: %q", cmd.CommandPath(), args[len(names)]).withHint("usage: %s", cmd.UseLine())
		}
		return nil
	}
}

// article writes the name of an argument as one.
func article(name string) string {
	return "a " + name
}
