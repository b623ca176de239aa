package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"capd/ctl/wire"
	"capd/daemon/deliver"
	"capd/daemon/spool"
)

// puts counts how often each file is delivered, once it may.
type puts struct {
	mu    sync.Mutex
	count map[string]int
	may   chan struct{}
}

func (p *puts) Put(_ context.Context, put deliver.Put, _ *os.File) (deliver.Result, error) {
	p.mu.Lock()
	p.count[put.Vars.ID+"/"+put.Vars.File]++
	may := p.may
	p.mu.Unlock()
	<-may
	return deliver.Result{Bytes: put.Size}, nil
}

// A retry finds files on their way into the queue, in it, and on their way out: each is
// delivered once all the same, and none is taken for one that has failed.
func TestRetryDuringTheHandOver(t *testing.T) {
	dir := t.TempDir()
	s, err := spool.Open(dir, filepath.Join(dir, "spool"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	log := slog.New(slog.DiscardHandler)
	at := &puts{count: map[string]int{}}
	d := &Daemon{log: log, spool: s, captures: map[string]*capture{}, queue: deliver.NewQueue(at, deliver.QueueOptions{Logger: log})}
	defer d.queue.Close()
	const rounds, files = 20, 30 // more than are under way at once
	for n := range rounds {
		c := &capture{id: fmt.Sprintf("%032x", n), d: d, log: log, halted: make(chan struct{})}
		c.record.Capture = wire.Capture{ID: c.id, Status: wire.StatusRunning, StartRequest: wire.StartRequest{Destination: "soc"}}
		if err := s.Create(c.id); err != nil {
			t.Fatal(err)
		}
		for i := range files {
			name := fmt.Sprintf("%04d.pcapng", i)
			if err := os.WriteFile(filepath.Join(s.Folder(c.id), name), []byte("packets"), 0o600); err != nil {
				t.Fatal(err)
			}
			c.record.Capture.Files = append(c.record.Capture.Files, wire.File{Name: name, Status: wire.FileSpooled})
		}
		d.captures[c.id] = c
		at.mu.Lock()
		at.may = make(chan struct{})
		at.mu.Unlock()
		retry := func() {
			if _, err := d.Retry(t.Context(), c.id); err != nil {
				t.Fatal(err)
			}
		}
		d.deliver(c)
		retry()
		close(at.may)
		for len(c.inQueue()) > 0 {
			retry()
		}
		for _, f := range c.snapshot().Files {
			if f.Status != wire.FileDelivered || f.Attempts != 1 || at.count[c.id+"/"+f.Name] != 1 {
				t.Fatalf("round %d: %+v, delivered %d times", n, f, at.count[c.id+"/"+f.Name])
			}
		}
	}
}
