package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"capd/ctl/remote"
	"capd/ctl/wire"
)

// extcapName is the name under which capctl is one of Wireshark's external capture
// programs: a link of that name in its extcap folder.
const extcapName = "capd-extcap"

// IsExtcap reports whether the program was called by that name.
func IsExtcap(program string) bool { return filepath.Base(program) == extcapName }

// Names of Wireshark interfaces: this machine, a router of the hosts file, and one whose
// address is a field of the form.
const (
	extcapPrefix = "capd:"
	extcapHere   = extcapPrefix + "local"
	extcapAny    = extcapPrefix + "ssh"
)

// extcapDLT is announced to Wireshark, which takes the true link type from the stream.
const extcapDLT = 276 // LINKTYPE_LINUX_SLL2

// extcapCall is what Wireshark asks for (Wireshark Developer's Guide, "Adding Capture
// Interfaces And Log Sources Using Extcap").
type extcapCall struct {
	interfaces, dlts, config, capture bool
	iface, fifo                       string
	wireshark                         string // filter from Wireshark's own field

	filter, hook, device, router string
	snaplen, sample              string
}

// Extcap answers Wireshark and returns the exit code.
func Extcap(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	return withSignals(func(ctx context.Context) int {
		a := newApp(stdin, stdout, stderr)
		err := a.extcap(ctx, args)
		var code *exitError
		if errors.As(err, &code) && code.message == "" {
			return code.exit // told already
		}
		return a.report(err)
	})
}

func (a *app) extcap(ctx context.Context, args []string) error {
	var c extcapCall
	f := pflag.NewFlagSet(extcapName, pflag.ContinueOnError)
	f.ParseErrorsAllowlist.UnknownFlags = true // of newer Wiresharks
	f.Usage = func() {}
	f.BoolVar(&c.interfaces, "extcap-interfaces", false, "")
	f.BoolVar(&c.dlts, "extcap-dlts", false, "")
	f.BoolVar(&c.config, "extcap-config", false, "")
	f.BoolVar(&c.capture, "capture", false, "")
	f.StringVar(&c.iface, "extcap-interface", "", "")
	f.StringVar(&c.fifo, "fifo", "", "")
	f.StringVar(&c.wireshark, "extcap-capture-filter", "", "")
	f.StringVar(&c.router, "router", "", "")
	f.StringVar(&c.filter, "filter", "", "")
	f.StringVar(&c.hook, "hook", "", "")
	f.StringVar(&c.device, "interface", "", "")
	f.StringVar(&c.snaplen, "snaplen", "", "")
	f.StringVar(&c.sample, "sample", "", "")
	if err := f.Parse(args); err != nil {
		return usagef("%v", err)
	}
	var b strings.Builder
	switch {
	case c.interfaces:
		a.extcapInterfaces(&b)
	case c.iface == "":
		return usagef("%s is called by Wireshark", extcapName).
			withHint("link it into Wireshark's extcap folder (Help, About, Folders); then: tshark -D")
	case c.dlts:
		fmt.Fprintf(&b, "dlt {number=%d}{name=LINUX_SLL2}{display=as capd chooses}\n", extcapDLT)
	case c.config:
		c.form(&b)
	case c.capture:
		return a.extcapCapture(ctx, c)
	case f.Changed("extcap-capture-filter"):
		// Wireshark paints its field red where something is printed.
		if _, err := explain(wire.StartRequest{Filter: c.wireshark}); err != nil {
			fmt.Fprintln(&b, oneLine(err.Error()))
		}
	}
	_, err := io.WriteString(a.stdout, b.String())
	return err
}

// extcapInterfaces lists the routers.
func (a *app) extcapInterfaces(b *strings.Builder) {
	fmt.Fprintf(b, "extcap {version=%s}{help=https://www.wireshark.org/docs/man-pages/extcap.html}{display=capd}\n", wire.Version)
	line := func(value, display string) { fmt.Fprintf(b, "interface {value=%s}{display=%s}\n", value, display) }
	line(extcapHere, "capd on this machine")
	file, err := remote.ReadFile(remote.DefaultFile(a.getenv))
	if err == nil {
		hosts, err := file.Expand([]string{"@all"})
		if err == nil {
			for _, h := range hosts {
				line(extcapPrefix+h.String(), "capd on "+h.String())
			}
		}
	}
	line(extcapAny, "capd on a router, by ssh")
}

// form writes the fields of Wireshark's dialog.
func (c *extcapCall) form(b *strings.Builder) {
	n := 0
	field := func(call, display, kind, more string) {
		fmt.Fprintf(b, "arg {number=%d}{call=--%s}{display=%s}{type=%s}%s\n", n, call, display, kind, more)
		n++
	}
	required := ""
	if c.iface == extcapAny {
		required = "{required=true}"
	}
	if c.iface != extcapHere {
		field("router", "Router address", "string", "{tooltip=[user@]host[:port], as ssh takes it; empty: the one of this interface}{placeholder=ops@edge-1}"+required)
	}
	field("filter", "Filter", "string", "{tooltip=tcpdump's language; matched in the router's kernel}{placeholder=udp port 5060}")
	field("interface", "Interface", "string", "{tooltip=a network interface of the router, in and out; empty: each packet once, wherever it passes}{placeholder=eth0}")
	field("hook", "Hook", "selector", "{tooltip=where in the router's kernel}")
	fmt.Fprintf(b, "value {arg=%d}{value=}{display=as capd chooses}{default=true}\n", n-1)
	for _, h := range hooks {
		fmt.Fprintf(b, "value {arg=%d}{value=%s}{display=%s}\n", n-1, h, h)
	}
	field("snaplen", "Bytes of each packet", "unsigned", "{range=0,262144}{default=0}{tooltip=0: whole packets}")
	field("sample", "One packet in", "unsigned", "{range=1,1000000}{default=1}{tooltip=1: all}")
}

// extcapCapture is capctl start -w into Wireshark's pipe.
func (a *app) extcapCapture(ctx context.Context, c extcapCall) error {
	if c.fifo == "" {
		return usagef("--capture wants --fifo")
	}
	args := []string{"--quiet"}
	router := c.router
	if router == "" && !slices.Contains([]string{extcapHere, extcapAny}, c.iface) {
		var ok bool
		if router, ok = strings.CutPrefix(c.iface, extcapPrefix); !ok {
			return usagef("no such interface: %s", c.iface)
		}
	}
	switch {
	case router != "":
		args = append(args, "--host", router)
	case c.iface == extcapAny:
		return usagef("the router's address is missing").withHint("it is a field of the interface's options, or in tshark: -o extcap.capd_ssh.router:edge-1")
	}
	args = append(args, "start", "--write", c.fifo)
	for flag, value := range map[string]string{"interface": c.device, "hook": c.hook, "snaplen": c.snaplen, "sample": c.sample} {
		if value != "" {
			args = append(args, "--"+flag, value)
		}
	}
	var filters []string
	for _, f := range []string{c.filter, c.wireshark} {
		if strings.TrimSpace(f) != "" {
			filters = append(filters, "("+f+")")
		}
	}
	args = append(append(args, "--"), strings.Join(filters, " and "))
	if len(filters) == 0 {
		args = args[:len(args)-1]
	}
	if exit := a.run(ctx, args); exit != exitDone {
		return &exitError{exit: exit}
	}
	return nil
}
