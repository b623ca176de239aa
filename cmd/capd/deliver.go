package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"os/user"
	"strconv"
	"syscall"

	"capd/daemon"
	"capd/daemon/journal"
)

const deliverUsage = `usage: capd deliver                                           as capd starts it
       capd deliver [--listen SOCKET] [--peer-user NAME | --peer-uid UID]

The process that talks to the network. capd starts it as a child of its own, unless
` + daemon.DeliverSocketVariable + ` in capd's environment names the socket of one that has a unit and a
user of its own. Then nobody but it can read the keys, and it cannot command capd.

  --listen SOCKET   wait for capd at this Unix socket (SOCK_SEQPACKET), which is made;
                    without it, at the one that systemd passes (LISTEN_FDS)
  --peer-user NAME  take requests from this user alone, capd's (default capd)
  --peer-uid UID    the same by number

What its unit has to say:
  capd-deliver.socket   ListenSequentialPacket=/run/capd-deliver/deliver.sock
                        SocketUser=capd, SocketMode=0600, DirectoryMode=0755
  capd-deliver.service  ExecStart=capd deliver --peer-user capd, Type=notify, Restart=always,
                        User=capd-deliver (not capd), no capabilities
                        (CapabilityBoundingSet=, NoNewPrivileges=yes), LimitCORE=0,
                        RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK, the
                        network namespace of its capd; LoadCredential=NAME:FILE for
                        each key that a profile names as credential:NAME, or key files of
                        mode 600 that belong to capd-deliver; AWS_... variables too
  capd.service          Environment=` + daemon.DeliverSocketVariable + `=/run/capd-deliver/deliver.sock
                        Wants= and After=capd-deliver.socket,
                        RestrictAddressFamilies=AF_UNIX AF_NETLINK
`

// deliver is the process that talks to the network.
func deliver(args []string, stdout, stderr io.Writer) int {
	flags := commandLine("capd deliver", stderr)
	listen := flags.String("listen", "", "")
	peerUser := flags.String("peer-user", "", "")
	peerUID := flags.Int64("peer-uid", -1, "")
	fail := func(format string, a ...any) int {
		fmt.Fprintf(stderr, "capd deliver: "+format+"\n", a...)
		return 2
	}
	if exit, ends := parse(flags, args, deliverUsage, stdout); ends {
		return exit
	}
	switch {
	case *peerUser != "" && *peerUID >= 0:
		return fail("--peer-user %s and --peer-uid %d: give one of them", *peerUser, *peerUID)
	case *peerUID < -1 || *peerUID > 1<<32-2:
		return fail("--peer-uid %d is no user id", *peerUID)
	}
	activated := *listen == "" && os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid())
	if *listen == "" && !activated {
		if *peerUser != "" || *peerUID >= 0 {
			return fail("--peer-user and --peer-uid need --listen SOCKET, or a socket that systemd passes")
		}
		if !isSocket(3) {
			return fail("capd starts this process itself; by hand it needs --listen SOCKET (capd deliver --help)")
		}
	}
	log := journal.NewLogger(stderr, slog.LevelInfo).With("process", "deliver")
	o := daemon.DeliverOptions{Listen: *listen, Activated: activated, Log: log, Peer: func() (uint32, error) { return peer(*peerUser, *peerUID) }}
	ctx := context.Background() // a child ends with capd, which ends it in order
	if *listen != "" || activated {
		var stop context.CancelFunc
		ctx, stop = signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
		defer stop()
	}
	if err := daemon.RunDeliver(ctx, o); err != nil {
		log.Error("deliver ends", "err", err)
		return 1
	}
	return 0
}

// peer gives the user id whose requests count: uid where it is not negative.
func peer(name string, uid int64) (uint32, error) {
	if uid >= 0 {
		return uint32(uid), nil
	}
	if name == "" {
		name = "capd"
	}
	u, err := user.Lookup(name)
	if err != nil {
		return 0, fmt.Errorf("--peer-user %s: %w", name, err)
	}
	n, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("--peer-user %s: user id %q: %w", name, u.Uid, err)
	}
	return uint32(n), nil
}

func isSocket(fd int) bool {
	var st syscall.Stat_t
	return syscall.Fstat(fd, &st) == nil && st.Mode&syscall.S_IFMT == syscall.S_IFSOCK
}
