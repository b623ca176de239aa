package ctl

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"capd/ctl/wire"
	"capd/nft"
	"capd/nft/filter"
)

// explainCommand is capctl explain.
func (a *app) explainCommand() *cobra.Command {
	var r requestFlags
	cmd := &cobra.Command{
		Use:     "explain [flags] [EXPRESSION...]",
		GroupID: groupCheck,
		Short:   "the rules that start would install; installs nothing",
		Long: `explain takes the flags and the expression of start and prints the nftables rules that it
would install, at which hooks and with which priorities, which part of the filter the
kernel decides and which capd itself, and what else is done to packets. Nothing is
installed and nothing captured; neither rights nor capd nor a kernel that could do it are
needed. The rules are those of a box with capd's default settings, such as
limits.max_packet_rate; the numbers of the NFLOG groups stand for what the kernel will
give. With rights it also looks for what in the kernel would hide packets from the capture.

With -H the capd of that box explains, with its settings and its kernel.

The rules can be given to nft -c -f - to have them checked.`,
		Example: `  capctl explain udp port 5060
  capctl explain -i eth0 -s 128 'tcp port 443 and host 192.0.2.7'
  capctl explain --hook prerouting,postrouting 'icmp or tcp[tcpflags] & tcp-rst != 0'`,
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := a.request(cmd, &r, args)
			if err != nil {
				return err
			}
			explain := explain
			if a.box != nil { // with that box's settings and kernel
				explain = func(req wire.StartRequest) (wire.Explain, error) {
					ctx, cancel := a.soon(cmd.Context())
					defer cancel()
					return a.client().Explain(ctx, req)
				}
			}
			explained, err := explain(req)
			if err != nil {
				return a.pointAt(req.Filter, err)
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

// defaultRate is limits.max_packet_rate of a box that says nothing else.
const defaultRate = 100000

// explain says what start would do on a box with default settings. Its errors are
// *wire.Error.
func explain(req wire.StartRequest) (wire.Explain, error) {
	spec, err := specOf(req)
	if err != nil {
		return wire.Explain{}, filterProblem(err)
	}
	if len(req.Hooks) == 0 && len(req.Interfaces) == 0 && !spec.Filter.AsksLength() {
		spec.Offloaded, _ = nft.Offloaded() // as below
	}
	e, err := nft.Explain(spec)
	if err != nil {
		return wire.Explain{}, filterProblem(err)
	}
	out := wire.Explain{Ruleset: e.Ruleset, Kernel: e.Kernel, User: e.User, Hooks: e.Hooks, Warnings: []wire.Warning{}}
	out.Reader = append(e.Reader, fmt.Sprintf("limits.max_packet_rate is taken to be capd's default, %d; capctl -H BOX explain asks that box's capd", defaultRate))
	// Without rights nothing can be looked for; that is no fault of the request.
	found, _ := nft.Hazards(spec)
	for _, h := range found {
		out.Warnings = append(out.Warnings, wire.Warning{Code: h.Code, Message: h.Message})
	}
	return out, nil
}

// specOf gives the rules of a request; what it leaves out is the box's default.
func specOf(req wire.StartRequest) (nft.Spec, error) {
	simple := req.Type == wire.TypeSimple
	for _, e := range []struct {
		field, value string
		words        []string
	}{{"type", req.Type, []string{wire.TypeFull, wire.TypeSimple}}, {"sample_by", req.SampleBy, []string{wire.SampleByPacket, wire.SampleByFlow}}} {
		if e.value == "" {
			continue
		}
		if err := oneOf(e.value, e.words); err != nil {
			return nft.Spec{}, fmt.Errorf("%s: %w", e.field, err)
		}
	}
	s := nft.Spec{
		ID: strings.Repeat("0", 32), Name: req.Name, Hooks: req.Hooks, Interfaces: req.Interfaces,
		CPUs: nft.CPUs(), Prefix: "capd:00000000", QueueThreshold: 1<<16 - 1, Rate: defaultRate,
		SampleFlow: req.SampleBy == wire.SampleByFlow, HeadersOnly: req.HeadersOnly, Annotate: req.Annotate,
	}
	if len(s.Hooks) == 0 {
		s.Hooks, s.Once = nft.DefaultHooks(req.Interfaces, simple)
	}
	if simple {
		s.Sample, s.Snaplen = nft.SimpleSample, nft.SimpleSnaplen
	}
	if auto := req.LinkType == "" || req.LinkType == wire.LinkAuto; auto {
		s.Raw = req.Format == wire.FormatPcap && !nft.Framed(s.Hooks)
	} else {
		s.Raw = req.LinkType == wire.LinkRaw
	}
	if req.Sample != nil {
		s.Sample = *req.Sample
	}
	if req.Snaplen != nil {
		s.Snaplen = *req.Snaplen
	}
	f, err := filter.Parse(req.Filter)
	if err != nil {
		return s, err
	}
	s.Filter = f
	if v := req.FilterV1; v != nil {
		v1, err := filter.FromV1(filter.V1{
			SourceAddress: v.SourceAddress, SourcePort: uint16(v.SourcePort),
			DestinationAddress: v.DestinationAddress, DestinationPort: uint16(v.DestinationPort),
			Protocol: string(v.Protocol),
		})
		if err != nil {
			return s, err
		}
		s.Filter = filter.And(f, v1)
	}
	for i, x := range req.Exclude {
		flow := filter.Flow{SourcePort: uint16(x.SourcePort), DestinationPort: uint16(x.DestinationPort)}
		for _, end := range []struct {
			text string
			to   *netip.Addr
		}{{x.Source, &flow.Source}, {x.Destination, &flow.Destination}} {
			if end.text == "" {
				continue
			}
			if *end.to, err = netip.ParseAddr(end.text); err != nil {
				return s, fmt.Errorf("exclude[%d]: %q is not an address", i, end.text)
			}
		}
		s.Exclude = append(s.Exclude, flow)
	}
	return s.WithGroups(nft.DefaultGroups()), nil
}

// filterProblem is an error as capd would answer it.
func filterProblem(err error) error {
	var fe *filter.Error
	if errors.As(err, &fe) {
		return &wire.Error{Status: http.StatusUnprocessableEntity, Code: wire.CodeInvalid, Field: fe.Field, Message: fe.Error(), Hint: fe.Hint}
	}
	return &wire.Error{Status: http.StatusUnprocessableEntity, Code: wire.CodeInvalid, Message: err.Error()}
}

// printExplain writes the rules in a form that nft -f reads, the rest as comments.
func (a *app) printExplain(e wire.Explain) error {
	var b strings.Builder
	line := func(what, text string) { fmt.Fprintf(&b, "# %s: %s\n", what, oneLine(text)) }
	line("hooks", strings.Join(e.Hooks, ", "))
	line("matched by the kernel", orElse(e.Kernel, "every packet"))
	line("matched by capd", orElse(e.User, "nothing more"))
	for _, r := range e.Reader {
		line("reader", r)
	}
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
