package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	sdnotify "github.com/coreos/go-systemd/v22/daemon"

	"capd/ctl/wire"
	"capd/daemon/api"
	"capd/daemon/config"
	"capd/daemon/spool"
	"capd/nft"
	"capd/ring"
)

// deliveryGrace is how long a stopping capd goes on delivering; what is left then waits
// for the next start.
const deliveryGrace = 15 * time.Second

// Options is what Run needs from main.
type Options struct {
	Config  *config.Config
	Load    func() (*config.Config, error) // reads the configuration again
	Reload  <-chan os.Signal               // when to
	Retire  <-chan os.Signal               // asks for an end as soon as no capture runs
	Level   *slog.LevelVar
	Version string
	Log     *slog.Logger
}

// Run is capd until ctx ends. It returns nil after an orderly stop: captures stopped
// with whole files, deliveries tried for deliveryGrace, rules gone.
func Run(ctx context.Context, o Options) error {
	d, err := open(o)
	if err != nil {
		turnAway()
		return err
	}
	listener, passed, err := listen(o.Config.Daemon.Socket, o.Log)
	if err != nil {
		d.close()
		return err
	}
	handler := api.New(d, accessOf(o.Config), o.Log)
	server := api.NewServer(handler, o.Log)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	o.Log.Info("capd is ready", "version", o.Version, "socket", listener.Addr().String(), "captures", len(d.captures))
	_, _ = sdnotify.SdNotify(false, sdnotify.SdNotifyReady)
	d.pulse = startPulse(d)
	d.exporter = startExporter(d)

	for {
		select {
		case <-o.Reload:
			d.reload(o, handler)
			continue
		case <-o.Retire:
			o.Log.Info("capd ends as soon as no capture runs")
			d.retire()
			continue
		case err = <-served:
		case <-d.retired:
		case <-ctx.Done():
		}
		break
	}
	_, _ = sdnotify.SdNotify(false, sdnotify.SdNotifyStopping)
	o.Log.Info("capd is stopping")
	if passed {
		// Whoever connects from now on waits at systemd's socket for the next capd, instead
		// of being refused by this one.
		_ = listener.Close()
		if err == nil {
			// What was accepted before that is known to the server from here on, so that
			// Shutdown waits for it.
			<-served //nolint:errcheck // it says that the listener is closed
		}
	}
	d.stopAll()
	d.events.close()
	// Answers to calls that wait for a stop go out before the socket closes.
	grace, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_ = server.Shutdown(grace)
	_ = server.Close()
	d.close()
	o.Log.Info("capd has stopped")
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}

// listen takes the socket that systemd hands over, or makes one. Passed tells which.
func listen(path string, log *slog.Logger) (l net.Listener, passed bool, err error) {
	listeners, err := activation.Listeners()
	if err != nil {
		return nil, false, fmt.Errorf("take over systemd's socket: %w", err)
	}
	if len(listeners) == 0 {
		l, err := api.Listen(path)
		return l, false, err
	}
	if len(listeners) > 1 || listeners[0] == nil {
		return nil, false, fmt.Errorf("systemd handed over %d sockets: capd.socket needs exactly one line ListenStream=", len(listeners))
	}
	l = listeners[0]
	if at := l.Addr().String(); at != path && path != wire.DefaultSocket {
		log.Warn("systemd's socket is used, not the configured one", "socket", at, "configured", path)
	}
	return l, true, nil
}

// open makes everything a capture needs, before anyone may ask for one.
func open(o Options) (*Daemon, error) {
	cfg := o.Config
	d := &Daemon{
		log: o.Log, version: o.Version, kernel: kernelRelease(), started: time.Now(),
		captures: map[string]*capture{}, names: map[string]bool{}, processors: runtime.GOMAXPROCS(0), retired: make(chan struct{}),
	}
	d.load = o.Load
	d.read.Store(cfg)
	d.cfg.Store(cfg)
	d.logIgnored(cfg)
	var err error
	if d.spool, err = spool.Open(cfg.Daemon.StateDir, cfg.SpoolDir(), cfg.Spool.Kind == config.SpoolMemory); err != nil {
		return nil, err
	}
	if d.shares, err = sizeShares(cfg); err != nil {
		return nil, err
	}
	if d.host = cfg.Daemon.Host; d.host == "" {
		if d.host, err = os.Hostname(); err != nil {
			return nil, fmt.Errorf("read the host's name: %w", err)
		}
	}
	if d.signer, err = openSigner(cfg.Daemon.StateDir, d.host); err != nil {
		return nil, err
	}
	if d.owned, err = openOwnerships(cfg.Daemon.StateDir); err != nil {
		return nil, err
	}
	if d.table, err = nft.Open(); err != nil {
		return nil, fmt.Errorf("take the nftables table: %w", err)
	}
	for _, f := range d.table.Features().List() {
		if f.Err != nil {
			d.log.Warn("this kernel lacks something: "+f.Without, "feature", f.Name, "err", f.Err)
		}
	}
	if err := tryRing(); err != nil {
		return nil, errors.Join(err, d.table.Close())
	}
	d.own = newOwnFlows(d.table, d.log)
	d.startDelivery()
	if err := d.recover(); err != nil {
		d.close()
		return nil, err
	}
	d.resumeDelivery()
	return d, nil
}

// tryRing finds out whether packets can be read at all, before capd says that it is ready.
func tryRing() error {
	r, err := ring.Open(ring.Config{Stamped: 1, Memory: ring.MinMemory, ReceiveBuffer: ring.MinMemory, Prefix: "capd:try"})
	if err != nil {
		return fmt.Errorf("read packets by NFLOG (module nfnetlink_log): %w", err)
	}
	return r.Close()
}

// reload takes over a new configuration, or keeps the old one and says why.
func (d *Daemon) reload(o Options, handler *api.Handler) {
	cfg, err := o.Load()
	if err != nil {
		d.log.Error("the new configuration is refused, the old one stays", "err", err)
		return
	}
	old := d.cfg.Load()
	// These are built into what runs already.
	fixed := *cfg
	fixed.Daemon, fixed.Spool, fixed.Ring = old.Daemon, old.Spool, old.Ring
	fixed.Daemon.LogLevel = cfg.Daemon.LogLevel
	fixed.Limits.MaxCaptures = old.Limits.MaxCaptures
	d.read.Store(cfg)
	d.cfg.Store(&fixed)
	o.Level.Set(cfg.Daemon.LogLevel)
	handler.SetAccess(accessOf(cfg))
	waiting := needRestart(&fixed, cfg)
	d.checks.forget()
	d.applyRate()
	d.expireAnew()
	d.log.Info("the configuration was read again", "destinations", len(cfg.Destinations))
	d.logIgnored(cfg)
	if len(waiting) > 0 {
		d.log.Warn("changes wait for a restart (systemctl restart capd ends running captures and delivers them)", "in", strings.Join(waiting, ", "))
	}
}

// needRestart names what differs between the configuration in force and the file's.
func needRestart(inForce, file *config.Config) []string {
	var out []string
	for _, part := range []struct {
		name    string
		differs bool
	}{
		{"[daemon]", inForce.Daemon != file.Daemon},
		{"[spool]", inForce.Spool != file.Spool},
		{"[ring]", inForce.Ring != file.Ring},
		{"limits.max_captures", inForce.Limits.MaxCaptures != file.Limits.MaxCaptures},
	} {
		if part.differs {
			out = append(out, part.name)
		}
	}
	return out
}

// stopAll ends every capture and gives deliveries a while.
func (d *Daemon) stopAll() {
	d.mu.Lock()
	d.closing = true
	captures := d.allLocked()
	d.mu.Unlock()
	var stopping sync.WaitGroup
	for _, c := range captures {
		stopping.Go(func() {
			_ = c.stopNow(context.Background(), wire.StopShutdown)
		})
	}
	stopping.Wait()
	d.awaitDelivery(deliveryGrace)
}

// close gives back what open took. Captures have ended.
func (d *Daemon) close() {
	d.exporter.stop()
	d.stopDelivery()
	d.pulse.stop()
	d.own.close()
	if err := d.table.Close(); err != nil {
		d.log.Error("give up the nftables table", "err", err)
	}
	d.spool.Close()
}
