package ctl

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"capd/ctl/wire"
)

// listCommand is capctl list.
func (a *app) listCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:        "list [flags]",
		GroupID:    groupCapture,
		Short:      "captures, newest first",
		SuggestFor: []string{"ls", "ps", "captures"},
		Long: `list shows the captures that are not finished and the last 20 that are, newest first;
with --all every one that capd still remembers.

On a terminal the table fits its width: columns are shortened or left out, and the full
text is in capctl show. LOST counts packets that matched and could not be kept.`,
		Example: `  capctl list
  capctl list --all --utc
  capctl list --json | jq -r '.[] | select(.packets.lost > 0) | .id'`,
		Args:              exactly(),
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := a.soon(cmd.Context())
			defer cancel()
			captures, err := a.client().List(ctx, all)
			if err != nil {
				return err
			}
			if a.json {
				if captures == nil {
					captures = []wire.Capture{}
				}
				return a.printJSON(captures)
			}
			if len(captures) == 0 {
				if all {
					a.note("no captures yet: capctl start -c 10 icmp makes one")
				} else {
					a.note("no captures: capctl start makes one")
				}
				return nil
			}
			return a.printList(captures, nil)
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "every capture that is remembered")
	return cmd
}

// printList writes a table, with a column of hosts where there are any.
func (a *app) printList(captures []wire.Capture, hosts []string) error {
	ids := shortIDs(captures)
	columns := []column{
		{head: "ID"},
		{head: "NAME", least: 5},
		{head: "STATUS"},
		{head: "AGE", right: true, drop: 2},
		{head: "STARTED", drop: 6},
		{head: "PACKETS", right: true, drop: 1},
		{head: "LOST", right: true},
		{head: "SIZE", right: true, drop: 3},
		{head: "TO", least: 8, drop: 4},
		{head: "FILTER", least: 12, drop: 5},
	}
	if hosts != nil {
		columns = append([]column{{head: "HOST", least: 8}}, columns...)
	}
	now := a.now()
	var rows [][]cell
	for i, c := range captures {
		begun := c.Submitted
		if c.Started != nil {
			begun = *c.Started
		}
		lost := cell{text: knownLoss(c)}
		if lossNoted(c) {
			lost.style = red
		}
		row := []cell{
			{text: ids[i]},
			{text: orElse(c.Name, "-")},
			{text: statusText(c), style: statusStyle(c.Status)},
			{text: shortAge(now.Sub(begun.Time))},
			{text: a.moment(begun.Time)},
			{text: count(c.Packets.Captured)},
			lost,
			{text: wire.About(c.Bytes.Written)},
			{text: orElse(c.Destination, "-")},
			{text: orElse(filterText(c.StartRequest), "-")},
		}
		if hosts != nil {
			row = append([]cell{{text: hosts[i]}}, row...)
		}
		rows = append(rows, row)
	}
	return a.screenOf(a.stdout).table(a.stdout, columns, rows)
}

// shortIDs gives each capture the first 8 digits of its id, or as many as it takes to
// tell it from the others in the list.
func shortIDs(captures []wire.Capture) []string {
	ids := make([]string, len(captures))
	for i, c := range captures {
		n := min(shortID, len(c.ID))
		for j, other := range captures {
			for j != i && n < len(c.ID) && strings.HasPrefix(other.ID, c.ID[:n]) {
				n++
			}
		}
		ids[i] = c.ID[:n]
	}
	return ids
}

// statusText gives the status, with how many files are delivered while that goes on.
func statusText(c wire.Capture) string {
	if c.Status != wire.StatusDelivering || len(c.Files) < 2 {
		return c.Status
	}
	done := 0
	for _, f := range c.Files {
		if f.Status == wire.FileDelivered || f.Status == wire.FileRemoved {
			done++
		}
	}
	return fmt.Sprintf("%s %d/%d", c.Status, done, len(c.Files))
}

func statusStyle(status string) style {
	switch status {
	case wire.StatusRunning:
		return green
	case wire.StatusFailed:
		return red
	case wire.StatusPending, wire.StatusDelivering:
		return yellow
	}
	return plain
}

// filterText gives what a request asks for as a person would say it: interfaces as
// tcpdump's flag, the expression, the model API's filter.
func filterText(r wire.StartRequest) string {
	var parts []string
	for _, i := range r.Interfaces {
		parts = append(parts, "-i "+i)
	}
	if r.Filter != "" {
		parts = append(parts, r.Filter)
	}
	if v1 := filterV1Text(r.FilterV1); v1 != "" {
		if r.Filter != "" {
			v1 = "and " + v1
		}
		parts = append(parts, v1)
	}
	return strings.Join(parts, " ")
}

// filterV1Text writes the model API's filter in tcpdump's words.
func filterV1Text(f *wire.FilterV1) string {
	if f == nil {
		return ""
	}
	var parts []string
	add := func(format string, v any) { parts = append(parts, fmt.Sprintf(format, v)) }
	address := func(direction, text string) {
		if strings.Contains(text, "/") {
			add(direction+" net %s", text)
		} else {
			add(direction+" host %s", text)
		}
	}
	if f.Protocol != "" && f.Protocol != "0" {
		add("proto %s", f.Protocol)
	}
	if f.SourceAddress != "" {
		address("src", f.SourceAddress)
	}
	if f.SourcePort != 0 {
		add("src port %d", f.SourcePort)
	}
	if f.DestinationAddress != "" {
		address("dst", f.DestinationAddress)
	}
	if f.DestinationPort != 0 {
		add("dst port %d", f.DestinationPort)
	}
	return strings.Join(parts, " and ")
}
