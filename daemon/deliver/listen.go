package deliver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Listen makes the socket at which a delivery process with a user of its own waits for
// capd. What an earlier process has left at the path is replaced; the folder must be one
// that nobody else may write to. Every local user may connect, and all but one are hung
// up on (ServePeers).
func Listen(path string) (*net.UnixListener, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("listen for capd: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("listen for capd: %s is there already and is not a socket", path)
	default:
		if conn, err := net.Dial("unixpacket", path); err == nil {
			conn.Close()
			return nil, fmt.Errorf("listen for capd: another process listens at %s", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("listen for capd: %w", err)
		}
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("listen for capd: %w", err)
	}
	if err := os.Chmod(path, 0o666); err != nil { //nolint:gosec // who may speak is judged by the peer's uid
		l.Close()
		return nil, fmt.Errorf("listen for capd: %w", err)
	}
	return l, nil
}

// ServePeers carries out the requests of whoever connects to l with the user id uid, one
// connection after the other: a second one waits until the first is over. Others are
// hung up on. It closes l, and returns nil when ctx is canceled and every goroutine has
// ended; a connection that ends or speaks nonsense is logged and does not end it.
func ServePeers(ctx context.Context, l *net.UnixListener, uid uint32, o ServeOptions) error {
	var peers sync.WaitGroup
	defer peers.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var turn sync.Mutex
	for {
		conn, err := l.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if errors.Is(err, syscall.ECONNABORTED) || errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("accept capd's connection: %w", err)
		}
		who, err := peerOf(conn)
		if err != nil || who.Uid != uid {
			o.Logger.Warn("a connection is refused: only capd's own user may ask for deliveries", "uid", who.Uid, "pid", who.Pid, "wanted_uid", uid, "err", err)
			conn.Close()
			continue
		}
		peers.Go(func() {
			turn.Lock()
			defer turn.Unlock()
			o.Logger.Info("capd is connected", "pid", who.Pid)
			err := serve(ctx, &socket{conn}, o)
			o.Logger.Info("capd has hung up", "pid", who.Pid, "err", err)
		})
	}
}

// peerOf tells who is at the other end of a Unix socket, by SO_PEERCRED (unix(7)): whoever
// connected, and seen from there whoever began to listen.
func peerOf(conn *net.UnixConn) (unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return unix.Ucred{}, fmt.Errorf("ask for the peer: %w", err)
	}
	var who *unix.Ucred
	if err := control(raw, func(fd int) (err error) {
		who, err = unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		return err
	}); err != nil {
		return unix.Ucred{}, fmt.Errorf("getsockopt SO_PEERCRED: %w", err)
	}
	return *who, nil
}
