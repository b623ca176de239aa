package ctl

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"capd/ctl/client"
	"capd/ctl/wire"
)

// watchCommand is capctl watch.
func (a *app) watchCommand() *cobra.Command {
	return annotate(&cobra.Command{
		Use:        "watch [flags] [CAPTURE]",
		GroupID:    groupCapture,
		Short:      "live: packets/s, bytes/s, loss, delivery",
		SuggestFor: []string{"top", "monitor", "stats"},
		Long: `watch shows captures as they run, refreshed every second in place: packets and bytes a
second, the last minute as a small graph, what is left of the limits, loss, how full the
ring and the spool are, and how far the delivery is. With CAPTURE only that one, with -H
those of several boxes.

j, k or the arrows choose a capture, Enter shows everything about it, s stops it after a
question, ? lists the keys, q leaves; the captures go on. A capd that restarts is waited
for.

Where stdout is no terminal it prints a line a capture every ten seconds and at every
change of its status; with --json the capture object, a line at every change. Both end
when CAPTURE has.`,
		Example: `  capctl watch
  capctl watch voip-drops
  capctl -H @edge watch
  capctl watch --json voip-drops | jq -c '[.status, .packets.captured]'`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return exactly("CAPTURE")(cmd, args)
			}
			return nil
		},
		ValidArgsFunction: a.completeCapture(1, nil),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref := ""
			if len(args) == 1 {
				ref = args[0]
			}
			return a.watch(cmd.Context(), ref)
		},
	}, hostsItself)
}

// station is one capd that is watched.
type station struct {
	label    string // the box's; "" for this machine alone
	capd     *client.Client
	status   wire.Status
	captures []*watched
	err      error     // capd does not answer, or refuses
	since    time.Time // of err
	asked    bool
}

// watched is a capture with its last minute.
type watched struct {
	wire.Capture
	station *station
	ring    *wire.StatusRing
	at      time.Time
	packets []float64 // a second, oldest first, at most minute
	bytes   []float64
}

// minute is how many looks the graph goes back.
const minute = 60

// answerOf is what a capd answered when it was asked.
type answerOf struct {
	of       *station
	at       time.Time
	status   wire.Status
	captures []wire.Capture
	err      error
}

func (a *app) watch(ctx context.Context, ref string) error {
	stations, done, err := a.stations()
	if err != nil {
		return err
	}
	defer done()
	if ref != "" && len(stations) == 1 {
		// A mistyped name is told before the screen is taken.
		quick, cancel := a.soon(ctx)
		_, err := stations[0].capd.Get(quick, ref)
		cancel()
		if err != nil && !errors.Is(err, client.ErrUnreachable) {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel()
	answers := make(chan answerOf)
	for _, s := range stations {
		tasks.Go(func() { a.ask(ctx, s, ref, answers) })
	}
	w := &watcher{app: a, stations: stations, only: ref, answers: answers}
	if a.json || !a.screenOf(a.stdout).live {
		return w.lines(ctx)
	}
	return w.full(ctx)
}

// stations are the capds to watch: this machine's, or those that -H names.
func (a *app) stations() ([]*station, func(), error) {
	if len(a.hosts) == 0 || a.box != nil {
		label := ""
		if a.box != nil {
			label = a.box.label
		}
		return []*station{{label: label, capd: a.client()}}, func() {}, nil
	}
	boxes, err := a.boxes()
	if err != nil {
		return nil, nil, err
	}
	a.timing.quick = max(a.timing.quick, patientQuick)
	var stations []*station
	for _, b := range boxes {
		stations = append(stations, &station{label: b.label, capd: &client.Client{Dial: b.dialer.Dial, UserAgent: "capctl/" + wire.Version}})
	}
	return stations, func() {
		var all sync.WaitGroup
		for i, s := range stations {
			all.Go(func() { s.capd.Close(); boxes[i].dialer.Close() })
		}
		all.Wait()
	}, nil
}

// ask asks a capd again and again.
func (a *app) ask(ctx context.Context, s *station, ref string, answers chan<- answerOf) {
	for {
		got := answerOf{of: s}
		quick, cancel := a.soon(ctx)
		got.status, got.err = s.capd.Status(quick)
		if got.err == nil && ref == "" {
			got.captures, got.err = s.capd.List(quick, false)
		} else if got.err == nil {
			var c wire.Capture
			if c, got.err = s.capd.Get(quick, ref); got.err == nil {
				got.captures = []wire.Capture{c}
			}
		}
		cancel()
		got.at = a.now()
		if errors.Is(got.err, context.DeadlineExceeded) {
			got.err = hangs()
		}
		select {
		case <-ctx.Done():
			return
		case answers <- got:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(a.timing.watch):
		}
	}
}

// take brings a station up to date.
func (s *station) take(got answerOf) {
	s.asked = true
	if got.err != nil {
		if s.err == nil {
			s.since = got.at
		}
		s.err = got.err
		return
	}
	s.err, s.status = nil, got.status
	old := map[string]*watched{}
	for _, w := range s.captures {
		old[w.ID] = w
	}
	s.captures = nil
	for _, c := range got.captures {
		w := old[c.ID]
		if w == nil {
			w = &watched{station: s}
		} else if d := got.at.Sub(w.at).Seconds(); d > 0 {
			w.packets = sample(w.packets, float64(c.Packets.Captured)-float64(w.Packets.Captured), d)
			w.bytes = sample(w.bytes, float64(c.Bytes.Captured)-float64(w.Bytes.Captured), d)
		}
		w.Capture, w.at, w.ring = c, got.at, nil
		for i := range got.status.Rings {
			if got.status.Rings[i].Capture == c.ID {
				w.ring = &got.status.Rings[i]
			}
		}
		s.captures = append(s.captures, w)
	}
}

// sample adds a rate to those of the last minute.
func sample(rates []float64, more, seconds float64) []float64 {
	rates = append(rates, max(0, more/seconds))
	return rates[max(0, len(rates)-minute):]
}

// rate is the last one, or 0.
func rate(rates []float64) float64 {
	if len(rates) == 0 {
		return 0
	}
	return rates[len(rates)-1]
}

// watcher is one run of capctl watch.
type watcher struct {
	app      *app
	stations []*station
	only     string // the capture that was named; "" = all
	answers  <-chan answerOf
	view     view
}

// lines prints lines instead of a screen: each capture now and then, or as JSON at each
// change.
func (w *watcher) lines(ctx context.Context) error {
	p := &linePrinter{watcher: w, last: map[string]wire.Capture{}, printed: map[string]time.Time{}, away: map[*station]bool{}}
	for {
		select {
		case <-ctx.Done():
			return nil // Ctrl-C is how one leaves
		case got := <-w.answers:
			if ended, err := p.take(got); ended || err != nil {
				return err
			}
		}
	}
}

// linePrinter is what lines has told so far.
type linePrinter struct {
	*watcher
	last    map[string]wire.Capture // by id
	printed map[string]time.Time    // when the last line of each was
	away    map[*station]bool
}

// take tells what is new in an answer. ended: there is nothing more to watch.
func (p *linePrinter) take(got answerOf) (ended bool, err error) {
	s := got.of
	s.take(got)
	if s.err != nil {
		var answered *wire.Error
		if errors.As(s.err, &answered) && len(p.stations) == 1 {
			return false, s.err
		}
		if !p.away[s] {
			p.away[s] = true
			p.app.note("%s", notAnswering(s, got.at))
		}
		return false, nil
	}
	if p.away[s] {
		delete(p.away, s)
		p.app.note("%s", strings.TrimSpace(s.label+" capd answers again"))
	}
	ended = p.only != "" && len(p.stations) == 1
	for _, c := range slices.Backward(s.captures) { // oldest first, as it came about
		ended = ended && finished(c.Capture)
		if err := p.tell(c, got.at); err != nil {
			return false, err
		}
	}
	return ended, nil
}

// tell prints a capture, if there is reason to.
func (p *linePrinter) tell(c *watched, at time.Time) error {
	before, known := p.last[c.ID]
	if known && reflect.DeepEqual(before, c.Capture) || !known && finished(c.Capture) && p.only == "" {
		return nil
	}
	p.last[c.ID] = c.Capture
	if p.app.json {
		return p.app.printJSON(c.Capture)
	}
	if known && before.Status == c.Status && at.Sub(p.printed[c.ID]) < p.app.timing.plain {
		return nil
	}
	p.printed[c.ID] = at
	_, err := fmt.Fprintln(p.app.stdout, p.line(c, at))
	return err
}

// line is a capture as one line of text.
func (w *watcher) line(c *watched, now time.Time) string {
	name := short(c.ID)
	if c.Name != "" {
		name += " " + clean(c.Name)
	}
	if len(w.stations) > 1 {
		name = c.station.label + " " + name
	}
	parts := progressParts(c.Capture, now)
	if c.Status == wire.StatusRunning {
		parts = append([]string{count(uint64(rate(c.packets))) + " packets/s", wire.About(uint64(rate(c.bytes))) + "/s"}, parts...)
	}
	return oneLine(w.app.inZone(now).Format("15:04:05") + " " + name + " " + c.Status + ": " + strings.Join(parts, ", "))
}

// notAnswering says that a capd is away.
func notAnswering(s *station, now time.Time) string {
	who := "capd"
	if s.label != "" {
		who = s.label + ": capd"
	}
	var answered *wire.Error
	if errors.As(s.err, &answered) {
		return who + " refuses: " + answered.Message
	}
	text := who + " does not answer, trying again"
	if d := now.Sub(s.since); d >= time.Second {
		text += " (" + shortAge(d) + ")"
	}
	return text
}
