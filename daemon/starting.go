package daemon

import (
	"math"
	"net/http"
	"slices"
	"time"

	"capd/ctl/wire"
	"capd/daemon/config"
	"capd/daemon/seal"
	"capd/daemon/spool"
	"capd/nft"
	"capd/ring"
)

// starting is a capture on its way to run, step by step.
type starting struct {
	*capture
	plan    *plan
	cfg     *config.Config
	running *running
	spec    nft.Spec // its rules
	ruleset string   // these as text
	undo    []func() // what takes back what was done, in the order in which it was
}

// start brings a capture to life: when it returns without an error, every matching
// packet from now on is accounted for; with one, nothing is left behind.
func (c *capture) start(p *plan) (*running, error) {
	if !p.stream {
		if err := c.d.spool.Create(c.id); err != nil {
			return nil, startProblem(err)
		}
	}
	s := &starting{capture: c, plan: p, cfg: c.d.config(),
		running: &running{plan: p, stop: make(chan stopping, 1), final: make(chan finalCounts, 1), ended: make(chan error, 1)}}
	for _, step := range []func() error{s.takeMemory, s.openGroups, s.prepareEngine, s.runEngine, s.installRules, s.recordRunning} {
		if err := step(); err != nil {
			s.takeBack()
			return nil, startProblem(err)
		}
	}
	c.tell(wire.EventRunning)
	return s.running, nil
}

// takeBack leaves nothing of a start that failed.
func (s *starting) takeBack() {
	for _, f := range slices.Backward(s.undo) {
		f()
	}
	if err := s.d.spool.RemoveCapture(s.id); err != nil {
		s.log.Error("remove what a failed start left", "err", err)
	}
}

func (s *starting) takeMemory() (err error) {
	if s.running.share, err = s.d.shares.take(); err != nil {
		return &wire.Error{Status: http.StatusServiceUnavailable, Code: wire.CodeUnavailable, Message: err.Error()}
	}
	s.undo = append(s.undo, func() { s.d.shares.give(s.running.share) })
	return nil
}

// openGroups gets NFLOG groups from the kernel, and the rules that log to them.
func (s *starting) openGroups() (err error) {
	r := s.running
	if s.spec, _, err = s.plan.rules(s.id, s.cfg).Staged(); err != nil {
		return err
	}
	if r.reader, err = ring.Open(s.plan.ringConfig(s.spec, s.cfg, r.share)); err != nil {
		return err
	}
	s.undo = append(s.undo, func() { _ = r.reader.Close() })
	for _, g := range r.reader.Groups() {
		if g.Class == ring.Stamped {
			s.spec.Stamped = append(s.spec.Stamped, g.Number)
		} else {
			s.spec.Clocked = append(s.spec.Clocked, g.Number)
		}
	}
	s.ruleset, err = s.d.table.Ruleset(s.spec)
	return err
}

// prepareEngine makes the engine between the groups and the files, or the stream.
func (s *starting) prepareEngine() error {
	p, r := s.plan, s.running
	var sealing *seal.Sealing
	if p.request.Destination != "" {
		var err error
		if sealing, err = sealingOf(s.cfg.Destinations[p.request.Destination]); err != nil {
			return err
		}
	}
	enc := newEncoder(s.id, p, s.d)
	options := spool.Options{
		Create: s.create, Segment: segments(sealing, p.request.Format),
		Memory: r.share.blocks.Bytes(), SegmentSize: int64(*p.request.SegmentSize), Ahead: s.d.mayAllocate,
		Admit: s.admit, Release: s.d.spool.Release, Written: s.d.spool.Written,
		Finished: s.segmentFinished, Repair: repairer(p.request.Format),
	}
	if p.stream {
		options.Discard, options.Admit = true, nil
		var err error
		if r.tap, err = newTap(newStreamEncoder(s.id, p, s.d)); err != nil {
			return err
		}
		s.undo = append(s.undo, r.tap.memory.Free)
	}
	out, err := spool.NewWriter(options)
	if err != nil {
		return err
	}
	r.engine = &engine{
		source: r.reader, out: out, enc: enc, sel: p.selection(&s.d.links),
		packetLimit: *p.request.PacketLimit, byteLimit: int64(*p.request.ByteLimit),
		ring:        int64(*p.request.Ring),
		segmentSize: int64(*p.request.SegmentSize), segmentTime: p.request.SegmentTime.Duration(),
		stop: r.stop, opened: s.segmentOpened, final: r.final, drained: make(chan struct{}),
	}
	if p.stream {
		r.engine.segmentSize, r.engine.segmentTime = math.MaxInt64, 0
		r.engine.opened = func(string) {}
		r.engine.join(r.tap)
	}
	return nil
}

// runEngine has the engine wait for packets; none comes before installRules.
func (s *starting) runEngine() error {
	r := s.running
	go func() { r.ended <- r.engine.run() }()
	s.undo = append(s.undo, func() {
		r.engine.drain()
		<-r.engine.drained
		r.final <- finalCounts{}
		if err := <-r.ended; err != nil {
			s.log.Error("end the reader of a failed start", "err", err)
		}
	})
	return nil
}

func (s *starting) installRules() error {
	d := s.d
	if err := d.table.Install(s.spec); err != nil {
		return err
	}
	d.own.attach(s.capture)
	s.undo = append(s.undo, func() {
		d.own.detach(s.capture)
		if err := d.table.Remove(s.id); err != nil {
			s.log.Error("remove rules of a failed start", "err", err)
		}
	})
	if d.config().Limits.MaxPacketRate != s.spec.Rate {
		d.applyRate() // a reload has come in between
	}
	return nil
}

// recordRunning notes for everybody, and for the next start of capd, that it runs. Its time
// counts from here.
func (s *starting) recordRunning() error {
	c := s.capture
	begun := time.Now()
	c.mu.Lock()
	rec := &c.record.Capture
	c.record.Ruleset = s.ruleset
	rec.Warnings = append(rec.Warnings, s.plan.annotationWarnings(s.running.reader.Conntrack())...)
	rec.Status, rec.Started = wire.StatusRunning, &wire.Time{Time: begun.UTC()}
	c.running, c.began = s.running, true
	c.mu.Unlock()
	s.running.engine.limitTime(begun.Add(s.plan.request.TimeLimit.Duration()))
	err := c.save()
	if err != nil {
		c.mu.Lock()
		c.running, rec.Status = nil, wire.StatusPending
		c.mu.Unlock()
	}
	return err
}
