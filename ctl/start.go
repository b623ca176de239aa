package ctl

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"capd/ctl/wire"
)

// startCommand is capctl start.
func (a *app) startCommand() *cobra.Command {
	var r requestFlags
	var wait bool
	var to string
	cmd := &cobra.Command{
		Use:     "start [flags] [EXPRESSION...]",
		GroupID: groupCapture,
		Short:   "begin a capture",
		Long: `start begins a capture and prints its id, alone on a line of stdout.

EXPRESSION is tcpdump's filter language, pcap-filter(7). It is matched in the kernel:
what does not match is never copied. Words may stand in several arguments; quote what
the shell would take for itself, such as parentheses. Flags may stand anywhere.

As with tcpdump: -i interface, -c packets, -s snaplen. Unlike tcpdump: without -i each
packet is seen once, where it enters the box or is born on it, on whatever interface,
before NAT; with -i it is seen as the interface carries it, in and out. -n is the
capture's name, and names of hosts are looked up only with --resolve, here and now, by
capctl. Without -w the files go to a
destination (-d), checked there before they are deleted here, or stay on the box for
capctl download. With -w FILE or -w - the packets come here instead, live, as pcapng: no
destination, nothing kept on the box, and the capture ends with this command (Ctrl-C, a
closed pipe, a lost connection). Nothing is printed on stdout then but packets.

The capture belongs to capd: it goes on when you log out, and it always ends, by the
limits given here or by the box's own. What is not given is the box's choice; capctl
show tells what is in force. The SSH connection through which you came is left out of
the capture.

With --wait capctl stays until the files are delivered, and shows how far they are.
Ctrl-C then stops the capture and waits for the delivery; a second Ctrl-C leaves capd
to it. The exit code is 7 where the capture or the delivery failed, and 8 where all is
delivered but packets were lost, or a kill of capd left it unknown how many.`,
		Example: `  capctl start udp port 5060
  capctl start -d soc -t 10m -n voip-drops 'udp port 5060 and host 192.0.2.7'
  capctl start -i eth0 -c 1000 -s 128 'tcp[tcpflags] & (tcp-syn|tcp-fin) != 0'
  capctl start --hook prerouting,postrouting -c 100 icmp     both sides of a NAT
  capctl start -w - udp port 53 | tcpdump -nr -
  ssh edge-1 capctl start -w - udp port 53 | wireshark -k -i -
  capctl start --wait -b 100mb -d evidence && echo delivered
  capctl start -f request.json -t 30s                        the file's request, but 30 s
  echo '{"filter_v1": {"protocol": 6}, "type": "simple"}' | capctl start -f -`,
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := a.request(cmd, &r, args)
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("write") {
				if wait {
					return usagef("--wait and -w: with -w the command stays anyhow").withHint("leave --wait out")
				}
				return a.startStream(cmd.Context(), req, to)
			}
			return a.start(cmd.Context(), req, wait)
		},
	}
	r.add(cmd)
	cmd.Flags().BoolVar(&wait, "wait", false, "stay until it is delivered; Ctrl-C stops the capture")
	_ = cmd.Flags().SetAnnotation("wait", flagGroup, []string{"All of it"})
	cmd.Flags().StringVarP(&to, "write", "w", "", "no files on the box: write the packets to `FILE` here, or to stdout (-)")
	_ = cmd.Flags().SetAnnotation("write", flagGroup, []string{"Where to"})
	a.completeRequest(cmd)
	return cmd
}

func (a *app) start(ctx context.Context, req wire.StartRequest, wait bool) error {
	// From here on a signal is counted, so that one which comes just as capd answers
	// stops the capture instead of leaving it behind.
	signals, release := a.signals()
	defer release()
	a.share(&req)
	c, err := a.client().Start(ctx, req)
	if err != nil {
		if errors.Is(err, context.Canceled) {
			return failf("interrupted before capd answered").withHint("the capture may have begun all the same: capctl list")
		}
		return a.pointAt(req.Filter, err)
	}
	if !wait {
		if err := a.started(c); err != nil {
			return err
		}
		if a.json {
			return a.printJSON(c)
		}
		return nil
	}
	if err := a.started(c); err != nil {
		return err
	}
	c, err = a.wait(context.WithoutCancel(ctx), c, signals)
	if a.json {
		if jsonErr := a.printJSON(c); err == nil {
			err = jsonErr
		}
	}
	return err
}

// started prints the id, and tells on stderr what a person should know at once.
func (a *app) started(c wire.Capture) error {
	if !a.json {
		if _, err := fmt.Fprintln(a.stdout, clean(c.ID)); err != nil {
			return fmt.Errorf("printing the id of the capture %s: %w", c.ID, err)
		}
	}
	if a.quiet {
		return nil
	}
	where := "kept on " + orElse(c.Host, "the box") + " for capctl download " + short(c.ID)
	if c.Destination != "" {
		where = "delivered to " + c.Destination
	}
	a.note("ends %s; %s", untilWhen(c), where)
	for _, f := range c.Exclude {
		if mine, ok := sshFlow(a.getenv("SSH_CONNECTION")); ok && mine == f {
			a.note("your SSH connection (%s) is left out", flowText(f))
		}
	}
	a.warn(c)
	return nil
}

// warn tells a capture's warnings on stderr.
func (a *app) warn(c wire.Capture) {
	s := a.screenOf(a.stderr)
	for _, w := range c.Warnings {
		fmt.Fprintf(a.stderr, "%s %s\n", s.paint(yellow, "warning:"), oneLine(w.Message))
	}
}

// untilWhen says what ends a capture.
func untilWhen(c wire.Capture) string {
	var limits []string
	if c.TimeLimit != nil && *c.TimeLimit > 0 {
		limits = append(limits, "after "+c.TimeLimit.String())
	}
	if c.PacketLimit != nil && *c.PacketLimit > 0 {
		limits = append(limits, "after "+plural(*c.PacketLimit, "packet", "packets"))
	}
	if c.ByteLimit != nil && *c.ByteLimit > 0 && (c.Ring == nil || *c.Ring == 0) { // a ring's bound ends nothing
		limits = append(limits, "at "+limitSize(*c.ByteLimit))
	}
	return strings.Join(append(limits, "or with capctl stop "+short(c.ID)), ", ")
}

// short gives the part of an id that people are shown: 8 digits tell 16 captures apart
// but once in 30 million times; lists take more where they must.
func short(id string) string {
	return clean(id[:min(len(id), shortID)])
}

const shortID = 8

func orElse(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}
