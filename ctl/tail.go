package ctl

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"capd/ctl/client"
	"capd/ctl/wire"
	"capd/ring/pcapng"
)

// tailCommand is capctl tail.
func (a *app) tailCommand() *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use:        "tail [flags] CAPTURE",
		GroupID:    groupCapture,
		Short:      "the packets of a running capture, live",
		SuggestFor: []string{"follow", "stream", "attach"},
		Long: `tail copies the packets of a running capture, from now on, to stdout or a file as pcapng,
until the capture ends or you leave with Ctrl-C; the capture goes on. A single packet is
there within a fraction of a second.

A reader that is too slow never slows the capture: it loses packets of its own copy, and
the copy says how many, before which packet (drop counts) and in all (interface
statistics). The files of the capture have them.

From several boxes (-H) the packets come as one stream in the order of time, interfaces
named host/interface; a packet waits half a second at most for older ones of other boxes.`,
		Example: `  capctl tail voip-drops | tcpdump -nr -
  capctl tail voip-drops -w now.pcapng
  capctl -H edge-1 -H edge-2 tail voip-drops | wireshark -k -i -
  ssh edge-1 capctl tail voip-drops | wireshark -k -i -`,
		Args:              exactly("CAPTURE"),
		ValidArgsFunction: a.completeCapture(1, func(c wire.Capture) bool { return c.Status == wire.StatusRunning }),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.tail(cmd.Context(), args[0], to)
		},
	}
	cmd.Flags().StringVarP(&to, "write", "w", "-", "into this `FILE`, replacing it; -: to stdout")
	return cmd
}

func (a *app) tail(ctx context.Context, ref, to string) error {
	to = a.liveTarget(to)
	if err := a.mayStream(to, "capctl tail "+ref); err != nil {
		return err
	}
	out, err := a.openLive(to)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx) // a signal ends it
	defer cancel()
	a.noteClock(ctx)
	r, err := a.client().Stream(ctx, ref, a.streamOptions(to))
	if err != nil {
		out.abandon()
		return err
	}
	count, err := a.pour(ctx, cancel, r, out)
	if err != nil {
		return err
	}
	a.note("%s%s", plural(count.packets, "packet", "packets"), count.missing())
	return nil
}

// startStream is capctl start -w: a capture that lives as long as this program.
func (a *app) startStream(ctx context.Context, req wire.StartRequest, to string) error {
	to = a.liveTarget(to)
	a.share(&req)
	if err := a.mayStream(to, "capctl start -w -"); err != nil {
		return err
	}
	signals, release := a.signals()
	defer release()
	out, err := a.openLive(to)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel()
	// The first signal stops the capture, whose stream then ends with its statistics; a
	// second, or one that comes before capd has answered, leaves at once.
	started := make(chan string, 1)
	tasks.Go(func() {
		select {
		case <-ctx.Done():
			return
		case <-signals:
		}
		select {
		case id := <-started:
			tasks.Go(func() {
				if _, err := a.client().Stop(ctx, id); err != nil {
					cancel()
				}
			})
		default:
			cancel()
		}
		select {
		case <-ctx.Done():
		case <-signals:
			cancel()
		}
	})
	a.noteClock(ctx)
	id, r, err := a.client().StartStream(ctx, req, a.streamOptions(to))
	if err != nil {
		out.abandon()
		if errors.Is(err, context.Canceled) {
			return failf("interrupted before capd answered")
		}
		return err
	}
	started <- id
	a.streaming(ctx, id)
	count, err := a.pour(ctx, cancel, r, out)
	a.streamed(context.WithoutCancel(ctx), id, count)
	return err
}

// mayStream refuses to write packets where they would do harm.
func (a *app) mayStream(to, command string) error {
	switch {
	case to == "":
		return usagef("-w needs the name of a file, or - for stdout")
	case to != "-":
		return nil
	case a.json:
		return usagef("--json and -w - both want stdout").withHint("choose one of them")
	case a.screenOf(a.stdout).terminal:
		return usagef("packets are not written to a terminal").withHint("%s | tcpdump -nr -", command)
	}
	return nil
}

// streamOptions names the SSH connection through which a stream to stdout leaves, so that
// it is not captured and sent again.
func (a *app) streamOptions(to string) client.StreamOptions {
	if flow, ok := sshFlow(a.getenv("SSH_CONNECTION")); ok && (to == "-" || a.box != nil) {
		return client.StreamOptions{Via: &flow}
	}
	return client.StreamOptions{}
}

// streaming tells on stderr what has begun.
func (a *app) streaming(ctx context.Context, id string) {
	if a.quiet {
		return
	}
	quick, cancel := a.soon(ctx)
	defer cancel()
	c, err := a.client().Get(quick, id)
	if err != nil {
		a.note("capture %s", clean(id))
		return
	}
	a.note("capture %s ends %s or Ctrl-C", clean(id), untilWhen(c))
	a.warn(c)
}

// streamed tells on stderr how a capture that was a stream has ended.
func (a *app) streamed(ctx context.Context, id string, count liveCount) {
	if a.quiet {
		return
	}
	quick, cancel := a.soon(ctx)
	defer cancel()
	for {
		c, err := a.client().Get(quick, id)
		if err != nil {
			a.note("%s%s", plural(count.packets, "packet", "packets"), count.missing())
			return
		}
		if !finished(c) { // the connection has been closed, and capd is at it
			select {
			case <-quick.Done():
			case <-time.After(a.timing.poll / 8):
			}
			continue
		}
		text := plural(c.Packets.Captured, "packet", "packets") + " captured"
		if n := lost(c.Packets); n > 0 {
			text += ", " + plural(n, "packet", "packets") + " lost by the kernel"
		}
		if lossUnknown(c) {
			text += ", and what was lost is not known"
		}
		text += limited(c.Packets)
		if c.Packets.Captured > count.packets && count.whole {
			text += ", " + plural(c.Packets.Captured-count.packets, "packet", "packets") + " not written because it was read too slowly"
		}
		a.note("%s (%s)", text, c.StopReason)
		return
	}
}

// liveCount is what came of a stream.
type liveCount struct {
	packets uint64
	dropped uint64 // told with packets; with whole, all that were lost
	whole   bool   // the stream came to its end
}

func (n liveCount) missing() string {
	if n.dropped == 0 {
		return ""
	}
	return ", " + plural(n.dropped, "packet", "packets") + " lost: by the kernel, or because it was read too slowly"
}

// pour copies a stream to its end, in whole blocks, so that what was written is a file at
// any time. That the other end of a pipe closes, or ctx is cancelled, ends it in order.
// r is closed.
func (a *app) pour(ctx context.Context, cancel context.CancelFunc, r io.ReadCloser, out *liveOut) (n liveCount, err error) {
	defer r.Close()
	unwatch := out.watch(cancel)
	w := bufio.NewWriterSize(out, 256<<10)
	blocks := pcapng.NewReader(flushing{r, w})
	for err == nil {
		var b pcapng.Block
		if b, err = blocks.Next(); err == nil {
			n.note(b)
			_, err = w.Write(b.Raw)
		}
	}
	n.whole = errors.Is(err, io.EOF)
	if n.whole || ctx.Err() != nil {
		err = nil
	}
	if ferr := w.Flush(); ferr != nil {
		err = ferr
	}
	unwatch()
	cerr := out.close()
	var failed *fs.PathError // of the file that is written to
	switch {
	case errors.Is(err, syscall.EPIPE):
		return n, nil
	case errors.As(err, &failed):
		return n, failf("writing: %v", err)
	case err != nil:
		return n, &exitError{exit: exitUnreachable, message: "the stream was cut: " + err.Error(), hint: "capd may have ended: journalctl -u capd"}
	case cerr != nil:
		return n, failf("writing: %v", cerr)
	}
	return n, nil
}

// note counts a block.
func (n *liveCount) note(b pcapng.Block) {
	switch b.Type {
	case pcapng.TypePacket:
		n.packets++
		if p, err := b.Packet(); err == nil {
			n.dropped += p.Dropped
		}
	case pcapng.TypeStatistics:
		s, err := b.Statistics()
		if err != nil {
			return
		}
		if !n.whole { // the first of those at the end, which tell all
			n.whole, n.dropped = true, 0
		}
		n.dropped += s.Dropped
	}
}

// flushing passes on what was written before it waits for more to read.
type flushing struct {
	io.Reader
	w *bufio.Writer
}

// Read implements io.Reader.
func (f flushing) Read(p []byte) (int, error) {
	if err := f.w.Flush(); err != nil {
		return 0, err
	}
	return f.Reader.Read(p)
}

// liveOut is where a stream is written to.
type liveOut struct {
	io.Writer
	file *os.File // nil: stdout, which stays open
	made bool     // the file was not there before
	stop func()   // gives SIGPIPE back
}

// openLive opens a file, or takes stdout. A file that is there keeps its contents until
// the stream begins. From here on a closed pipe is an error of a write, not a signal.
func (a *app) openLive(to string) (*liveOut, error) {
	pipe := make(chan os.Signal, 1)
	signal.Notify(pipe, syscall.SIGPIPE)
	out := &liveOut{Writer: a.stdout, stop: func() { signal.Stop(pipe) }}
	if to == "-" {
		return out, nil
	}
	_, err := os.Stat(to)
	out.made = errors.Is(err, fs.ErrNotExist)
	if out.file, err = os.OpenFile(to, os.O_WRONLY|os.O_CREATE, 0o600); err != nil { // packets are private
		out.stop()
		return nil, failf("writing: %v", err)
	}
	out.Writer = &truncating{file: out.file}
	return out, nil
}

// truncating empties a file before the first write to it.
type truncating struct {
	file  *os.File
	begun bool
}

// Write implements io.Writer.
func (t *truncating) Write(p []byte) (int, error) {
	if !t.begun {
		t.begun = true
		if err := t.file.Truncate(0); err != nil && !errors.Is(err, syscall.EINVAL) { // EINVAL: a pipe or a device
			return 0, err
		}
	}
	return t.file.Write(p)
}

// abandon undoes openLive where no stream came.
func (o *liveOut) abandon() {
	_ = o.close()
	if o.made {
		_ = os.Remove(o.file.Name())
	}
}

func (o *liveOut) close() error {
	o.stop()
	if o.file == nil {
		return nil
	}
	return o.file.Close()
}

// watchEvery is how soon it is noticed that nobody reads a pipe any more to which nothing
// is written.
const watchEvery = 200 * time.Millisecond

// watch calls gone when nobody reads the pipe or socket any more that is written to, until
// the function that it gives is called.
func (o *liveOut) watch(gone func()) (unwatch func()) {
	file := o.file
	if file == nil {
		file, _ = o.Writer.(*os.File)
	}
	if file == nil {
		return func() {}
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return func() {}
	}
	end := make(chan struct{})
	var task sync.WaitGroup
	task.Go(func() {
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		for closed := false; !closed; {
			select {
			case <-end:
				return
			case <-tick.C:
			}
			if raw.Control(func(fd uintptr) { closed = hungUp(int(fd)) }) != nil {
				return
			}
		}
		gone()
	})
	return func() { close(end); task.Wait() }
}

// hungUp tells that the other end of a pipe or socket is closed (poll(2): POLLERR for the
// writing end of a pipe without readers).
func hungUp(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0
}
