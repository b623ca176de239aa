package ctl

import (
	"fmt"

	"github.com/spf13/cobra"

	"capd/ctl/wire"
)

// destinationCommand is capctl destination, with its subcommands.
func (a *app) destinationCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:        "destination",
		GroupID:    groupCheck,
		Short:      "where captures can be delivered to, and whether that works",
		SuggestFor: []string{"dest", "destinations", "profile", "profiles"},
		Long: `A destination is a profile in capd's configuration: a server, an account there and a path.
Profiles are made by whoever runs the box, in /etc/capd/destinations.d/NAME.toml, and
taken up by systemctl reload capd.`,
		Example: `  capctl destination list
  capctl destination check soc`,
		Args: a.unknownCommand,
		RunE: func(*cobra.Command, []string) error {
			return usagef("capctl destination wants a command: list or check").withHint("capctl help destination")
		},
	}
	cmd.AddCommand(
		&cobra.Command{
			Use:               "list",
			SuggestFor:        []string{"ls"},
			Short:             "the profiles",
			Long:              `list shows the destinations that capd knows, without their secrets.`,
			Example:           `  capctl destination list --json | jq -r '.[].name'`,
			Args:              exactly(),
			ValidArgsFunction: noFiles,
			RunE:              a.listDestinations,
		},
		&cobra.Command{
			Use:        "check NAME",
			SuggestFor: []string{"test", "probe"},
			Short:      "go through every step of a delivery with a probe",
			Long: `check goes through every step of a delivery with a small file, as far as the profile's
probe setting allows, and tells how each went. The exit code is 7 where one failed.
capctl start -d NAME does the same before the first packet.`,
			Example:           `  capctl destination check soc`,
			Args:              exactly("NAME"),
			ValidArgsFunction: a.completeDestination,
			RunE:              a.checkDestination,
		},
	)
	return cmd
}

func (a *app) listDestinations(cmd *cobra.Command, _ []string) error {
	ctx, cancel := a.soon(cmd.Context())
	defer cancel()
	list, err := a.client().Destinations(ctx)
	if err != nil {
		return err
	}
	if a.json {
		if list == nil {
			list = []wire.Destination{}
		}
		return a.printJSON(list)
	}
	if len(list) == 0 {
		a.note("no destinations: each is a file /etc/capd/destinations.d/NAME.toml, taken up by systemctl reload capd")
		return nil
	}
	columns := []column{{head: "NAME"}, {head: "TYPE"}, {head: "URL", least: 20}, {head: "VERIFIED BY", drop: 1}}
	var rows [][]cell
	for _, d := range list {
		rows = append(rows, []cell{{text: d.Name}, {text: d.Type}, {text: d.URL}, {text: orElse(d.Verify, "-")}})
	}
	return a.screenOf(a.stdout).table(a.stdout, columns, rows)
}

func (a *app) checkDestination(cmd *cobra.Command, args []string) error {
	check, err := a.client().CheckDestination(cmd.Context(), args[0])
	if err != nil {
		return err
	}
	if a.json {
		if err := a.printJSON(check); err != nil {
			return err
		}
	} else if err := a.printCheck(check); err != nil {
		return err
	}
	if !check.OK {
		failed := "a step failed"
		for _, step := range check.Steps {
			if !step.OK {
				failed = step.Step + " failed"
				break
			}
		}
		return &exitError{exit: exitDelivery, message: fmt.Sprintf("destination %s does not work: %s", args[0], failed)}
	}
	return nil
}

func (a *app) printCheck(check wire.Check) error {
	s := a.screenOf(a.stdout)
	width := 0
	for _, step := range check.Steps {
		width = max(width, columnsOf(clean(step.Step)))
	}
	for _, step := range check.Steps {
		mark, st := s.glyph("✓", "ok  "), green
		if step.Hint != "" { // nothing failed, and there is something to be done
			mark, st = s.glyph("!", "WARN"), yellow
		}
		if !step.OK {
			mark, st = s.glyph("✗", "FAIL"), red
		}
		line := s.paint(st, mark) + " " + clean(step.Step)
		if step.Detail != "" {
			line += fmt.Sprintf("%*s  %s", width-columnsOf(clean(step.Step)), "", oneLine(step.Detail))
		}
		if _, err := fmt.Fprintln(a.stdout, line); err != nil {
			return err
		}
		if step.Hint != "" {
			if _, err := fmt.Fprintf(a.stdout, "%*s hint: %s\n", columnsOf(mark), "", oneLine(step.Hint)); err != nil {
				return err
			}
		}
	}
	return nil
}
