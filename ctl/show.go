package ctl

import (
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"capd/ctl/wire"
)

// maxLeftOut is how many connections that were left out show lists: of capd's own, after
// many deliveries, there can be a hundred.
const maxLeftOut = 5

// showCommand is capctl show.
func (a *app) showCommand() *cobra.Command {
	return &cobra.Command{
		Use:        "show [flags] CAPTURE",
		GroupID:    groupCapture,
		Short:      "everything about one capture",
		SuggestFor: []string{"inspect", "status", "info", "describe", "get"},
		Long: `show tells everything about one capture: what it asks for, its limits and how much of
them is used, the counts, what was lost and where, each file with its hashes and where it
went, errors and warnings.

CAPTURE is an id, the beginning of one (4 characters or more) or a name. In the counts,
seen = matched + sampled out + limited, and matched = captured + lost + discarded: what
matched the filter, and what became of it. Both hold exactly once the capture has stopped.
Lost is measured on its own, from the kernel's numbering; discarded came after a limit.`,
		Example: `  capctl show 0f8c
  capctl show voip-drops --utc
  capctl show --json voip-drops | jq .packets`,
		Args:              exactly("CAPTURE"),
		ValidArgsFunction: a.completeCapture(1, nil),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := a.soon(cmd.Context())
			defer cancel()
			c, err := a.client().Get(ctx, args[0])
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(c)
			}
			var b strings.Builder
			a.printCapture(&b, c)
			_, err = io.WriteString(a.stdout, b.String())
			return err
		},
	}
}

// sheet writes names and values under headings.
type sheet struct {
	b *strings.Builder
	s screen
}

func (w sheet) head(text string) { fmt.Fprintf(w.b, "\n%s\n", w.s.paint(bold, text)) }

// row writes one value; an empty one is left out.
func (w sheet) row(name, value string) { w.styled(plain, name, value) }

func (w sheet) styled(st style, name, value string) {
	if value != "" {
		fmt.Fprintf(w.b, "  %-12s %s\n", name, w.s.paint(st, oneLine(value)))
	}
}

// printCapture writes a capture for people. Nothing is cut: it is the place to find all.
func (a *app) printCapture(b *strings.Builder, c wire.Capture) {
	a.printCaptureOn(a.screenOf(a.stdout), b, c)
}

func (a *app) printCaptureOn(s screen, b *strings.Builder, c wire.Capture) {
	w := sheet{b, s}
	title := clean(c.ID)
	if c.Name != "" {
		title = clean(c.Name) + "  " + title
	}
	fmt.Fprintln(b, w.s.paint(bold, title))
	status := c.Status
	if c.Status == wire.StatusRunning {
		status += " for " + span(running(c, a.now()))
	}
	if c.StopReason != "" {
		status += ", stopped: " + c.StopReason
	}
	w.styled(statusStyle(c.Status), "status", status)
	if c.Error != nil {
		w.styled(red, "error", c.Error.Message+" ("+c.Error.Code+")")
		w.row("hint", c.Error.Hint)
	}
	for _, warning := range c.Warnings {
		w.styled(yellow, "warning", warning.Message+" ("+warning.Code+")")
	}
	w.row("host", c.Host)
	w.row("asked by", requesterText(c.RequestedBy))
	for _, k := range slices.Sorted(maps.Keys(c.Labels)) {
		w.row("label", k+"="+c.Labels[k])
	}

	w.head("Packets asked for")
	a.printRequest(w, c)
	w.head("Times")
	a.printTimes(w, c)
	w.head("Limits")
	a.printLimits(w, c)
	w.head("Counts")
	printCounts(w, c)
	w.head(fmt.Sprintf("Files (%d)", len(c.Files)))
	if len(c.Files) == 0 && c.Stream {
		w.row("none", "it is a live stream")
	} else if len(c.Files) == 0 {
		w.row("none", "yet")
	}
	if r := c.Removed; r != nil {
		w.row("removed", fmt.Sprintf("%s with %s, %s", plural(r.Files, "file", "files"), plural(r.Packets, "packet", "packets"), wire.About(r.Bytes)))
	}
	for _, f := range c.Files {
		a.printFile(w, f)
	}
}

func requesterText(r wire.Requester) string {
	text := fmt.Sprintf("uid %d", r.UID)
	if r.User != "" {
		text = fmt.Sprintf("%s (uid %d", r.User, r.UID)
		if r.LoginUID != nil && *r.LoginUID != r.UID {
			text += fmt.Sprintf(", logged in as uid %d", *r.LoginUID)
		}
		text += ")"
	}
	if r.PID > 0 {
		text += ", pid " + strconv.Itoa(int(r.PID))
	}
	return text
}

func (a *app) printRequest(w sheet, c wire.Capture) {
	r := c.StartRequest
	filter := r.Filter
	if filter == "" && r.FilterV1 == nil {
		filter = "none: every packet"
	}
	w.row("filter", filter)
	w.row("filter_v1", filterV1Text(r.FilterV1))
	w.row("interfaces", strings.Join(r.Interfaces, ", "))
	w.row("hooks", strings.Join(r.Hooks, ", "))
	kept := "whole packets"
	if r.Snaplen != nil && *r.Snaplen > 0 {
		kept = "the first " + plural(uint64(*r.Snaplen), "byte", "bytes") + " of each"
	}
	if r.HeadersOnly {
		kept = "headers only, " + kept
	}
	if r.Sample != nil && *r.Sample > 1 {
		by := "packets"
		if r.SampleBy == wire.SampleByFlow {
			by = "flows"
		}
		kept += ", one in " + count(uint64(*r.Sample)) + " " + by
	}
	if r.Annotate {
		kept += ", annotated"
	}
	w.row("kept", kept)
	for i, f := range r.Exclude {
		if rest := len(r.Exclude) - i; i == maxLeftOut && rest > 1 {
			w.row("left out", fmt.Sprintf("%d more connections (--json names them)", rest))
			break
		}
		w.row("left out", flowText(f))
	}
	w.row("type", r.Type)
	files := []string{r.Format}
	if r.LinkType != "" {
		files = append(files, "link type "+r.LinkType)
	}
	if r.SegmentSize != nil && *r.SegmentSize > 0 {
		files = append(files, "a new one each "+limitSize(*r.SegmentSize))
	}
	if r.SegmentTime != nil && *r.SegmentTime > 0 {
		files = append(files, "or "+r.SegmentTime.String())
	}
	if r.Ring != nil && *r.Ring > 0 {
		files = append(files, "only the newest "+count(uint64(*r.Ring)))
	}
	w.row("files", strings.Join(slices.DeleteFunc(files, func(s string) bool { return s == "" }), ", "))
	nowhere := "none: kept here for capctl download"
	if c.Stream {
		nowhere = "none: it went live to whoever started it, and nothing is kept"
	}
	w.row("destination", orElse(r.Destination, nowhere))
}

// flowText writes a flow by its ends.
func flowText(f wire.Flow) string {
	end := func(addr string, port wire.Port) string {
		switch {
		case addr == "" && port == 0:
			return "any"
		case port == 0:
			return addr
		}
		return net.JoinHostPort(orElse(addr, "*"), strconv.Itoa(int(port)))
	}
	return end(f.Source, f.SourcePort) + " with " + end(f.Destination, f.DestinationPort)
}

func (a *app) printTimes(w sheet, c wire.Capture) {
	w.row("submitted", a.instant(c.Submitted.Time))
	for _, t := range []struct {
		name string
		at   *wire.Time
	}{{"started", c.Started}, {"stopped", c.Stopped}, {"completed", c.Completed}} {
		if t.at != nil {
			w.row(t.name, a.instant(t.at.Time))
		}
	}
	if c.Started != nil {
		w.row("ran", span(running(c, a.now())))
	}
}

func (a *app) printLimits(w sheet, c wire.Capture) {
	limit := func(name, whole, part, share string) {
		w.row(name, fmt.Sprintf("%-10s %s used (%s)", whole, part, share))
	}
	if c.TimeLimit != nil && *c.TimeLimit > 0 {
		d := running(c, a.now())
		limit("time", c.TimeLimit.String(), span(d), percent(d.Seconds(), c.TimeLimit.Duration().Seconds()))
	}
	if c.PacketLimit != nil && *c.PacketLimit > 0 {
		limit("packets", count(*c.PacketLimit), count(c.Packets.Captured), percent(float64(c.Packets.Captured), float64(*c.PacketLimit)))
	}
	if c.ByteLimit != nil && *c.ByteLimit > 0 {
		kept := c.Bytes.Written
		if c.Removed != nil {
			kept -= min(kept, c.Removed.Bytes) // the limit is for what a ring keeps
		}
		limit("bytes", limitSize(*c.ByteLimit), wire.About(kept), percent(float64(kept), float64(*c.ByteLimit)))
	}
	w.row("on overload", c.OnOverload)
}

// printCounts writes the two sums, and says where one does not come out.
func printCounts(w sheet, c wire.Capture) {
	p := c.Packets
	stopped := c.Stopped != nil
	told := told(p)
	if p.Seen != nil && p.Matched != nil && p.SampledOut != nil && p.Limited != nil {
		w.row("seen", fmt.Sprintf("%s = matched %s + sampled out %s + limited %s", count(*p.Seen), count(*p.Matched), count(*p.SampledOut), count(*p.Limited)))
		if stopped && *p.Seen != *p.Matched+*p.SampledOut+*p.Limited {
			w.styled(red, "", "this sum does not come out: please report it")
		}
	} else if stopped || finished(c) {
		w.row("seen", "not known: the kernel's counters are gone")
	}
	parts := fmt.Sprintf("captured %s + lost %s + discarded %s", count(p.Captured), knownLoss(c), discarded(p))
	switch {
	case p.Matched == nil:
		w.row("matched", "not known: "+parts)
	case !stopped && *p.Matched > told:
		w.row("matched", fmt.Sprintf("%s = %s + on their way %s", count(*p.Matched), parts, count(*p.Matched-told)))
	default:
		w.row("matched", count(*p.Matched)+" = "+parts)
		if stopped && *p.Matched != told {
			w.styled(red, "", "this sum does not come out: please report it")
		}
	}
	text := "0"
	st := plain
	if lossUnknown(c) {
		text, st = "not known", red
	}
	if n := lost(p); n > 0 {
		st = red
		text = fmt.Sprintf("%s = gaps in the numbering %s + at the tail %s", count(n), count(p.LostBy.Sequence), count(p.LostBy.Tail))
		if p.LostBy.Decode > 0 {
			text += " + malformed " + count(p.LostBy.Decode)
		}
		if p.LostBy.Write > 0 {
			text += " + not written " + count(p.LostBy.Write)
		}
		if p.LostBy.Spool > 0 {
			text += " + no room in the spool " + count(p.LostBy.Spool)
		}
		if lossUnknown(c) {
			text += ", as far as it is known"
		} else {
			text += fmt.Sprintf(" (%.2g%%)", 100*float64(n)/float64(told))
		}
	}
	w.styled(st, "lost", text)
	packets := wire.About(c.Bytes.Captured)
	if c.Bytes.Captured == 0 && p.Captured > 0 {
		packets = "not known" // after a kill
	}
	w.row("bytes", fmt.Sprintf("packets %s, files %s, delivered %s", packets, wire.About(c.Bytes.Written), wire.About(c.Bytes.Delivered)))
}

func (a *app) printFile(w sheet, f wire.File) {
	st := plain
	switch f.Status {
	case wire.FileDelivered:
		st = green
	case wire.FileFailed:
		st = red
	}
	status := f.Status
	if f.Verified != "" {
		status += ", verified by " + f.Verified
	}
	if f.Interrupted {
		status += ", cut by a kill and repaired to its last whole packet"
	}
	if f.Cut {
		status += ", cut by a kill: it can be read up to the cut"
	}
	fmt.Fprintf(w.b, "  %s  %s\n", w.s.paint(bold, clean(f.Name)), w.s.paint(st, clean(status)))
	row := func(name, value string) { w.row("  "+name, value) }
	if f.Status == wire.FileOpen && f.Bytes == 0 { // its bytes are told when it is closed
		row("contents", plural(f.Packets, "packet", "packets")+" so far")
	} else {
		row("contents", plural(f.Packets, "packet", "packets")+", "+wire.About(f.Bytes)+" ("+count(f.Bytes)+" bytes)")
	}
	if f.First != nil && f.Last != nil {
		row("packets", "from "+a.instant(f.First.Time)+" to "+a.instant(f.Last.Time))
	}
	if f.Stored > 0 {
		row("stored", wire.About(f.Stored)+" were not compressed, to keep up")
	}
	row("sha256", f.SHA256)
	if f.SHA256Plain != f.SHA256 {
		row("plain", f.SHA256Plain) // before compression and sealing
	}
	row("at", f.URL)
	if f.Delivered != nil {
		row("delivered", a.instant(f.Delivered.Time))
	}
	if f.Attempts > 1 || f.Error != "" {
		tries := plural(uint64(max(f.Attempts, 0)), "try", "tries")
		if f.NextAttempt != nil {
			tries += ", the next in " + span(f.NextAttempt.Sub(a.now())) + " (" + a.moment(f.NextAttempt.Time) + ")"
		}
		row("attempts", tries)
	}
	if f.Error != "" {
		w.styled(red, "  error", f.Error)
	}
}
