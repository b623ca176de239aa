package daemon

import (
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"capd/ctl/wire"
	"capd/daemon/spool"
	"capd/ring"
)

// pulsing is a daemon with one capture whose engine is moved by hand, and what its
// heartbeat told the service manager.
func pulsing(t *testing.T) (*pulse, *engine, *[]string) {
	t.Helper()
	memory, err := ring.Alloc(512 << 10)
	if err != nil {
		t.Fatal(err)
	}
	out, err := spool.NewWriter(spool.Options{Create: spool.InFolder(t.TempDir()), Segment: segments(nil, "pcapng"), Memory: memory.Bytes(),
		SegmentSize: 1 << 20, Finished: func(spool.Segment) {}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := out.Close(); err != nil {
			t.Error(err)
		}
		memory.Free()
	})
	e := &engine{out: out, drained: make(chan struct{})}
	c := &capture{id: "0f8c0f8c0f8c0f8c0f8c0f8c0f8c0f8c", running: &running{engine: e}}
	d := &Daemon{log: slog.New(slog.NewTextHandler(t.Output(), nil)), captures: map[string]*capture{c.id: c}, retired: make(chan struct{})}
	told := new([]string)
	return newPulse(d, func(state string) { *told = append(*told, state) }), e, told
}

func TestWatchdogHearsOfTheDataPath(t *testing.T) {
	p, e, told := pulsing(t)
	now := time.Now()
	look := func(after time.Duration) (fed bool) {
		now = now.Add(after)
		*told = (*told)[:0]
		p.beat(now)
		return slices.Contains(*told, "WATCHDOG=1")
	}
	if !look(0) {
		t.Error("an engine that has just begun is taken for a dead one")
	}
	e.live.captured.Store(7)
	if !look(stuckAfter / 2) {
		t.Error("an engine that was quiet for a moment is taken for a dead one")
	}
	if want := "STATUS=1 running, 7 packets captured"; !slices.Contains(*told, want) {
		t.Errorf("told %q, want %q", *told, want)
	}
	for range 2 {
		if look(stuckAfter / 2) {
			t.Error("the watchdog was fed though the engine hangs")
		}
	}
	e.live.beats.Add(1)
	if !look(time.Second) || !slices.Contains(*told, "STATUS=1 running, 7 packets captured") {
		t.Errorf("the engine goes on, and this was told: %q", *told)
	}
	close(e.drained)
	if !look(10 * stuckAfter) {
		t.Error("an engine that has read everything is taken for a dead one")
	}
}

func TestIllnessIsSaid(t *testing.T) {
	p, _, told := pulsing(t)
	p.beat(time.Now())
	p.beat(time.Now().Add(2 * stuckAfter))
	if last := (*told)[len(*told)-1]; !strings.HasPrefix(last, "STATUS=ill: ") || !strings.Contains(last, "capture 0f8c0f8c") {
		t.Errorf("told %q", *told)
	}
}

func TestStatusLine(t *testing.T) {
	p, _, _ := pulsing(t)
	d := p.d
	for _, c := range d.captures {
		c.running = nil
		c.record.Capture.Destination = "soc"
		for _, status := range []string{wire.FileDelivered, wire.FileSpooled, wire.FileUploading, wire.FileFailed} {
			c.record.Capture.Files = append(c.record.Capture.Files, wire.File{Status: status})
		}
	}
	d.retire()
	want := "idle; 2 files to deliver; 1 file not delivered, see capctl list --all; restarts when no capture runs"
	if got := d.summary(d.all()); got != want {
		t.Errorf("the status is %q, want %q", got, want)
	}
}

func TestRetirementWaitsForCaptures(t *testing.T) {
	p, _, _ := pulsing(t)
	d := p.d
	ended := func() bool {
		d.retireIfIdle()
		select {
		case <-d.retired:
			return true
		default:
			return false
		}
	}
	if ended() {
		t.Fatal("it ends though nobody asked")
	}
	d.running = 1
	d.retire()
	if ended() {
		t.Fatal("it ends though a capture runs")
	}
	d.running, d.starting = 0, 1
	if ended() {
		t.Fatal("it ends though a capture is being started")
	}
	d.starting = 0
	if !ended() {
		t.Fatal("it does not end though nothing runs")
	}
	if _, err := d.admit("x"); err == nil {
		t.Error("a capture may start in a daemon that ends")
	}
}
