package daemon

import (
	"log/slog"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"weak"

	"capd/ctl/wire"
	"capd/daemon/config"
	"capd/daemon/spool"
)

// A capture that is removed long before its retention is over is gone from memory, too.
func TestRemovedIsFreed(t *testing.T) {
	dir := t.TempDir()
	s, err := spool.Open(dir, filepath.Join(dir, "spool"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	log := slog.New(slog.DiscardHandler)
	d := &Daemon{log: log, spool: s, captures: map[string]*capture{}}
	cfg := &config.Config{}
	cfg.Limits.Retention = wire.Seconds(7 * 24 * time.Hour)
	d.cfg.Store(cfg)

	id := strings.Repeat("0", 32)
	finished := func() weak.Pointer[capture] {
		c := &capture{id: id, d: d, log: log, halted: make(chan struct{})}
		close(c.halted)
		c.record.Capture = wire.Capture{ID: id, Status: wire.StatusComplete, Completed: now()}
		if err := s.Create(id); err != nil {
			t.Fatal(err)
		}
		d.captures[id] = c
		c.mu.Lock()
		d.expireLater(c)
		c.mu.Unlock()
		return weak.Make(c)
	}()
	runtime.GC()
	if finished.Value() == nil {
		t.Fatal("a capture that is kept is not in memory")
	}
	if err := d.Remove(t.Context(), id, false); err != nil {
		t.Fatal(err)
	}
	for n := 0; finished.Value() != nil; n++ {
		if n == 100 {
			t.Fatal("a removed capture stays in memory")
		}
		runtime.GC()
		time.Sleep(10 * time.Millisecond)
	}
}
