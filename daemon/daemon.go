// Package daemon is capd: it holds the captures, from a request to the proof of
// delivery, and wires the rooms together (rules, ring, spool, delivery, HTTP).
package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"capd/ctl/wire"
	"capd/daemon/config"
	"capd/daemon/deliver"
	"capd/daemon/spool"
	"capd/nft"
)

// Daemon holds every capture of one box (one network namespace).
type Daemon struct {
	log     *slog.Logger
	version string
	kernel  string
	host    string
	started time.Time

	signer *signer
	table  *nft.Table
	spool  *spool.Spool
	shares *shares
	links  links

	client *deliver.Client
	queue  *deliver.Queue
	checks checkCache
	own    *ownFlows
	events events
	meter  meter
	owned  *ownerships
	load   func() (*config.Config, error) // reads the configuration's files again
	read   atomic.Pointer[config.Config]  // what they said when it was taken over
	cfg    atomic.Pointer[config.Config]  // replaced by a reload; read without mu, which holders of a capture's mu must not take

	mu       sync.Mutex
	captures map[string]*capture
	starting int             // captures being started, which count against the limit
	names    map[string]bool // names of captures being started
	closing  bool            // no new captures
	streams  int             // live streams that are open
	running  int             // captures that hold rules
	// processors is GOMAXPROCS without the readers.
	processors int
	retiring   bool          // ends when no capture runs
	retired    chan struct{} // closed when that is so

	pulse    *pulse
	exporter *exporter
}

// Start begins a capture (api.Daemon).
func (d *Daemon) Start(ctx context.Context, req wire.StartRequest, who wire.Requester) (wire.Capture, error) {
	p, err := d.plan(req)
	if err != nil {
		return wire.Capture{}, err
	}
	c, _, err := d.begin(ctx, p, who)
	if err != nil {
		return wire.Capture{}, err
	}
	if err := ctx.Err(); err != nil {
		// Whoever asked is gone and will never know the id.
		_ = c.stopNow(context.WithoutCancel(ctx), wire.StopRequested)
		_ = d.Remove(context.WithoutCancel(ctx), c.id, true)
		return wire.Capture{}, err
	}
	return c.snapshot(), nil
}

// begin brings a planned capture to life.
func (d *Daemon) begin(ctx context.Context, p *plan, who wire.Requester) (*capture, *running, error) {
	release, err := d.admit(p.request.Name)
	if err != nil {
		return nil, nil, err
	}
	defer release()
	if err := d.makePlace(ctx); err != nil {
		return nil, nil, err
	}
	if !p.stream {
		if err := d.anyRoom(); err != nil {
			return nil, nil, &wire.Error{Status: http.StatusInsufficientStorage, Code: wire.CodeNoSpace, Message: err.Error(), Hint: noSpaceHint}
		}
	}
	if err := p.checkInterfaces(); err != nil {
		return nil, nil, err
	}
	if err := d.links.refresh(); err != nil {
		return nil, nil, err
	}
	submitted := now()
	if p.request.Destination != "" && *p.request.Check {
		if err := d.preflight(ctx, p.request.Destination); err != nil {
			return nil, nil, err
		}
	}

	id := newID()
	c := &capture{id: id, d: d, log: d.log.With("capture", id), halted: make(chan struct{})}
	c.record.Capture = wire.Capture{
		ID: id, Host: d.host, Status: wire.StatusPending, Stream: p.stream, StartRequest: p.request,
		Submitted: *submitted, RequestedBy: who, Files: []wire.File{}, Warnings: d.warnings(p),
		Packets: wire.Packets{Lost: ptr(uint64(0)), Discarded: ptr(uint64(0))},
	}
	c.record.InMemory = d.spool.InMemory() && !p.stream
	c.tell(wire.EventStarted)
	var r *running
	if err = d.beginRenewing(); err != nil {
		err = startProblem(err)
	} else if r, err = c.start(p); err != nil {
		d.endRenewing()
	}
	if err != nil {
		c.tellUnstarted(err)
		return nil, nil, err
	}
	d.mu.Lock()
	d.captures[id] = c
	late := d.closing
	d.mu.Unlock()
	c.log.Info("capture runs", "name", p.request.Name, "filter", p.filter.String(), "destination", p.request.Destination, "uid", who.UID)
	go c.supervise(r)
	if late { // stopAll has not seen it
		_ = c.stopNow(context.WithoutCancel(ctx), wire.StopShutdown)
	}
	return c, r, nil
}

// admit reserves a place and a name for a capture that is about to start.
func (d *Daemon) admit(name string) (release func(), err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closing {
		return nil, shuttingDown()
	}
	active := d.starting
	for _, c := range d.captures {
		if c.isRunning() {
			active++
		}
		if name != "" && c.takes(name) {
			return nil, nameTaken(name)
		}
	}
	if d.names[name] {
		e := nameTaken(name)
		e.Message, e.Hint = fmt.Sprintf("a capture named %q is just being started", name), "choose another name, or try again when its destination has been checked"
		return nil, e
	}
	if limit := d.config().Limits.MaxCaptures; active >= limit {
		return nil, &wire.Error{Status: http.StatusTooManyRequests, Code: wire.CodeLimit,
			Message: fmt.Sprintf("%d captures run already, as many as this box allows (limits.max_captures)", limit), Hint: "stop one: capctl list, capctl stop CAPTURE"}
	}
	d.starting++
	if name != "" {
		d.names[name] = true
	}
	return func() {
		d.mu.Lock()
		d.starting--
		delete(d.names, name)
		d.mu.Unlock()
	}, nil
}

func shuttingDown() error {
	return &wire.Error{Status: http.StatusServiceUnavailable, Code: wire.CodeStopping, Message: "capd is shutting down", Hint: "try again in a moment"}
}

func nameTaken(name string) *wire.Error {
	return &wire.Error{Status: http.StatusConflict, Code: wire.CodeNameTaken, Field: "name",
		Message: fmt.Sprintf("a capture named %q is not finished yet", name), Hint: "choose another name, or stop that one"}
}

// isRunning tells whether the capture still holds rules and memory.
func (c *capture) isRunning() bool {
	select {
	case <-c.halted:
		return false
	default:
		return true
	}
}

// takes tells whether the capture is unfinished and has this name.
func (c *capture) takes(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	rec := &c.record.Capture
	return rec.Name == name && !finished(rec.Status)
}

func finished(status string) bool {
	return status == wire.StatusComplete || status == wire.StatusFailed
}

// all gives every capture, in no order.
func (d *Daemon) all() []*capture {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.allLocked()
}

func (d *Daemon) allLocked() []*capture {
	return slices.Collect(maps.Values(d.captures))
}

// find resolves an id, an unambiguous prefix of one (4 characters or more), or a name.
func (d *Daemon) find(ref string) (*capture, error) {
	d.mu.Lock()
	all, exact := d.allLocked(), d.captures[ref]
	d.mu.Unlock()
	if exact != nil {
		return exact, nil
	}
	if ref == "" {
		return nil, noSuchCapture(ref)
	}
	var prefixed, active []*capture
	var newest *capture
	for _, c := range all {
		if len(ref) >= minPrefix && strings.HasPrefix(c.id, ref) {
			prefixed = append(prefixed, c)
		}
		c.mu.Lock()
		rec := c.record.Capture
		c.mu.Unlock()
		if rec.Name != ref {
			continue
		}
		if !finished(rec.Status) {
			active = append(active, c)
		} else if newest == nil || newest.submitted().Before(rec.Submitted.Time) {
			newest = c
		}
	}
	switch {
	case len(active) == 1:
		return active[0], nil
	case len(active) == 0 && newest != nil:
		return newest, nil
	case len(prefixed) == 1:
		return prefixed[0], nil
	case len(prefixed)+len(active) > 1:
		return nil, &wire.Error{Status: http.StatusConflict, Code: wire.CodeAmbiguous,
			Message: fmt.Sprintf("%q fits several captures", ref), Hint: "give more of the id"}
	}
	return nil, noSuchCapture(ref)
}

// minPrefix is how many digits of an id at least stand for it.
const minPrefix = 4

func noSuchCapture(ref string) error {
	hint := "see capctl list --all"
	if len(ref) < minPrefix && strings.Trim(ref, "0123456789abcdef") == "" {
		hint = fmt.Sprintf("the beginning of an id has %d characters or more: capctl list --all", minPrefix)
	}
	return &wire.Error{Status: http.StatusNotFound, Code: wire.CodeNoSuchCapture,
		Message: fmt.Sprintf("no capture has the id or name %q", ref), Hint: hint}
}

func (c *capture) submitted() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.record.Capture.Submitted.Time
}

// listedFinished is how many finished captures a list shows without all.
const listedFinished = 20

// List gives the captures, newest first (api.Daemon).
func (d *Daemon) List(all bool) []wire.Capture {
	captures := d.all()
	out := make([]wire.Capture, 0, len(captures))
	for _, c := range captures {
		out = append(out, c.snapshot())
	}
	slices.SortFunc(out, func(a, b wire.Capture) int {
		return cmp.Or(b.Submitted.Compare(a.Submitted.Time), cmp.Compare(a.ID, b.ID))
	})
	if all {
		return out
	}
	done := 0
	return slices.DeleteFunc(out, func(c wire.Capture) bool {
		if !finished(c.Status) {
			return false
		}
		done++
		return done > listedFinished
	})
}

// Get gives one capture (api.Daemon).
func (d *Daemon) Get(ref string) (wire.Capture, error) {
	c, err := d.find(ref)
	if err != nil {
		return wire.Capture{}, err
	}
	return c.snapshot(), nil
}

// Stop ends a capture and returns when its rules are gone and its counts final
// (api.Daemon). Stopping one that has ended changes nothing.
func (d *Daemon) Stop(ctx context.Context, ref string) (wire.Capture, error) {
	c, err := d.find(ref)
	if err != nil {
		return wire.Capture{}, err
	}
	if err := c.stopNow(ctx, wire.StopRequested); err != nil {
		return wire.Capture{}, err
	}
	return c.snapshot(), nil
}

// Remove forgets a finished capture and deletes what is left of it here (api.Daemon).
func (d *Daemon) Remove(ctx context.Context, ref string, force bool) error {
	c, err := d.find(ref)
	if err != nil {
		return err
	}
	c.mu.Lock()
	rec := c.record.Capture
	undelivered := rec.Destination != "" && c.record.Manifest != manifestDelivered
	c.mu.Unlock()
	if c.isRunning() {
		return &wire.Error{Status: http.StatusConflict, Code: wire.CodeConflict,
			Message: "the capture is still running", Hint: "stop it first: capctl stop " + c.id[:8]}
	}
	if undelivered && !force {
		return &wire.Error{Status: http.StatusConflict, Code: wire.CodeUndelivered,
			Message: fmt.Sprintf("the capture has data that is not delivered to %s", rec.Destination),
			Hint:    "deliver it: capctl retry " + c.id[:8] + "; or give it up: capctl rm --force " + c.id[:8]}
	}
	if err := d.forgetDelivery(ctx, c); err != nil {
		return err
	}
	if err := c.erase(); err != nil {
		return fmt.Errorf("remove capture: %w", err)
	}
	last := c.snapshot()
	d.mu.Lock()
	delete(d.captures, c.id)
	if c.began {
		d.meter.forget(last, c.batches)
	}
	d.mu.Unlock()
	c.mu.Lock()
	if t := c.expiry.timer; t != nil {
		t.Stop() // it would hold the capture in memory until limits.retention is over
	}
	c.mu.Unlock()
	c.tell(wire.EventRemoved)
	return nil
}

// erase deletes the capture's files and its record, which nobody writes again.
func (c *capture) erase() error {
	c.saving.Lock()
	defer c.saving.Unlock()
	err := c.d.spool.RemoveCapture(c.id)
	c.removed = err == nil
	return err
}

// OpenFile opens a finished file that is still here (api.Daemon). The caller closes it.
func (d *Daemon) OpenFile(ref, name string) (*os.File, wire.File, error) {
	c, err := d.find(ref)
	if err != nil {
		return nil, wire.File{}, err
	}
	snap := c.snapshot()
	i := slices.IndexFunc(snap.Files, func(f wire.File) bool { return f.Name == name })
	if i < 0 {
		return nil, wire.File{}, &wire.Error{Status: http.StatusNotFound, Code: wire.CodeNoSuchFile,
			Message: fmt.Sprintf("the capture has no file %q", name), Hint: "see capctl show " + c.id[:8]}
	}
	file := snap.Files[i]
	if file.Status == wire.FileOpen {
		return nil, wire.File{}, &wire.Error{Status: http.StatusConflict, Code: wire.CodeConflict,
			Message: fmt.Sprintf("the file %q is still being written", name), Hint: "stop the capture first: capctl stop " + c.id[:8]}
	}
	f, err := d.spool.OpenFile(c.id, name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, wire.File{}, &wire.Error{Status: http.StatusNotFound, Code: wire.CodeNoSuchFile,
			Message: fmt.Sprintf("the file %q is not on this box any more (%s)", name, file.Status), Hint: "it was delivered to " + file.URL}
	}
	if err != nil {
		return nil, wire.File{}, fmt.Errorf("open file: %w", err)
	}
	return f, file, nil
}

// Explain tells what Start would do, and does nothing (api.Daemon).
func (d *Daemon) Explain(_ context.Context, req wire.StartRequest) (wire.Explain, error) {
	p, err := d.plan(req)
	if err != nil {
		return wire.Explain{}, err
	}
	out, err := p.explain(d.config())
	out.Warnings = d.warnings(p)
	return out, err
}

func (d *Daemon) config() *config.Config { return d.cfg.Load() }

// captureHalted is called once for each capture that ran, when its counts are final.
func (d *Daemon) captureHalted(c *capture) {
	d.endRenewing()
	d.deliver(c)
}
