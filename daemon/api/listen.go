package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// socketMode lets every local user connect: who may do what is judged call by call.
const socketMode = 0o666

// errInUse is in Listen's error where another daemon answers at the path.
var errInUse = errors.New("another capd answers there")

// listener is a Unix listener and the lock that makes it the only one at its path.
type listener struct {
	*net.UnixListener
	lock *os.File
}

// Close removes the socket and then lets go of the lock.
func (l *listener) Close() error {
	return errors.Join(l.UnixListener.Close(), l.lock.Close())
}

// Listen opens the control socket. The socket has its mode from the moment it exists.
// One that a dead daemon left is replaced; a live one's is not, and the error is
// errInUse. A lock file stays beside the socket. Closing the listener removes the
// socket.
func Listen(path string) (net.Listener, error) {
	type result struct {
		l   net.Listener
		err error
	}
	done := make(chan result)
	go func() {
		// The umask belongs to a process; unshare(CLONE_FS) gives this thread one of its
		// own. The thread is never unlocked, so the runtime ends it with the goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			done <- result{err: fmt.Errorf("unshare CLONE_FS: %w", err)}
			return
		}
		unix.Umask(0)
		l, err := listen(path)
		done <- result{l, err}
	}()
	r := <-done
	if r.err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, r.err)
	}
	return r.l, nil
}

// listen is Listen on a thread whose umask is 0.
func listen(path string) (_ net.Listener, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if err == unix.EWOULDBLOCK {
			return nil, errInUse
		}
		return nil, fmt.Errorf("flock: %w", err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// bind(2) gives the file the socket's own mode, less the umask (net/unix/af_unix.c,
	// unix_bind_bsd): so the mode is set before there is a file.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failure error
		err := c.Control(func(fd uintptr) { failure = unix.Fchmod(int(fd), socketMode) })
		return errors.Join(err, failure)
	}}
	l, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	info, err := os.Lstat(path)
	if err == nil && info.Mode() != fs.ModeSocket|socketMode {
		err = fmt.Errorf("the socket has the mode %v", info.Mode())
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return &listener{l.(*net.UnixListener), lock}, nil
}

// removeStale removes a socket that nobody listens at.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("there is something there that is not a socket: move it away, or name another path")
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
		return errInUse
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("is anybody listening: %w", err)
	}
	return os.Remove(path)
}

// maxHeader is how long the headers of a request may be, in bytes.
const maxHeader = 64 << 10

// Server is an HTTP server with this package's ConnContext and with bounds on what a slow
// or hostile client can hold. Its Serve is http.Server's, but what cannot be read as HTTP
// is answered in JSON, too.
type Server struct {
	http.Server
	unheard atomic.Int64
	crowd   crowd
}

// Serve implements http.Server's.
func (s *Server) Serve(l net.Listener) error {
	return s.Server.Serve(jsonListener{l, &s.unheard, &s.crowd})
}

// Shutdown is http.Server's, but lets connections that are there already have an answer to
// their first request, as long as ctx lasts: http.Server closes those of which it has not
// read one when it begins.
func (s *Server) Shutdown(ctx context.Context) error {
	const pause = 2 * time.Millisecond
	for s.unheard.Load() > 0 && ctx.Err() == nil {
		time.Sleep(pause)
	}
	return s.Server.Shutdown(ctx)
}

// NewServer makes a Server for the handler.
func NewServer(h *Handler, logger *slog.Logger) *Server {
	return &Server{Server: http.Server{
		Handler:           h,
		ConnContext:       connContext,
		ConnState:         connState,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
		// "OPTIONS *" is a path like any other, which is not there.
		DisableGeneralOptionsHandler: true,
	}}
}
