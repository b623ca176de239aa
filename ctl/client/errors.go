package client

import (
	"context"
	"errors"
	"io/fs"
	"net/url"
	"path"
	"strings"
	"syscall"

	"capd/ctl/wire"
)

// ErrUnreachable is what every *UnreachableError is.
var ErrUnreachable = errors.New("capd cannot be reached")

// UnreachableError says that capd did not answer, and what to do about it.
type UnreachableError struct {
	Where string // the socket's path; "" where Client.Dial made the connection
	Err   error  // the cause, with its errno where there is one
	What  string // the cause in words
	Hint  string // the mend
}

// Error implements error.
func (e *UnreachableError) Error() string {
	text := ErrUnreachable.Error()
	if strings.HasPrefix(e.What, text) {
		return e.What // the capctl on another box has said it
	}
	if e.Where != "" {
		text += " at " + e.Where
	}
	if e.What != "" {
		text += ": " + e.What
	}
	return text
}

// Unwrap gives the cause.
func (e *UnreachableError) Unwrap() error { return e.Err }

// Is reports whether target is ErrUnreachable.
func (e *UnreachableError) Is(target error) bool { return target == ErrUnreachable }

// where names the other side in messages.
func (c *Client) where() string {
	if c.Dial != nil {
		return "the remote capd"
	}
	return c.socket()
}

// dialError turns the failure to connect into one with a mend. Connecting to a Unix
// socket fails as connect(2) and unix(7) say.
func (c *Client) dialError(err error) error {
	e := &UnreachableError{Err: err, What: err.Error()}
	if c.Dial != nil {
		return e
	}
	e.Where = c.socket()
	unit := unitOf(e.Where)
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, fs.ErrNotExist):
		e.What = "there is no such socket"
		e.Hint = "is capd running? systemctl status " + unit + " (or --socket PATH, CAPD_SOCKET, where it listens elsewhere)"
	case errors.Is(err, syscall.ECONNREFUSED):
		e.What = "nothing listens there (connection refused)"
		e.Hint = "capd has ended or was killed: systemctl status " + unit + ", then systemctl restart " + unit
	case errors.Is(err, fs.ErrPermission):
		e.What = "permission denied"
		e.Hint = "the socket and every directory above it must be open to you (a default capd lets every user connect): ls -ld " + e.Where
	case errors.Is(err, syscall.ENOTSOCK), errors.Is(err, syscall.EPROTOTYPE), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EINVAL):
		e.What = "not a socket that capd listens on"
		e.Hint = "give the path of capd's socket with --socket or CAPD_SOCKET"
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, context.DeadlineExceeded):
		e.What = "it does not take connections"
		e.Hint = "capd hangs or is overrun: journalctl -u " + unit + ", then systemctl restart " + unit
	}
	return e
}

// unitOf names the service that listens at a socket: capd, or capd@NAME for a network
// namespace's.
func unitOf(socket string) string {
	name := path.Base(path.Dir(socket))
	if socket == wire.NetnsSocket(name) {
		return "capd@" + name
	}
	return "capd"
}

// transportError sorts what http.Client returns: the caller's own context, a failure to
// connect (already in words), or a connection that ended before the answer.
func (c *Client) transportError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var unreachable *UnreachableError
	if errors.As(err, &unreachable) {
		return unreachable
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	e := &UnreachableError{
		Err:  err,
		What: "the connection ended before the answer (" + err.Error() + ")",
		Hint: "capd may have restarted, or cannot start: systemctl status capd, journalctl -u capd; what it was doing shows in: capctl list",
	}
	if c.Dial == nil {
		e.Where = c.socket()
	}
	return e
}
