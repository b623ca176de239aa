package ctl

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"capd/ctl/wire"
)

// stopCommand is capctl stop.
func (a *app) stopCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:        "stop [flags] CAPTURE... | --all",
		GroupID:    groupCapture,
		Short:      "end captures; prints their final counts",
		SuggestFor: []string{"kill", "end", "abort"},
		Long: `stop ends captures and prints their final counts. When it returns, no rule of theirs is
left in the kernel; what was captured is delivered, which capctl show follows. Stopping a
capture that has ended does nothing. --all stops every capture that runs.`,
		Example: `  capctl stop 0f8c
  capctl stop voip-drops 77ab
  capctl stop --all`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case all && len(args) > 0:
				return usagef("capctl stop: either captures or --all")
			case !all && len(args) == 0:
				return usagef("capctl stop wants a CAPTURE, or --all").withHint("capctl list shows what runs")
			}
			return nil
		},
		ValidArgsFunction: a.completeCapture(many, unstopped),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !all {
				stopped, err := a.stop(cmd.Context(), args)
				if a.json && len(args) == 1 && len(stopped) == 1 {
					return errors.Join(err, a.printJSON(stopped[0]))
				}
				return a.printStopped(stopped, err)
			}
			ids, err := a.unstopped(cmd.Context())
			if err != nil {
				return err
			}
			if len(ids) == 0 {
				a.note("no capture runs")
			}
			return a.printStopped(a.stop(cmd.Context(), ids))
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "every capture that runs")
	return cmd
}

// stop ends captures, prints a line for each, and gives those that it has ended.
func (a *app) stop(ctx context.Context, refs []string) ([]wire.Capture, error) {
	stopped := []wire.Capture{}
	err := a.each(ctx, refs, func(ctx context.Context, ref string) error {
		c, err := a.client().Stop(ctx, ref)
		if err != nil {
			return err
		}
		stopped = append(stopped, c)
		if !a.json {
			_, err = fmt.Fprintln(a.stdout, finalCounts(c))
		}
		return err
	})
	return stopped, err
}

// printStopped prints captures as JSON, where that was asked for and there is something to
// tell besides the error.
func (a *app) printStopped(stopped []wire.Capture, err error) error {
	if a.json && (err == nil || len(stopped) > 0) {
		return errors.Join(err, a.printJSON(stopped))
	}
	return err
}

// unstopped gives the ids of captures that run.
func (a *app) unstopped(ctx context.Context) (ids []string, err error) {
	ctx, cancel := a.soon(ctx)
	defer cancel()
	captures, err := a.client().List(ctx, false)
	for _, c := range captures {
		if unstopped(c) {
			ids = append(ids, c.ID)
		}
	}
	return ids, err
}

func unstopped(c wire.Capture) bool {
	return c.Status == wire.StatusPending || c.Status == wire.StatusRunning
}

// finalCounts says in a line what a capture came to.
func finalCounts(c wire.Capture) string {
	name := short(c.ID)
	if c.Name != "" {
		name += " " + clean(c.Name)
	}
	matched := "matched not known:"
	if c.Packets.Matched != nil {
		matched = "matched " + count(*c.Packets.Matched) + " ="
	}
	return fmt.Sprintf("%s: %s%s captured %s + lost %s + discarded %s; %s", name, seen(c.Packets), matched,
		count(c.Packets.Captured), knownLoss(c), discarded(c.Packets), written(c))
}

// seen says what of the packets that the filter took never reached capd; "" where nothing.
func seen(p wire.Packets) string {
	if p.Seen == nil || p.Matched == nil || p.SampledOut == nil || p.Limited == nil || *p.SampledOut+*p.Limited == 0 {
		return ""
	}
	return fmt.Sprintf("seen %s = matched %s + sampled out %s + limited %s; ", count(*p.Seen), count(*p.Matched), count(*p.SampledOut), count(*p.Limited))
}

// limited says how many packets the box's rate held back; "" where none.
func limited(p wire.Packets) string {
	if p.Limited == nil || *p.Limited == 0 {
		return ""
	}
	return ", " + plural(*p.Limited, "packet", "packets") + " held back by the box's packet rate"
}

// written says how much was written, and how much of that was let go: a capture lists
// only some of those files (wire.RemovedListed).
func written(c wire.Capture) string {
	files, gone := uint64(len(c.Files)), ""
	if c.Removed != nil && c.Removed.Files > 0 {
		for _, f := range c.Files {
			if f.Status == wire.FileRemoved {
				files--
			}
		}
		files += c.Removed.Files
		gone = ", of which " + plural(c.Removed.Files, "was let go", "were let go")
	}
	return wire.About(c.Bytes.Written) + " in " + plural(files, "file", "files") + gone
}

// retryCommand is capctl retry.
func (a *app) retryCommand() *cobra.Command {
	return &cobra.Command{
		Use:        "retry [flags] CAPTURE",
		GroupID:    groupFiles,
		Short:      "deliver again what is not delivered",
		SuggestFor: []string{"redeliver", "resend"},
		Long: `retry has capd deliver at once what of a capture is not delivered, instead of waiting for
the next try, and also what it had given up. capctl show tells how it goes.`,
		Example: `  capctl destination check soc && capctl retry 0f8c`,
		Args:    exactly("CAPTURE"),
		ValidArgsFunction: a.completeCapture(1, func(c wire.Capture) bool {
			return c.Status == wire.StatusDelivering || c.Status == wire.StatusFailed
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client().Retry(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(c)
			}
			left := uint64(0)
			for _, f := range c.Files {
				if f.Status != wire.FileDelivered && f.Status != wire.FileRemoved {
					left++
				}
			}
			a.note("%s to %s; capctl show %s tells how it goes", plural(left, "file", "files"), c.Destination, short(c.ID))
			return nil
		},
	}
}

// removeCommand is capctl rm.
func (a *app) removeCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:        "rm [flags] CAPTURE...",
		GroupID:    groupFiles,
		Short:      "forget finished captures and delete what is left of them here",
		SuggestFor: []string{"remove", "delete", "del", "forget", "prune"},
		Long: `rm forgets finished captures and deletes what is left of them on the box; what was
delivered stays where it is. Data that should have been delivered and is not is deleted
only with --force. A capture that runs has to be stopped first.`,
		Example: `  capctl rm 0f8c
  capctl rm --force voip-drops`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return exactly("CAPTURE")(cmd, args)
			}
			return nil
		},
		ValidArgsFunction: a.completeCapture(many, func(c wire.Capture) bool { return !unstopped(c) }),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), args, func(ctx context.Context, ref string) error {
				if err := a.client().Remove(ctx, ref, force); err != nil {
					return err
				}
				a.note("removed %s", ref)
				return nil
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also data that is not delivered")
	return cmd
}
