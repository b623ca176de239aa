package ctl

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// flagGroup is the annotation that puts a flag under a heading of the help.
const flagGroup = "capctl_group"

// helpCommand is capctl help.
func (a *app) helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "help [COMMAND]",
		GroupID: groupOther,
		Short:   "what a command does, and its flags",
		Long:    "help explains capctl, or one of its commands.",
		Example: `  capctl help start
  capctl help destination check`,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			of, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			var names []cobra.Completion
			for _, sub := range of.Commands() {
				if sub.IsAvailableCommand() {
					names = append(names, cobra.CompletionWithDesc(sub.Name(), sub.Short))
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			of, rest, err := cmd.Root().Find(args)
			if err != nil {
				return usagef("%v", err)
			}
			if len(rest) > 0 {
				return a.unknownCommand(of, rest)
			}
			a.help(of, nil)
			return nil
		},
	}
}

// help writes the help of a command, fitted to the screen. It is written out here, and
// not as one of cobra's templates, since text/template keeps the linker from leaving
// out methods: 3 MB.
func (a *app) help(cmd *cobra.Command, _ []string) {
	s := a.screenOf(a.stdout)
	width := 80
	if s.width > 0 {
		width = min(max(s.width, 40), 100)
	}
	var b strings.Builder
	head := func(text string) { fmt.Fprintf(&b, "\n%s\n", s.paint(bold, text+":")) }

	long := cmd.Long
	if long == "" {
		long = cmd.Short + "."
	}
	b.WriteString(fill(long, width, ""))
	head("Usage")
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(&b, "  %s COMMAND\n", cmd.CommandPath())
	} else {
		fmt.Fprintf(&b, "  %s\n", cmd.UseLine())
	}
	if cmd.Example != "" {
		head("Examples")
		b.WriteString(strings.TrimRight(cmd.Example, "\n") + "\n")
	}
	if cmd.HasAvailableSubCommands() {
		groups := cmd.Groups()
		if len(groups) == 0 {
			groups = []*cobra.Group{{Title: "Commands"}}
		}
		for _, g := range groups {
			head(g.Title)
			for _, sub := range a.inOrder(cmd.Commands()) {
				if (sub.IsAvailableCommand() || sub.Name() == "help") && sub.GroupID == g.ID {
					fmt.Fprintf(&b, "  %-12s %s\n", sub.Name(), sub.Short)
				}
			}
		}
	}
	a.helpFlags(&b, cmd, width, head)
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(&b, "\n%s help %s\n", cmd.Root().Name(), strings.TrimSpace(strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name())+" COMMAND tells more of one."))
	}
	_, _ = io.WriteString(a.stdout, b.String())
}

// inOrder sorts commands by use; cobra hands them out by name.
func (a *app) inOrder(cmds []*cobra.Command) []*cobra.Command {
	place := func(c *cobra.Command) int {
		if i := slices.Index(a.order, c.Name()); i >= 0 {
			return i
		}
		return len(a.order)
	}
	return slices.SortedStableFunc(slices.Values(cmds), func(x, y *cobra.Command) int { return place(x) - place(y) })
}

// plainFlags is the heading of flags that name none.
const plainFlags = "Flags"

// flagSection is some flags of a command under their heading.
type flagSection struct {
	title string
	flags *pflag.FlagSet
}

// sectionsOf gives a command's own flags under the headings that they name, those that
// name none under plainFlags.
func sectionsOf(cmd *cobra.Command) []*flagSection {
	var sections []*flagSection
	add := func(title string, f *pflag.Flag) {
		for _, s := range sections {
			if s.title == title {
				s.flags.AddFlag(f)
				return
			}
		}
		s := &flagSection{title, pflag.NewFlagSet(title, pflag.ContinueOnError)}
		s.flags.SortFlags = false
		s.flags.AddFlag(f)
		sections = append(sections, s)
	}
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		switch {
		case f.Name == "help", cmd.PersistentFlags().Lookup(f.Name) != nil, cmd.Root().PersistentFlags().Lookup(f.Name) != nil:
		case len(f.Annotations[flagGroup]) > 0:
			add(f.Annotations[flagGroup][0], f)
		default:
			add(plainFlags, f)
		}
	})
	return sections
}

// helpFlags writes a command's flags, and those of every command.
func (a *app) helpFlags(b *strings.Builder, cmd *cobra.Command, width int, head func(string)) {
	all := cmd.Root().PersistentFlags()
	for _, s := range append(sectionsOf(cmd), &flagSection{"Flags of every command", all}) {
		head(s.title)
		b.WriteString(s.flags.FlagUsagesWrapped(width))
	}
}

// fill sets paragraphs to a width; lines that begin with a space are left as they are.
func fill(text string, width int, indent string) string {
	var b strings.Builder
	column := 0
	end := func() {
		if column > 0 {
			b.WriteByte('\n')
			column = 0
		}
	}
	for _, line := range strings.Split(strings.Trim(text, "\n"), "\n") {
		if line == "" || line[0] == ' ' {
			end()
			b.WriteString(line + "\n")
			continue
		}
		for _, word := range strings.Fields(line) {
			n := columnsOf(word)
			if column > 0 && column+1+n > width {
				end()
			}
			if column == 0 {
				b.WriteString(indent + word)
				column = len(indent) + n
				continue
			}
			b.WriteString(" " + word)
			column += 1 + n
		}
	}
	end()
	return b.String()
}
