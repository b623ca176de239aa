// Command capd is the packet-capture daemon; capd(8).
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"capd/ctl/wire"
	"capd/daemon"
	"capd/daemon/config"
	"capd/daemon/journal"
)

const usage = `usage: capd [--config FILE]          run the daemon
       capd --check-config [--config FILE]
       capd --version
       capd deliver [--help]          the process that talks to the network

  --config FILE    configuration (default ` + config.DefaultPath + `, or $CAPD_CONFIG)
  --check-config   read the configuration, say what is wrong with it, and exit
  --version        print the version

Without a configuration file capd runs on its defaults. SIGTERM stops captures, finishes
their files and tries their delivery for a while; SIGHUP rereads the configuration;
SIGUSR1 ends capd as soon as no capture runs, for its service manager to start the next.
See capd(8) and capd.toml(5); captures are started with capctl(1).
`

// exitConfig is sysexits.h's EX_CONFIG: a start would fail again. A Go program that panics
// or gets SIGABRT ends with 2, and is worth another start.
const exitConfig = 78

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == "deliver" {
		return deliver(args[1:], stdout, stderr)
	}
	if len(args) > 0 && args[0] == "metrics" {
		return exportMetrics(args[1:], stdout, stderr)
	}
	flags := commandLine("capd", stderr)
	path := flags.String("config", "", "")
	check := flags.Bool("check-config", false, "")
	showVersion := flags.Bool("version", false, "")
	if exit, ends := parse(flags, args, usage, stdout); ends {
		return exit
	}
	if *showVersion {
		fmt.Fprintln(stdout, "capd", wire.Version)
		return 0
	}
	load := func() (*config.Config, error) {
		cfg, err := config.Load(config.Path(*path, os.Getenv))
		if err != nil {
			return nil, err
		}
		if err := cfg.ApplyEnv(os.Getenv); err != nil {
			return nil, err
		}
		return cfg, daemon.CheckConfig(cfg)
	}
	cfg, err := load()
	if err != nil {
		fmt.Fprintf(stderr, "capd: %v\n", err)
		if !*check {
			daemon.Refuse(stderr)
		}
		return exitConfig
	}
	if *check {
		for _, file := range cfg.Ignored {
			fmt.Fprintf(stderr, "capd: warning: %s is not read: a profile is a file NAME.toml\n", file)
		}
		fmt.Fprintln(stdout, "the configuration is good")
		return 0
	}

	level := new(slog.LevelVar)
	level.Set(cfg.Daemon.LogLevel)
	log := journal.NewLogger(stderr, level)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	retire := make(chan os.Signal, 1)
	signal.Notify(retire, syscall.SIGUSR1)
	if err := daemon.Run(ctx, daemon.Options{Config: cfg, Load: load, Reload: reload, Retire: retire, Level: level, Version: wire.Version, Log: log}); err != nil {
		log.Error("capd ends", "err", err)
		return 1
	}
	return 0
}
