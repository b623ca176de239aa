package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"capd/ctl/client"
	"capd/ctl/wire"
	"capd/nft"
)

// doctorCommand is capctl doctor.
func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "doctor",
		GroupID: groupCheck,
		Short:   "is everything here that a capture needs?",
		Long: `doctor looks at everything that a capture needs: capd itself, what the kernel can do,
capabilities, memory and receive buffers, disk, clock, other users of NFLOG, offloads that
hide packets, and each destination with a probe. Each finding is a line, with its mend
where there is one. Where capd does not answer it finds out what it can without it, which
takes root. The exit code is 1 where something would fail.`,
		Example: `  capctl doctor
  capctl doctor --json | jq -r '.findings[] | select(.level != "ok") | .message'`,
		Args:              exactly(),
		ValidArgsFunction: noFiles,
		RunE:              func(cmd *cobra.Command, _ []string) error { return a.doctor(cmd.Context()) },
	}
}

func (a *app) doctor(ctx context.Context) error {
	d, err := a.examine(ctx)
	if err != nil {
		return err
	}
	if a.json {
		err = a.printJSON(d)
	} else {
		err = a.printDoctor(d)
	}
	if err == nil && !d.OK {
		err = &exitError{exit: exitFailed}
	}
	return err
}

// examine collects what capd finds, what its destinations say, and what can be seen from
// here only.
func (a *app) examine(ctx context.Context) (wire.Doctor, error) {
	soon, cancel := a.soon(ctx)
	defer cancel()
	d, err := a.client().Doctor(soon)
	switch {
	case errors.Is(err, client.ErrUnreachable) && a.box != nil:
		return d, err // what can be seen from here is another machine's
	case errors.Is(err, client.ErrUnreachable):
		_, message, hint := verdict(err)
		d.Findings = slices.Concat([]wire.Finding{{ID: "capd", Level: wire.LevelError, Message: message, Hint: hint}}, a.lastWords(soon), a.kernelFindings())
	case err != nil:
		return d, err
	default:
		d.Findings = slices.Concat(a.versionFinding(soon), d.Findings, a.hiddenFindings(soon), a.destinationFindings(ctx))
	}
	if a.box == nil {
		d.Findings = append(d.Findings, a.loggers()...)
	}
	d.OK = !slices.ContainsFunc(d.Findings, func(f wire.Finding) bool { return f.Level == wire.LevelError })
	return d, nil
}

// versionFinding compares capd's version with capctl's.
func (a *app) versionFinding(ctx context.Context) []wire.Finding {
	status, err := a.client().Status(ctx)
	if err != nil {
		_, message, hint := verdict(err)
		return []wire.Finding{{ID: "capd", Level: wire.LevelError, Message: message, Hint: hint}}
	}
	f := wire.Finding{ID: "capd", Level: wire.LevelOK, Message: fmt.Sprintf("capd %s answers on %s, up since %s", status.Version, status.Host, a.moment(status.Started.Time))}
	if status.Version != wire.Version {
		f.Level = wire.LevelWarning
		f.Message += ", and this is capctl " + wire.Version
		f.Hint = "systemctl restart capd, when no capture runs"
	}
	return []wire.Finding{f}
}

// hiddenFindings asks what would hide packets from a capture of everything.
func (a *app) hiddenFindings(ctx context.Context) []wire.Finding {
	explained, err := a.client().Explain(ctx, wire.StartRequest{})
	if err != nil {
		_, message, hint := verdict(err)
		return []wire.Finding{{ID: "rules", Level: wire.LevelError, Message: "a capture could not start: " + message, Hint: hint}}
	}
	if len(explained.Warnings) == 0 {
		return []wire.Finding{{ID: "rules", Level: wire.LevelOK, Message: "nothing is known to hide packets from a capture"}}
	}
	var out []wire.Finding
	for _, w := range explained.Warnings {
		level := wire.LevelWarning
		if w.Code == nft.HazardIngress { // nothing is hidden
			level = wire.LevelOK
		}
		out = append(out, wire.Finding{ID: "rules." + w.Code, Level: level, Message: w.Message})
	}
	return out
}

// destinationFindings goes through each destination with a probe, all at once.
func (a *app) destinationFindings(ctx context.Context) []wire.Finding {
	list, err := a.client().Destinations(ctx)
	if err != nil {
		_, message, hint := verdict(err)
		return []wire.Finding{{ID: "destinations", Level: wire.LevelWarning, Message: "not checked: " + message, Hint: hint}}
	}
	out := make([]wire.Finding, len(list))
	var checks sync.WaitGroup
	for i, destination := range list {
		checks.Go(func() { out[i] = a.destinationFinding(ctx, destination) })
	}
	checks.Wait()
	return out
}

func (a *app) destinationFinding(ctx context.Context, d wire.Destination) wire.Finding {
	f := wire.Finding{ID: "destination." + d.Name, Level: wire.LevelOK}
	check, err := a.client().CheckDestination(ctx, d.Name)
	var answered *wire.Error
	switch {
	case errors.As(err, &answered) && answered.Code == wire.CodeForbidden:
		_, message, hint := verdict(err)
		f.Level, f.Message, f.Hint = wire.LevelInfo, "not checked: "+message, hint
	case err != nil:
		f.Level = wire.LevelError
		_, f.Message, f.Hint = verdict(err)
	case check.OK:
		f.Message = fmt.Sprintf("%s works (%d steps)", d.URL, len(check.Steps))
	default:
		f.Level, f.Message = wire.LevelError, d.URL+" does not work"
		for _, step := range check.Steps {
			if !step.OK {
				f.Message, f.Hint = fmt.Sprintf("%s: %s: %s", d.URL, step.Step, step.Detail), step.Hint
				break
			}
		}
	}
	return f
}

// lastWords tells what capd said last in the journal, where that is why it ended. Its
// errors name their mends.
func (a *app) lastWords(ctx context.Context) []wire.Finding {
	unit, again := "capd.service", "systemctl reset-failed capd.service capd.socket && systemctl restart capd.socket capd.service"
	if a.netns != "" {
		unit, again = "capd@"+a.netns+".service", strings.NewReplacer("capd.", "capd@"+a.netns+".").Replace(again)
	}
	// One that stands in nobody's way: no journal, or no right to read it, is no finding.
	said, err := exec.CommandContext(ctx, "journalctl", "--boot", "--unit", unit, "--lines", "1", "--output", "json",
		"_TRANSPORT=journal", "_COMM=capd").Output()
	if err != nil {
		return nil
	}
	var entry struct {
		Message  string `json:"MESSAGE"`
		Priority string `json:"PRIORITY"`
		Time     string `json:"__REALTIME_TIMESTAMP"` // microseconds
	}
	us := int64(0)
	if json.Unmarshal(said, &entry) == nil {
		us, _ = strconv.ParseInt(entry.Time, 10, 64)
	}
	if us == 0 || entry.Priority > "3" { // 3: err (syslog(3))
		return nil
	}
	return []wire.Finding{{ID: "journal", Level: wire.LevelError, Hint: "when that is mended: " + again,
		Message: fmt.Sprintf("what capd said last, %s: %s", a.moment(time.UnixMicro(us)), clean(entry.Message))}}
}

// kernelFindings tries the kernel where capd does not answer.
func (a *app) kernelFindings() []wire.Finding {
	probe := a.probe
	if probe == nil {
		probe = nft.Probe
	}
	features, err := probe()
	if errors.Is(err, unix.EPERM) {
		return []wire.Finding{{ID: "kernel", Level: wire.LevelInfo, Message: "not looked at: that takes CAP_NET_ADMIN", Hint: "run capctl doctor as root"}}
	}
	if err != nil {
		return []wire.Finding{{ID: "kernel", Level: wire.LevelError, Message: err.Error(), Hint: "modprobe nf_tables nfnetlink_log nft_log, or use a kernel that has them"}}
	}
	var out []wire.Finding
	var has []string
	for _, f := range features.List() {
		if f.Err == nil {
			has = append(has, f.Name)
			continue
		}
		level := wire.LevelWarning
		if f.Needed {
			level = wire.LevelError
		}
		message, mend := f.Lack()
		out = append(out, wire.Finding{ID: "kernel." + f.Name, Level: level, Message: message, Hint: mend})
	}
	if len(has) > 0 {
		out = append(out, wire.Finding{ID: "kernel", Level: wire.LevelOK, Message: "the kernel has " + strings.Join(has, ", ")})
	}
	return out
}

// loggers tells of NFLOG groups that others listen to: which netlink port has which group
// stands in a file that only root can read (nfnetlink_log.c, seq_show). Others do capd no
// harm, but what they log costs the box twice.
func (a *app) loggers() []wire.Finding {
	if a.nflog == "" {
		return nil
	}
	text, err := os.ReadFile(a.nflog)
	if err != nil {
		return nil // not root, another box, or no such module: capd has told of that
	}
	var groups []string
	for line := range strings.Lines(string(text)) {
		// group portid queued copy_mode copy_range flush_timeout references
		if f := strings.Fields(line); len(f) >= 2 && processOf(f[1]) != "capd" {
			groups = append(groups, fmt.Sprintf("%s (%s)", f[0], orElse(processOf(f[1]), "port "+f[1])))
		}
	}
	if len(groups) == 0 {
		return []wire.Finding{{ID: "nflog", Level: wire.LevelOK, Message: "nobody else listens to NFLOG"}}
	}
	return []wire.Finding{{ID: "nflog", Level: wire.LevelInfo, Message: "others listen to the NFLOG groups " + strings.Join(groups, ", ") + ": capd takes groups that are free"}}
}

// processOf names the process of a netlink port, which is its pid where it has one such
// socket, else anything; "" where that is not known.
func processOf(port string) string {
	name, err := os.ReadFile("/proc/" + port + "/comm")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(name))
}

func (a *app) printDoctor(d wire.Doctor) error {
	s := a.screenOf(a.stdout)
	marks := map[string]struct {
		sign, ascii string
		style       style
	}{
		wire.LevelOK:      {"✓", "ok  ", green},
		wire.LevelInfo:    {"·", "note", plain},
		wire.LevelWarning: {"!", "warn", yellow},
		wire.LevelError:   {"✗", "FAIL", red},
	}
	width := 0
	for _, f := range d.Findings {
		width = max(width, columnsOf(clean(f.ID)))
	}
	for _, f := range d.Findings {
		m, ok := marks[f.Level]
		if !ok {
			m = marks[wire.LevelInfo]
		}
		mark, id := s.glyph(m.sign, m.ascii), clean(f.ID)
		line := fmt.Sprintf("%s %s%*s  %s", s.paint(m.style, mark), id, width-columnsOf(id), "", oneLine(f.Message))
		if f.Hint != "" {
			line += " (" + oneLine(f.Hint) + ")"
		}
		if _, err := fmt.Fprintln(a.stdout, line); err != nil {
			return err
		}
	}
	return nil
}
