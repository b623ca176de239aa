package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"

	"github.com/coreos/go-systemd/v22/activation"
	sdnotify "github.com/coreos/go-systemd/v22/daemon"

	"capd/daemon/deliver"
	"capd/daemon/deliver/s3"
	"capd/daemon/deliver/sftp"
)

// DeliverSocketVariable names, in capd's environment, the socket of a delivery process
// that has a unit and a user of its own. Where it is empty capd starts one as a child,
// which then has capd's user.
const DeliverSocketVariable = "CAPD_DELIVER_SOCKET"

// startDelivery gets the process that talks to the network, and the queue that feeds it.
func (d *Daemon) startDelivery() {
	d.client = deliver.Start(context.Background(), deliver.Options{
		Socket: os.Getenv(DeliverSocketVariable), Command: []string{"/proc/self/exe", "deliver"}, Profiles: d.profile, Flow: d.own.leaveOut, Logger: d.log,
	})
	d.queue = deliver.NewQueue(d.client, deliver.QueueOptions{Logger: d.log, Concurrency: func(destination string) int {
		return d.config().Destinations[destination].Concurrency
	}})
}

// DeliverOptions say where the delivering process gets its requests from.
type DeliverOptions struct {
	Listen    string                 // path of a socket to make; "" = systemd's, or else the descriptor that capd passes to its child
	Activated bool                   // systemd passes the socket (LISTEN_FDS)
	Peer      func() (uint32, error) // whose requests count at such a socket: capd's user id
	Log       *slog.Logger
}

// RunDeliver is the delivering process. It talks to the network and has no privileges.
// As capd's child it ends when capd closes its end of the socket, in a unit of its own
// when ctx does.
func RunDeliver(ctx context.Context, o DeliverOptions) error {
	if err := deliver.Confine(o.Log); err != nil {
		return err
	}
	serve := deliver.ServeOptions{
		Kinds:  map[string]deliver.OpenFunc{deliver.TypeSFTP: sftp.Open, deliver.TypeS3: s3.Open},
		Logger: o.Log,
	}
	if o.Listen == "" && !o.Activated {
		return deliver.Serve(ctx, os.NewFile(deliver.ChildDescriptor, "capd"), serve)
	}
	uid, err := o.Peer()
	if err != nil {
		return err
	}
	listener, err := deliverListener(o)
	if err != nil {
		return err
	}
	o.Log.Info("waiting for capd", "socket", listener.Addr().String(), "uid", uid)
	_, _ = sdnotify.SdNotify(false, sdnotify.SdNotifyReady)
	err = deliver.ServePeers(ctx, listener, uid, serve)
	_, _ = sdnotify.SdNotify(false, sdnotify.SdNotifyStopping)
	return err
}

// deliverListener takes the socket that systemd hands over, or makes one.
func deliverListener(o DeliverOptions) (*net.UnixListener, error) {
	if !o.Activated {
		return deliver.Listen(o.Listen)
	}
	passed, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("take over systemd's socket: %w", err)
	}
	if len(passed) != 1 {
		return nil, fmt.Errorf("systemd passes %d sockets, 1 is wanted: one ListenSequentialPacket= in capd-deliver.socket", len(passed))
	}
	l, ok := passed[0].(*net.UnixListener)
	if !ok || l.Addr().Network() != "unixpacket" {
		return nil, fmt.Errorf("systemd passes a socket of type %s: capd-deliver.socket needs ListenSequentialPacket=", passed[0].Addr().Network())
	}
	return l, nil
}
