package daemon

import (
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"time"

	sdnotify "github.com/coreos/go-systemd/v22/daemon"

	"capd/ctl/wire"
)

// Timing of the heartbeat. The service's WatchdogSec is three times stuckAfter, so that a
// box that is merely overloaded is not mistaken for one that hangs.
const (
	pulseEvery = time.Second
	// stuckAfter is how long an engine may go without a round of its loop; an idle one has
	// one every beatEvery.
	stuckAfter = 10 * time.Second
	beatEvery  = 2 * time.Second
)

// pulse is the daemon's heartbeat: each second it feeds the kernel's dead-man switch
// while captures run, looks whether every engine has gone on, and only if all that is so
// tells systemd's watchdog. So the watchdog hears of the data path, not of a timer beside
// it: an engine that hangs, a lock that is never let go of or a kernel that refuses the
// renewal ends in a restart.
type pulse struct {
	d      *Daemon
	notify func(state string) // to the service manager; does nothing without one
	beats  map[*engine]beat
	clock  clockWatch
	status string // as told last
	ill    bool   // the watchdog was not fed at the last look
	end    chan struct{}
	ended  chan struct{}
}

// beat is what an engine's counter said, and since when.
type beat struct {
	count uint64
	since time.Time
}

func startPulse(d *Daemon) *pulse {
	p := newPulse(d, func(state string) { _, _ = sdnotify.SdNotify(false, state) })
	go p.run()
	return p
}

func newPulse(d *Daemon, notify func(string)) *pulse {
	return &pulse{d: d, notify: notify, beats: map[*engine]beat{}, clock: newClockWatch(bothClocks()), end: make(chan struct{}), ended: make(chan struct{})}
}

// stop ends the heartbeat and waits until it has. Nil is a heartbeat that never began.
func (p *pulse) stop() {
	if p == nil {
		return
	}
	close(p.end)
	<-p.ended
}

func (p *pulse) run() {
	defer close(p.ended)
	tick := time.NewTicker(pulseEvery)
	defer tick.Stop()
	for {
		select {
		case <-p.end:
			return
		case now := <-tick.C:
			p.beat(now)
		}
	}
}

// beat is one look at everything.
func (p *pulse) beat(now time.Time) {
	var err error
	captures := p.d.all()
	p.d.tellClock(p.clock.look(), captures)
	if p.d.isRunning() {
		err = p.d.table.Renew()
		p.d.tellRestored(captures)
		p.d.watchInterfaces()
		p.d.watchLoad(captures)
		if missed := p.d.table.Missed(); missed != nil {
			p.d.log.Warn("captures may not see an interface that appeared", slog.Any("err", missed))
		}
	}
	if stuck := p.stuck(captures, now); err == nil && len(stuck) > 0 {
		err = fmt.Errorf("no progress for %v in capture %s", stuckAfter, strings.Join(stuck, ", "))
	}
	if err != nil {
		if !p.ill {
			p.d.log.Error("the data path does not go on; the watchdog is not fed", slog.Any("err", err))
		}
		p.ill = true
		p.tell(fmt.Sprintf("ill: %v", err))
		return
	}
	p.ill = false
	p.notify(sdnotify.SdNotifyWatchdog)
	p.tell(p.d.summary(captures))
	p.d.retireIfIdle()
}

// tell sends a status line, once.
func (p *pulse) tell(status string) {
	if status != p.status {
		p.status = status
		p.notify("STATUS=" + status)
	}
}

// stuck gives the captures whose engines have made no round for stuckAfter. One that
// waits for the disk is not stuck: a restart would not make the disk faster, and lose what
// is in memory.
func (p *pulse) stuck(captures []*capture, now time.Time) []string {
	var stuck []string
	seen := make(map[*engine]beat, len(p.beats))
	for _, c := range captures {
		r := c.runningNow()
		if r == nil {
			continue
		}
		e := r.engine
		select {
		case <-e.drained:
			continue // it has read everything and writes the rest
		default:
		}
		b, known := p.beats[e]
		if count := e.live.beats.Load(); !known || count != b.count || e.out.Waiting() {
			b = beat{count, now}
		}
		seen[e] = b
		if now.Sub(b.since) >= stuckAfter {
			stuck = append(stuck, c.id[:8])
		}
	}
	p.beats = seen
	return stuck
}

// isRunning tells whether any capture holds rules.
func (d *Daemon) isRunning() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.running > 0
}

// summary is what capd is doing, in a line for systemctl status.
func (d *Daemon) summary(captures []*capture) string {
	var running, undelivered, failed int
	var packets uint64
	for _, c := range captures {
		c.mu.Lock()
		if c.running != nil {
			running++
			packets += c.running.engine.live.captured.Load()
		}
		if c.record.Capture.Destination != "" {
			for _, f := range c.record.Capture.Files {
				switch f.Status {
				case wire.FileSpooled, wire.FileUploading:
					undelivered++
				case wire.FileFailed:
					failed++
				}
			}
		}
		c.mu.Unlock()
	}
	text := "idle"
	if running > 0 {
		text = fmt.Sprintf("%d running, %d packets captured", running, packets)
	}
	if undelivered > 0 {
		text += fmt.Sprintf("; %s to deliver", files(undelivered))
	}
	if failed > 0 {
		text += fmt.Sprintf("; %s not delivered, see capctl list --all", files(failed))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.retiring {
		text += "; restarts when no capture runs"
	}
	return text
}

func files(n int) string {
	if n == 1 {
		return "1 file"
	}
	return fmt.Sprintf("%d files", n)
}

// retire asks for the daemon's end as soon as no capture runs, so that an upgrade cuts
// none; retired is closed then.
func (d *Daemon) retire() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.retiring = true
}

// retireIfIdle closes retired, once, if that was asked for and no capture runs or starts.
// From then on none can.
func (d *Daemon) retireIfIdle() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.retiring && !d.closing && d.running == 0 && d.starting == 0 {
		d.closing = true
		close(d.retired)
	}
}

// beginRenewing feeds the dead-man switch for a capture that is about to start: rules
// that start with an unfed switch log nothing. From here on the pulse does it.
func (d *Daemon) beginRenewing() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.table.Renew(); err != nil {
		return fmt.Errorf("feed the dead-man switch: %w", err)
	}
	d.running++
	runtime.GOMAXPROCS(d.processors + d.running) // one for each reader, see ring's naps
	return nil
}

func (d *Daemon) endRenewing() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.running--
	runtime.GOMAXPROCS(d.processors + d.running)
}
