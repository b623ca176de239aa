// Package ctl is capctl: its subcommands, what they print and how they end.
package ctl

import (
	"context"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"capd/ctl/client"
	"capd/ctl/wire"
	"capd/nft"
)

// Main runs capctl with the arguments after the program's name and returns its exit
// code. Where stdout or stderr is a terminal, tables fit it and colours are used.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	return withSignals(func(ctx context.Context) int { return newApp(stdin, stdout, stderr).run(ctx, args) })
}

// withSignals does something that the first SIGINT or SIGTERM ends; a second finds the
// default again, so that nothing can be too stuck for it.
func withSignals(do func(context.Context) int) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	return do(ctx)
}

// newApp is a run in this process's surroundings.
func newApp(stdin io.Reader, stdout, stderr io.Writer) *app {
	return &app{
		stdin: stdin, stdout: stdout, stderr: stderr,
		getenv:  os.Getenv,
		now:     time.Now,
		zone:    time.Local,
		signals: notify,
		devices: "/sys/class/net",
		nflog:   "/proc/net/netfilter/nfnetlink_log",
		timing:  timing{poll: 500 * time.Millisecond, plain: 10 * time.Second, patience: time.Minute, quick: 30 * time.Second, watch: time.Second},
	}
}

// app is one run of capctl: what it was given by the process, and its global flags.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	now            func() time.Time
	zone           *time.Location                         // of the times in tables
	signals        func() (<-chan os.Signal, func())      // SIGINT and SIGTERM, until the function is called
	screen         func(io.Writer) (columns int, ok bool) // nil: ask the kernel; tests have terminals of their own
	probe          func() (nft.Features, error)           // nil: try this kernel; tests have one that is known
	nflog          string                                 // the list of NFLOG listeners; "" = do not look
	lookup         lookup                                 // nil: ask the resolver of this machine; tests have names of their own
	devices        string                                 // where network interfaces are listed
	timing         timing

	args   []string // as given
	hosts  []string // as given: hosts and @groups
	box    *box     // the box that this run is for; nil = this machine
	clocks *clocks  // what is to be known of the boxes' clocks; nil: nobody asks
	socket string
	netns  string

	socketGiven bool // by --socket, and not by the environment of this machine
	forceJSON   bool

	json    bool
	quiet   bool
	noColor bool
	utc     bool

	order []string // the commands' names as the help lists them
	capd  *client.Client
}

// timing is how long capctl waits for what.
type timing struct {
	poll     time.Duration // between two looks at a capture that is waited for
	plain    time.Duration // between two lines about it where there is no terminal
	patience time.Duration // for a capd that has gone away meanwhile
	watch    time.Duration // between two looks of capctl watch
	quick    time.Duration // for an answer that needs nothing but capd itself
}

// Command groups, in the order of the help.
const (
	groupCapture = "capture"
	groupFiles   = "files"
	groupCheck   = "check"
	groupOther   = "other"
)

// run parses the arguments, does what they say and returns the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	return a.report(a.execute(ctx, args))
}

// execute is run without the report.
func (a *app) execute(ctx context.Context, args []string) error {
	root := a.root()
	if args == nil {
		args = []string{} // nil would make cobra take the process's own
	}
	a.args = args
	root.SetArgs(args)
	defer a.close()
	return root.ExecuteContext(ctx)
}

// close ends the connections.
func (a *app) close() {
	if a.capd != nil {
		a.capd.Close()
	}
	if a.box != nil {
		a.box.dialer.Close()
	}
}

func (a *app) root() *cobra.Command {
	var version bool
	root := &cobra.Command{
		Use:   "capctl",
		Short: "packet captures on this box, by capd",
		Long: `capctl starts packet captures, shows what they are doing and collects their files.
capd does the capturing: it matches packets in the kernel's own firewall, writes them as
pcapng and delivers the files to a server of yours over SFTP or S3, checked.`,
		Example: `  capctl start -d soc -t 5m udp port 5060     begin; prints the capture's id
  capctl list                                 what is running, and what was
  capctl show 0f8c                            everything about one
  capctl stop 0f8c                            end it early
  capctl start --wait -c 100 icmp             stay until 100 packets are delivered`,
		PersistentPreRunE: func(cmd *cobra.Command, args []string) error {
			a.socketGiven = cmd.Flags().Changed("socket")
			a.json = a.json || a.forceJSON
			return a.checkNetns(cmd, args)
		},

		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          a.unknownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if version {
				return a.version(cmd.Context())
			}
			return cmd.Help()
		},
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(flagError)
	root.SetHelpFunc(a.help)
	root.SetUsageFunc(func(cmd *cobra.Command) error { a.help(cmd, nil); return nil })
	root.AddGroup(
		&cobra.Group{ID: groupCapture, Title: "Captures"},
		&cobra.Group{ID: groupFiles, Title: "Their files"},
		&cobra.Group{ID: groupCheck, Title: "Before a capture"},
		&cobra.Group{ID: groupOther, Title: "About capctl"},
	)

	flags := root.PersistentFlags()
	flags.SortFlags = false
	flags.StringVar(&a.socket, "socket", a.getenv("CAPD_SOCKET"), "capd's socket at `PATH` (or CAPD_SOCKET; default "+wire.DefaultSocket+")")
	flags.Lookup("socket").DefValue = "" // the help says what it is
	flags.StringArrayVarP(&a.hosts, "host", "H", nil, "do it on `[user@]host[:port]` through ssh, or on a @group; repeatable")
	flags.StringVar(&a.netns, "netns", "", "the capd of the network namespace `NAME` (capd@NAME.service)")
	flags.BoolVar(&a.json, "json", false, "print what capd answers, as JSON")
	flags.BoolVarP(&a.quiet, "quiet", "q", false, "data and errors only: no notes, no progress")
	flags.BoolVar(&a.noColor, "no-color", false, "no colours (also with NO_COLOR set)")
	flags.BoolVar(&a.utc, "utc", false, "times in UTC instead of this machine's zone")
	_ = root.RegisterFlagCompletionFunc("host", a.completeHost)
	root.Flags().BoolVar(&version, "version", false, "as capctl version")

	help := never(a.helpCommand())
	root.SetHelpCommand(help)
	for _, cmd := range []*cobra.Command{
		a.startCommand(), a.listCommand(), a.showCommand(), a.stopCommand(), a.watchCommand(), a.tailCommand(),
		a.downloadCommand(), never(a.verifyCommand()), a.mergeCommand(), a.retryCommand(), a.removeCommand(),
		a.explainCommand(), a.destinationCommand(), a.doctorCommand(),
		a.versionCommand(), never(a.completionCommand()), help, never(a.dialStdioCommand()), never(a.manCommand()),
	} {
		a.onHosts(cmd)
		root.AddCommand(cmd)
		a.order = append(a.order, cmd.Name())
		for _, c := range append(cmd.Commands(), cmd) {
			c.Flags().SortFlags = false
			c.DisableFlagsInUseLine = true // the lines of use say where flags go
		}
	}
	return root
}

// client gives the connection to capd, made at its first use, when the flags are known.
func (a *app) client() *client.Client {
	if a.capd == nil {
		a.capd = a.clientOf(a.box)
	}
	return a.capd
}

// clientOf speaks to the capd of a box, or to the one here where that is nil.
func (a *app) clientOf(b *box) *client.Client {
	socket := a.socket
	if a.netns != "" {
		socket = wire.NetnsSocket(a.netns)
	}
	capd := &client.Client{Socket: socket, UserAgent: "capctl/" + wire.Version}
	if b != nil {
		capd.Dial = b.dialer.Dial
	}
	return capd
}

// checkNetns refuses a --netns that names no namespace, or a capd that --socket names too.
func (a *app) checkNetns(cmd *cobra.Command, _ []string) error {
	switch {
	case !cmd.Flags().Changed("netns"):
		return nil
	case cmd.Flags().Changed("socket"):
		return usagef("--netns %s and --socket %s name two sockets: give one of them", a.netns, a.socket)
	case a.netns == "" || a.netns == "." || a.netns == ".." || strings.ContainsAny(a.netns, "/\x00"):
		return usagef("--netns: %q is not the name of a network namespace", a.netns).withHint("ip netns list shows those there are; systemctl start capd@NAME.socket gives one its capd")
	}
	return nil
}

// soon bounds a call that capd answers from its own memory: where that takes long, capd
// hangs, and the user should hear of it.
func (a *app) soon(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, a.timing.quick)
}

// notify gives the process's signals.
func notify() (<-chan os.Signal, func()) {
	c := make(chan os.Signal, 2)
	signal.Notify(c, syscall.SIGINT, syscall.SIGTERM)
	return c, func() { signal.Stop(c) }
}
