package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
)

// commandLine is the flags of one of capd's commands, which is called name.
func commandLine(name string, stderr io.Writer) *flag.FlagSet {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {} // parse tells it where it was asked for
	return flags
}

// parse reads a command's flags, after which nothing may stand. Where that ends the command,
// because its usage was asked for or is not kept to, it tells so, and with which exit code.
func parse(flags *flag.FlagSet, args []string, usage string, stdout io.Writer) (exit int, ends bool) {
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return 0, true
	case err != nil: // flags has told it
		fmt.Fprintf(flags.Output(), "see %s --help\n", flags.Name())
		return 2, true
	case flags.NArg() > 0:
		fmt.Fprintf(flags.Output(), "%s: unexpected argument %q; see %s --help\n", flags.Name(), flags.Arg(0), flags.Name())
		return 2, true
	}
	return 0, false
}
