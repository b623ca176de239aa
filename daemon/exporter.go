package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"capd/ctl/wire"
	"capd/daemon/deliver"
	"capd/daemon/metrics"
)

// exporter brings the metrics to where Prometheus finds them: into a file for
// node_exporter, and to a process of its own that listens at a TCP address, so that capd
// itself has no internet socket.
type exporter struct {
	d      *Daemon
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// fileEvery is how often the file is written: more often than anybody scrapes.
const fileEvery = 5 * time.Second

func startExporter(d *Daemon) *exporter {
	ctx, cancel := context.WithCancel(context.Background())
	e := &exporter{d: d, cancel: cancel}
	cfg := d.config().Daemon
	if cfg.MetricsFile != "" {
		e.done.Go(func() { e.keepFile(ctx, cfg.MetricsFile) })
	}
	if cfg.MetricsListen != "" {
		e.done.Go(func() { e.keepListener(ctx, cfg.MetricsListen) })
	}
	return e
}

// stop ends the exporter and waits for it. Nil is one that was never started.
func (e *exporter) stop() {
	if e == nil {
		return
	}
	e.cancel()
	e.done.Wait()
}

// keepFile writes the file now and then, and removes it at the end: what it says is true
// no more.
func (e *exporter) keepFile(ctx context.Context, path string) {
	tick := time.NewTicker(fileEvery)
	defer tick.Stop()
	told := false
	for {
		if err := replaceFile(path, e.d.Metrics(), 0o644, false); err != nil {
			if !told {
				e.d.log.Warn("the metrics file cannot be written", "file", path, "err", err)
			}
			told = true
		} else {
			told = false
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				e.d.log.Warn("remove the metrics file", "file", path, "err", err)
			}
			return
		}
	}
}

// replaceFile replaces a file in one step, so that nobody reads half of it. The temporary
// name begins with a dot and has another ending. What is durable is still there after a
// power cut.
func replaceFile(path string, data []byte, mode os.FileMode, durable bool) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode))
	if err == nil && durable {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// keepListener keeps the process that listens running until ctx ends, or until it says by
// its exit code that it is not wanted.
func (e *exporter) keepListener(ctx context.Context, address string) {
	// See deliver's supervise: Pdeathsig belongs to the thread that forked.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const least, most = time.Second, time.Minute
	for pause := least; ctx.Err() == nil; pause = min(2*pause, most) {
		err := e.runListener(ctx, address)
		if err == nil || ctx.Err() != nil {
			return
		}
		e.d.log.Warn("the metrics process ended, it is restarted", "err", err, "in", pause)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// runListener runs one metrics process and answers it over a socket pair, on which
// nothing but the metrics can be asked for.
func (e *exporter) runListener(ctx context.Context, address string) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "metrics, capd's end"), os.NewFile(uintptr(fds[1]), "metrics, the process's end")
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		theirs.Close()
		return fmt.Errorf("socketpair: %w", err)
	}
	listener := &oneConn{conn: make(chan net.Conn, 1), closed: make(chan struct{})}
	listener.conn <- conn
	server := &http.Server{ErrorLog: slog.NewLogLogger(e.d.log.Handler(), slog.LevelWarn), Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", metrics.ContentType)
		_, _ = w.Write(e.d.Metrics())
	})}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) }) // always ErrServerClosed
	defer serving.Wait()
	defer server.Close()

	cmd := exec.CommandContext(ctx, "/proc/self/exe", "metrics", "--child", "--listen", address)
	cmd.ExtraFiles = []*os.File{theirs} // becomes metricsDescriptor
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return fmt.Errorf("start the metrics process: %w", err)
	}
	return cmd.Wait()
}

// oneConn is a listener that has one connection to give.
type oneConn struct {
	conn   chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *oneConn) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *oneConn) Addr() net.Addr { return &net.UnixAddr{Name: "capd", Net: "unix"} }

// metricsDescriptor is the number of the connection to capd in its metrics process.
const metricsDescriptor = 3

// internetSockets tells whether this process may have some (RestrictAddressFamilies= answers
// EAFNOSUPPORT, systemd.exec(5)).
func internetSockets() bool {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
		}
		if !errors.Is(err, unix.EAFNOSUPPORT) {
			return true
		}
	}
	return false
}

// MetricsOptions say what the metrics process does.
type MetricsOptions struct {
	Listen string // host:port
	Socket string // capd's; "" = the connection that capd passes to its child
	Log    *slog.Logger
}

// RunMetrics is the process that answers scrapes. It has no privileges and reaches nothing
// but the metrics. Where the service manager grants this process no internet sockets, it
// returns nil at once: then a unit of its own does this work.
func RunMetrics(ctx context.Context, o MetricsOptions) error {
	// Before anything else: a unit that grants no such sockets does not grant capset(2) either.
	if o.Socket == "" && !internetSockets() {
		o.Log.Info("this unit has no internet sockets: capd-metrics.service is to listen", "address", o.Listen)
		return nil
	}
	if err := deliver.Renounce(o.Log); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return err
	}
	dial := func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "unix", o.Socket) }
	if o.Socket == "" {
		f := os.NewFile(metricsDescriptor, "capd")
		conn, err := net.FileConn(f)
		f.Close()
		if err != nil {
			return errors.Join(fmt.Errorf("the connection to capd: %w", err), listener.Close())
		}
		given := make(chan net.Conn, 1)
		given <- conn
		dial = func(context.Context) (net.Conn, error) {
			select {
			case c := <-given:
				return c, nil
			default:
				return nil, metrics.ErrGone
			}
		}
	}
	o.Log.Info("metrics are served", "address", listener.Addr().String(), "path", wire.PathMetrics)
	return metrics.Serve(ctx, listener, dial, o.Log)
}

var _ net.Listener = (*oneConn)(nil)
