package ctl

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"capd/ctl/client"
	"capd/ctl/wire"
)

// part is what one box came to.
type part struct {
	box     *box
	out     bytes.Buffer // stdout
	exit    int
	message string
	excerpt []string
	hint    string
	err     error
}

// hostResult is a box's part with --json.
type hostResult struct {
	Host     string          `json:"host"`
	ExitCode int             `json:"exit_code"`
	Result   json.RawMessage `json:"result,omitempty"`
	Error    *hostError      `json:"error,omitempty"`
}

type hostError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Field   string `json:"field,omitempty"`
	Hint    string `json:"hint,omitempty"`
}

// codeUnreachable is the error code of a box whose capd did not answer.
const codeUnreachable = "unreachable"

// onAll runs a command on several boxes at once, and tells what became of each.
func (a *app) onAll(cmd *cobra.Command, boxes []*box) error {
	isStart, isList := cmd.Name() == "start", cmd.Name() == "list"
	if isStart {
		name := sharedName()
		for _, b := range boxes {
			b.shared = name
		}
	}
	if cmd.Name() == "tail" || isStart && cmd.Flags().Changed("write") {
		return a.streamAll(cmd, boxes)
	}
	r := a.newFleetRun(boxes)
	r.prepare = func(sub *app, p *part) { sub.stdout, sub.forceJSON = &p.out, isList }
	r.run(cmd.Context())
	var err error
	switch {
	case a.json:
		err = a.printParts(r.parts)
	case isList:
		err = a.printFleet(r.parts)
	case isStart:
		err = a.printStarted(r.parts)
	default:
		err = a.printEach(r.parts)
	}
	if err != nil {
		return err
	}
	return a.closing(r.parts)
}

// closing prints the hints and gives the exit code of all.
func (a *app) closing(parts []*part) error {
	a.hints(parts)
	if worst := worstOf(parts); worst != exitDone {
		return &exitError{exit: worst}
	}
	return nil
}

// fleetRun is one command on several boxes.
type fleetRun struct {
	app     *app
	parts   []*part
	prepare func(sub *app, p *part) // sets at least where stdout goes
	done    func(p *part)           // may be nil
}

func (a *app) newFleetRun(boxes []*box) *fleetRun {
	r := &fleetRun{app: a}
	for _, b := range boxes {
		b.many = true
		r.parts = append(r.parts, &part{box: b})
	}
	return r
}

// run returns when every box is through.
func (r *fleetRun) run(ctx context.Context) {
	a := r.app
	stdin := &shared{from: a.stdin}
	stderr := &lines{to: a.stderr}
	defer stderr.flush()
	var tasks sync.WaitGroup
	for _, p := range r.parts {
		sub := &app{
			stdin: stdin.reader(), stderr: stderr.prefixed(p.box.label + ": "),
			getenv: a.getenv, now: a.now, zone: a.zone, signals: a.signals, lookup: a.lookup,
			screen:  func(io.Writer) (int, bool) { return 0, false },
			devices: a.devices, timing: a.timing,
		}
		r.prepare(sub, p)
		sub.enter(p.box)
		tasks.Go(func() {
			p.err = sub.execute(ctx, a.args)
			p.exit, p.message, p.hint = verdict(p.err)
			var own *exitError
			if errors.As(p.err, &own) {
				p.excerpt = own.excerpt
			}
			if p.message != "" && !a.json {
				stderr.say("capctl: " + p.box.label + ": " + oneLine(p.message))
			}
			if r.done != nil {
				r.done(p)
			}
		})
	}
	tasks.Wait()
}

// worstOf gives one exit code for all: the highest, but that a loss of packets (8) gives
// way to everything that failed.
func worstOf(parts []*part) int {
	worst := exitDone
	for _, p := range parts {
		if worst == exitDone || worst == exitLoss && p.exit != exitDone || p.exit != exitLoss && p.exit > worst {
			worst = p.exit
		}
	}
	return worst
}

// hints prints what mends, each once, however many boxes need it.
func (a *app) hints(parts []*part) {
	if a.json {
		return
	}
	said := map[string]bool{}
	for _, p := range parts {
		if text := strings.Join(p.excerpt, "\n"); text != "" && !said[text] {
			said[text] = true
			fmt.Fprintln(a.stderr, text)
		}
		if p.hint != "" && !said[p.hint] {
			said[p.hint] = true
			fmt.Fprintf(a.stderr, "hint: %s\n", oneLine(p.hint))
		}
	}
	failed := 0
	for _, p := range parts {
		if p.exit != exitDone {
			failed++
		}
	}
	if failed > 0 {
		a.note("%d of %s failed", failed, plural(uint64(len(parts)), "host", "hosts"))
	}
}

// printParts writes what each box answered as JSON.
func (a *app) printParts(parts []*part) error {
	results := make([]hostResult, len(parts))
	for i, p := range parts {
		r := hostResult{Host: p.box.label, ExitCode: p.exit}
		if text := bytes.TrimSpace(p.out.Bytes()); len(text) > 0 && json.Valid(text) {
			r.Result = text
		}
		if p.message != "" {
			e := &hostError{Code: "failed", Message: oneLine(p.message), Hint: p.hint}
			var answered *wire.Error
			switch {
			case errors.As(p.err, &answered):
				e.Code, e.Field = answered.Code, answered.Field
			case errors.Is(p.err, client.ErrUnreachable), p.exit == exitUnreachable:
				e.Code = codeUnreachable
			case p.exit == exitUsage:
				e.Code = "usage"
			}
			r.Error = e
		}
		results[i] = r
	}
	return a.printJSON(results)
}

// printFleet writes one table of all boxes' captures.
func (a *app) printFleet(parts []*part) error {
	var all []wire.Capture
	var hosts []string
	for _, p := range parts {
		var captures []wire.Capture
		if p.exit != exitDone {
			continue
		}
		if err := json.Unmarshal(p.out.Bytes(), &captures); err != nil {
			return failf("%s: its list is not capd's: %v", p.box.label, err)
		}
		for _, c := range captures {
			all, hosts = append(all, c), append(hosts, p.box.label)
		}
	}
	if len(all) == 0 {
		a.note("no captures on %s", plural(uint64(len(parts)), "host", "hosts"))
		return nil
	}
	return a.printList(all, hosts)
}

// printStarted writes the captures' shared name, by which all commands know them, and
// tells the ids.
func (a *app) printStarted(parts []*part) error {
	name := ""
	for _, p := range parts {
		id := strings.TrimSpace(p.out.String())
		if id == "" {
			continue
		}
		if name == "" {
			name = p.box.shared
			if p.box.name != "" {
				name = p.box.name
			}
			if _, err := fmt.Fprintln(a.stdout, name); err != nil {
				return err
			}
		}
		a.note("%s: %s", p.box.label, id)
	}
	return nil
}

// printEach writes what each box said: a line each, or under a heading where it is more.
func (a *app) printEach(parts []*part) error {
	s := a.screenOf(a.stdout)
	short := true
	for _, p := range parts {
		short = short && bytes.Count(p.out.Bytes(), []byte("\n")) <= 1
	}
	var b strings.Builder
	for _, p := range parts {
		text := p.out.String()
		switch {
		case text == "":
		case short:
			b.WriteString(s.paint(bold, p.box.label+":") + " " + text)
		default:
			if b.Len() > 0 {
				b.WriteByte('\n')
			}
			b.WriteString(s.paint(bold, p.box.label+":") + "\n" + text)
		}
	}
	_, err := io.WriteString(a.stdout, b.String())
	return err
}

// sharedName makes a name for captures on several boxes.
func sharedName() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return "fleet-" + hex.EncodeToString(b[:])
}

// share gives the captures of several boxes one name and one label.
func (a *app) share(req *wire.StartRequest) {
	if a.box == nil || a.box.shared == "" {
		return
	}
	if req.Name == "" {
		req.Name = a.box.shared
	}
	a.box.name = req.Name
	if _, ok := req.Labels["fleet"]; !ok {
		labels := map[string]string{"fleet": req.Name}
		for k, v := range req.Labels {
			labels[k] = v
		}
		req.Labels = labels
	}
}

// shared is an input that several read, each from its beginning; it is read once.
type shared struct {
	from io.Reader
	once sync.Once
	data []byte
	err  error
}

func (s *shared) reader() io.Reader { return &sharedReader{s: s} }

type sharedReader struct {
	s  *shared
	at int
}

// Read implements io.Reader.
func (r *sharedReader) Read(p []byte) (int, error) {
	r.s.once.Do(func() { r.s.data, r.s.err = io.ReadAll(io.LimitReader(r.s.from, wire.MaxRequestBody+1)) })
	if r.at == len(r.s.data) {
		if r.s.err != nil {
			return 0, r.s.err
		}
		return 0, io.EOF
	}
	n := copy(p, r.s.data[r.at:])
	r.at += n
	return n, nil
}

// lines writes whole lines of several writers, each with its prefix.
type lines struct {
	mu      sync.Mutex
	to      io.Writer
	writers []*prefixed
}

type prefixed struct {
	l      *lines
	prefix string
	rest   []byte
}

func (l *lines) prefixed(prefix string) io.Writer {
	w := &prefixed{l: l, prefix: prefix}
	l.writers = append(l.writers, w)
	return w
}

func (l *lines) say(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintln(l.to, line)
}

// flush writes what has no end of its line yet.
func (l *lines) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.writers {
		if len(w.rest) > 0 {
			fmt.Fprintf(l.to, "%s%s\n", w.prefix, w.rest)
			w.rest = nil
		}
	}
}

// Write implements io.Writer.
func (w *prefixed) Write(p []byte) (int, error) {
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	w.rest = append(w.rest, p...)
	for {
		i := bytes.IndexByte(w.rest, '\n')
		if i < 0 {
			return len(p), nil
		}
		if _, err := fmt.Fprintf(w.l.to, "%s%s", w.prefix, w.rest[:i+1]); err != nil {
			return 0, err
		}
		w.rest = w.rest[i+1:]
	}
}
