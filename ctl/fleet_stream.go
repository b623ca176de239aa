package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"capd/ctl/merge"
	"capd/ctl/wire"
	"capd/ring/pcapng"
)

// streamAll merges the live packets of several boxes into one stream.
func (a *app) streamAll(cmd *cobra.Command, boxes []*box) error {
	to := cmd.Flags().Lookup("write").Value.String()
	if err := a.mayStream(to, "capctl "+cmd.Name()); err != nil {
		return err
	}
	out, err := a.openLive(to)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	leave := &leaving{}
	// Nobody reads any more, even if there is nothing to write.
	unwatch := out.watch(func() { leave.now(); cancel() })

	r := a.newFleetRun(boxes)
	var inputs []merge.LiveInput
	ends := map[*part]*io.PipeWriter{}
	known := &clocks{}
	for _, p := range r.parts {
		reader, writer := io.Pipe()
		inputs, ends[p] = append(inputs, merge.LiveInput{Host: p.box.label, R: brokenPipe{reader}}), writer
	}
	r.prepare = func(sub *app, p *part) {
		sub.stdout = ends[p]
		sub.signals = leave.signals(a.signals)
		sub.clocks = known
	}
	// A box that gave nothing is told of by its own error.
	r.done = func(p *part) { ends[p].Close() }
	var result merge.Result
	var writing sync.WaitGroup
	writing.Go(func() {
		section := pcapng.Section{Application: "capctl " + wire.Version, Comment: fmt.Sprintf("merged live from %d hosts by capctl %s; each interface's comment tells its host's clock", len(boxes), wire.Version)}
		result, err = merge.Live(out, section, inputs, known.text)
		if err != nil {
			leave.now()
			cancel()
		}
	})
	r.run(ctx)
	writing.Wait()
	unwatch()
	if cerr := out.close(); err == nil {
		err = cerr
	}
	if err != nil && !errors.Is(err, syscall.EPIPE) {
		return failf("writing: %v", err)
	}
	a.note("%s from %s", plural(result.Packets, "packet", "packets"), plural(uint64(len(boxes)), "host", "hosts"))
	return a.closing(r.parts)
}

// liveTarget is where a stream goes: where it is one of several, to stdout, which is then
// what merges them.
func (a *app) liveTarget(to string) string {
	if a.box != nil && a.box.many {
		return "-"
	}
	return to
}

// leaving interrupts runs that wait for signals, as Ctrl-C would.
type leaving struct {
	mu   sync.Mutex
	left bool
	all  []chan os.Signal
}

// signals makes a source of signals that also hears of now.
func (l *leaving) signals(own func() (<-chan os.Signal, func())) func() (<-chan os.Signal, func()) {
	return func() (<-chan os.Signal, func()) {
		from, release := own()
		to, end := make(chan os.Signal, 3), make(chan struct{})
		l.mu.Lock()
		l.all = append(l.all, to)
		if l.left {
			to <- os.Interrupt
		}
		l.mu.Unlock()
		var task sync.WaitGroup
		task.Go(func() {
			for {
				select {
				case s := <-from:
					select {
					case to <- s:
					default: // two are as good as more
					}
				case <-end:
					return
				}
			}
		})
		return to, func() { close(end); task.Wait(); release() }
	}
}

// now interrupts them.
func (l *leaving) now() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left {
		return
	}
	l.left = true
	for _, c := range l.all {
		select {
		case c <- os.Interrupt:
		default:
		}
	}
}

// brokenPipe is a pipe whose writer learns as from the kernel that nobody reads any more.
type brokenPipe struct{ *io.PipeReader }

// Close implements io.Closer.
func (p brokenPipe) Close() error { return p.CloseWithError(syscall.EPIPE) }
