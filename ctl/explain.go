package ctl

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"capd/ctl/wire"
)

// explainCommand is capctl explain.
func (a *app) explainCommand() *cobra.Command {
	var r requestFlags
	cmd := &cobra.Command{
		Use:     "explain [flags] [EXPRESSION...]",
		GroupID: groupCheck,
		Short:   "the rules that start would install; installs nothing",
		Long: `explain takes the flags and the expression of start and prints the nftables rules that it
would install, at which hooks, which part of the filter the kernel matches and which capd
itself. Nothing is installed and nothing captured.`,
		Example: `  capctl explain udp port 5060
  capctl explain -i eth0 -s 128 'tcp port 443 and host 192.0.2.7'`,
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := a.request(cmd, &r, args)
			if err != nil {
				return err
			}
			explained, err := a.explainer()(cmd.Context(), req)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(explained)
			}
			return a.printExplain(explained)
		},
	}
	r.add(cmd)
	a.completeRequest(cmd)
	return cmd
}

// explainer gives what turns a request into rules: capd, so that its defaults and its
// kernel count.
func (a *app) explainer() func(context.Context, wire.StartRequest) (wire.Explain, error) {
	return func(ctx context.Context, req wire.StartRequest) (wire.Explain, error) {
		ctx, cancel := a.soon(ctx)
		defer cancel()
		return a.client().Explain(ctx, req)
	}
}

// printExplain writes the rules in a form that nft -f reads, the rest as comments.
func (a *app) printExplain(e wire.Explain) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# hooks: %s\n", oneLine(strings.Join(e.Hooks, ", ")))
	fmt.Fprintf(&b, "# matched by the kernel: %s\n", oneLine(orElse(e.Kernel, "every packet")))
	fmt.Fprintf(&b, "# matched by capd: %s\n", oneLine(orElse(e.User, "nothing more")))
	b.WriteString(cleanLines(strings.TrimRight(e.Ruleset, "\n")) + "\n")
	if _, err := fmt.Fprint(a.stdout, b.String()); err != nil {
		return err
	}
	s := a.screenOf(a.stderr)
	for _, w := range e.Warnings {
		if !a.quiet {
			fmt.Fprintf(a.stderr, "%s %s\n", s.paint(yellow, "warning:"), oneLine(w.Message))
		}
	}
	return nil
}
