package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"capd/daemon"
	"capd/daemon/config"
)

const metricsUsage = `usage: capd metrics [--config FILE] [--listen HOST:PORT] [--socket PATH]

Answers Prometheus at a TCP address with what capd says at its socket under /metrics, and
with nothing else. Under systemd that is capd-metrics.service, without capabilities and as a
user in the group capd-view: systemctl enable --now capd-metrics. Where capd itself may have
internet sockets it starts this as a child, if metrics_listen is set.

  --config FILE        capd's configuration (default ` + config.DefaultPath + `, or $CAPD_CONFIG)
  --listen HOST:PORT   where to listen (default: metrics_listen of the configuration, or
                       $CAPD_METRICS_LISTEN)
  --socket PATH        capd's socket (default: socket of the configuration, or $CAPD_SOCKET)
`

// exportMetrics is the process that answers scrapes.
func exportMetrics(args []string, stdout, stderr io.Writer) int {
	flags := commandLine("capd metrics", stderr)
	path := flags.String("config", "", "")
	listen := flags.String("listen", "", "")
	socket := flags.String("socket", "", "")
	child := flags.Bool("child", false, "") // capd's own: it has passed a connection
	if exit, ends := parse(flags, args, metricsUsage, stdout); ends {
		return exit
	}
	if !*child && (*listen == "" || *socket == "") {
		cfg, err := config.Load(config.Path(*path, os.Getenv))
		if err == nil {
			err = cfg.ApplyEnv(os.Getenv)
		}
		if err != nil {
			fmt.Fprintf(stderr, "capd metrics: %v\n", err)
			return 2
		}
		if *listen == "" {
			*listen = cfg.Daemon.MetricsListen
		}
		if *socket == "" {
			*socket = cfg.Daemon.Socket
		}
		if *listen == "" {
			fmt.Fprintln(stderr, "capd metrics: no address to listen at: set daemon.metrics_listen, or give --listen HOST:PORT")
			return 2
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	log := slog.New(slog.NewTextHandler(stderr, nil)).With("process", "metrics")
	if err := daemon.RunMetrics(ctx, daemon.MetricsOptions{Listen: *listen, Socket: *socket, Log: log}); err != nil {
		log.Error("metrics end", "err", err)
		return 1
	}
	return 0
}
