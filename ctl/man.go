package ctl

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"capd/ctl/remote"
	"capd/ctl/roff"
	"capd/ctl/wire"
)

// manCommand is capctl man: the manual pages of capctl, from the same source as its help.
func (a *app) manCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Hidden: true,
		Short:  "write capctl's manual pages",
		Long: `man writes capctl(1) and a page for each command, capctl-start(1) and so on, into DIR,
which is made where it is not there. SOURCE_DATE_EPOCH sets their date.`,
		Example: `  capctl man packaging/man`,
		Args:    exactly("DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			pages := a.manPages(cmd.Root())
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return failf("%v", err)
			}
			for name, text := range pages {
				if err := os.WriteFile(filepath.Join(args[0], name), []byte(text), 0o644); err != nil {
					return failf("%v", err)
				}
			}
			a.note("%s in %s", plural(uint64(len(pages)), "page", "pages"), args[0])
			return nil
		},
	}
}

// manPages gives the pages by their files' names.
func (a *app) manPages(root *cobra.Command) map[string]string {
	pages := map[string]string{"capctl.1": a.manRoot(root)}
	for _, cmd := range a.inOrder(root.Commands()) {
		if !cmd.Hidden {
			pages["capctl-"+cmd.Name()+".1"] = a.manCommandPage(root, cmd)
		}
	}
	return pages
}

func (a *app) manRoot(root *cobra.Command) string {
	p := roff.New("capctl", 1, root.Short, "capd "+wire.Version, roff.Date())
	p.Head("Synopsis")
	p.Synopsis("capctl [flags] COMMAND [arguments]")
	p.Head("Description")
	p.Text(root.Long)
	p.Head("Commands")
	var see []string
	for _, g := range root.Groups() {
		p.Subhead(g.Title)
		for _, cmd := range a.inOrder(root.Commands()) {
			if cmd.GroupID == g.ID && !cmd.Hidden {
				p.Item("capctl-"+cmd.Name()+"(1)", cmd.Short)
				see = append(see, "capctl-"+cmd.Name()+"(1)")
			}
		}
	}
	p.Head("Options")
	p.Text("Of every command:")
	items(p, root.PersistentFlags())
	p.Head("Many boxes")
	p.Text(`With -H a command runs on other boxes, all at once, through ssh(1) as the user has set it up, and
capctl there, so that capd on each box knows and audits who asks. With one box everything
is as on this machine. With several, list prints one table, start gives all captures one
name, which the other commands take, and one label (fleet=NAME), download makes a folder
for each box, and what fails on a box is told with its name while the others go on.
--json prints an array of {"host", "exit_code", "result" | "error"}.

@group stands for hosts of a small file, ` + "~/.config/capctl/hosts" + `:

  # group: hosts, or other groups
  edge:   edge-1 edge-2 ops@edge-3:2222
  core:   core-1 core-2
  berlin: @edge core-1

A line that begins with space goes on with the group before it; @all is every host in the
file.`)
	p.Head("Examples")
	p.Example(root.Example)
	manExits(p)
	p.Head("Environment")
	p.Item("CAPD_SOCKET", "capd's socket, as --socket; on the other box where -H is given.")
	p.Item("CAPCTL_HOSTS", "the hosts file.")
	p.Item("CAPCTL_SSH", "the ssh program and its options, instead of ssh.")
	p.Item("SSH_CONNECTION", "set by sshd(8): this connection is left out of captures that are started through it.")
	p.Item("NO_COLOR, COLUMNS, TERM, LANG", "no colours; the width of tables; a terminal that cannot write a line again (dumb); whether it shows more than ASCII.")
	p.Head("Files")
	p.Item(wire.DefaultSocket, "where capd listens.")
	p.Item(filepath.Join("~", strings.TrimPrefix(remote.DefaultFile(func(name string) string { return "" }), "/")), "the user's boxes (see Many boxes).")
	p.See(append(see, "capd(8)", "capd.toml(5)", "pcap-filter(7)", "tcpdump(8)", "wireshark(1)")...)
	return p.String()
}

func (a *app) manCommandPage(root, cmd *cobra.Command) string {
	p := roff.New("capctl-"+cmd.Name(), 1, cmd.Short, "capd "+wire.Version, roff.Date())
	p.Head("Synopsis")
	all := []*cobra.Command{cmd}
	if cmd.HasAvailableSubCommands() {
		all = a.inOrder(cmd.Commands())
	}
	for _, c := range all {
		p.Synopsis(c.UseLine())
	}
	p.Head("Description")
	p.Text(cmd.Long)
	if cmd.HasAvailableSubCommands() {
		for _, c := range all {
			p.Subhead(c.UseLine())
			p.Text(c.Long)
		}
	}
	p.Head("Options")
	for _, c := range all {
		for _, s := range sectionsOf(c) {
			if s.title != plainFlags {
				p.Subhead(s.title)
			}
			items(p, s.flags)
		}
	}
	p.Subhead("Of every command")
	items(p, root.PersistentFlags())
	p.Head("Examples")
	p.Example(cmd.Example)
	manExits(p)
	see := []string{"capctl(1)", "capd(8)", "capd.toml(5)"}
	if slices.Contains([]string{"start", "explain"}, cmd.Name()) {
		see = append(see, "pcap-filter(7)")
	}
	if slices.Contains([]string{"verify"}, cmd.Name()) {
		see = append(see, "ssh-keygen(1)")
	}
	p.See(see...)
	return p.String()
}

// items writes flags with what they do.
func items(p *roff.Page, flags *pflag.FlagSet) {
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		kind, usage := pflag.UnquoteUsage(f)
		term := "--" + f.Name
		if f.Shorthand != "" {
			term = "-" + f.Shorthand + ", " + term
		}
		if f.Value.Type() != "bool" && kind != "" {
			term += " " + kind
		}
		p.Item(term, usage)
	})
}

// exitTexts says what the exit codes mean, for the manual.
var exitTexts = []struct {
	code int
	text string
}{
	{exitDone, "done"},
	{exitFailed, "failed"},
	{exitUsage, "usage: what was typed makes no sense, or the request does not"},
	{exitUnreachable, "capd cannot be reached"},
	{exitForbidden, "not permitted"},
	{exitNotFound, "no such capture or destination"},
	{exitLimit, "a limit of this box refuses it"},
	{exitDelivery, "the destination check failed, or with --wait the capture or its delivery"},
	{exitLoss, "with --wait: delivered, but packets were lost, or after a kill of capd it is not known"},
}

func manExits(p *roff.Page) {
	p.Head("Exit status")
	for _, e := range exitTexts {
		p.Item(fmt.Sprint(e.code), e.text)
	}
	p.Text("For several boxes (-H) it is the highest of theirs, where 8 gives way to what failed.")
}
