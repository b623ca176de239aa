// Package sftp delivers files to an SSH server through its SFTP subsystem.
package sftp

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"net/url"
	"path"
	"sync"
	"time"

	"github.com/pkg/sftp"

	"capd/ctl/wire"
	"capd/daemon/deliver"
)

// Store is one SFTP destination. Each Put has a connection of its own, so that ending
// one never ends another; a connection that has done its work is kept for a while.
type Store struct {
	p    deliver.Profile
	env  deliver.Env
	log  *slog.Logger
	up   *deliver.Pace
	down *deliver.Pace

	mu      sync.Mutex
	closed  bool
	idle    []*session
	open    map[*session]bool
	live    map[string]bool // temporary names in use
	swept   map[string]bool // folder and tag: no leftovers there that we know of
	folders map[string]bool // known to be there
}

var _ deliver.Store = (*Store)(nil)

// Open makes a Store (deliver.OpenFunc). It does not connect, and reads keys and
// passwords anew for each connection.
func Open(p deliver.Profile, env deliver.Env) (deliver.Store, error) {
	env.Timeouts = env.Timeouts.WithDefaults()
	return &Store{
		p: p, env: env, log: env.Logger, up: deliver.NewPace(p.Bandwidth), down: deliver.NewPace(p.Bandwidth),
		open: map[*session]bool{}, live: map[string]bool{}, swept: map[string]bool{}, folders: map[string]bool{},
	}, nil
}

// Close ends every connection and waits for their ends.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	sessions := make([]*session, 0, len(s.open))
	for c := range s.open {
		sessions = append(sessions, c)
	}
	s.mu.Unlock()
	for _, c := range sessions {
		s.drop(c)
	}
	return nil
}

// How long things last.
const (
	idleTime    = 20 * time.Second // a connection without work
	cancelGrace = 4 * time.Second  // a canceled Put, to clear its temporary file away
	maxFolders  = 4096             // remembered; more only costs questions
)

// session gives a connection that is nobody else's: one that was kept, else a new one.
func (s *Store) session(ctx context.Context) (c *session, kept bool, err error) {
	s.mu.Lock()
	for len(s.idle) > 0 && c == nil {
		last := s.idle[len(s.idle)-1]
		s.idle = s.idle[:len(s.idle)-1]
		if last.expiry.Stop() {
			c = last
		}
	}
	s.mu.Unlock()
	if c != nil {
		return c, true, nil
	}
	c, err = s.connect(ctx, nil)
	if err != nil {
		return nil, false, err
	}
	return c, false, s.adopt(c)
}

// adopt notes an open connection, so that Close finds it.
func (s *Store) adopt(c *session) error {
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.open[c] = true
	}
	s.mu.Unlock()
	if closed {
		c.close()
		return deliver.Fail(deliver.ReasonCanceled, nil, "the destination was closed")
	}
	return nil
}

// keep puts a healthy connection aside.
func (s *Store) keep(c *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return // Close has ended it
	}
	c.expiry = time.AfterFunc(idleTime, func() { s.drop(c) })
	s.idle = append(s.idle, c)
}

// drop ends a connection.
func (s *Store) drop(c *session) {
	s.mu.Lock()
	delete(s.open, c)
	for i, other := range s.idle {
		if other == c {
			s.idle = append(s.idle[:i], s.idle[i+1:]...)
			break
		}
	}
	s.mu.Unlock()
	c.close()
}

// Put implements deliver.Store.
func (s *Store) Put(ctx context.Context, o deliver.Object) (deliver.Result, error) {
	if s.p.Verify == deliver.VerifyChecksum {
		return deliver.Result{}, errNoChecksum()
	}
	for {
		c, kept, err := s.session(ctx)
		if err != nil {
			return deliver.Result{}, deliver.Classify(ctx, err, "connect to %s", s.p.Address)
		}
		result, err := s.putOn(ctx, c, o)
		if err == nil {
			s.keep(c)
			return result, nil
		}
		s.drop(c)
		failure := deliver.Classify(ctx, err, "deliver %s to %s", o.Path, s.p.Address)
		if kept && failure.Reason == deliver.ReasonCut {
			continue // the server closed what we had kept: each turn uses up one of those
		}
		return deliver.Result{}, failure
	}
}

// putOn delivers over one connection. An error leaves the connection unusable.
func (s *Store) putOn(ctx context.Context, c *session, o deliver.Object) (deliver.Result, error) {
	ctx, watch := deliver.NewWatch(ctx, s.env.Timeouts.Progress)
	defer watch.Stop()
	watch.Follow(c.conn)
	defer c.endWith(ctx)()
	p := &putting{s: s, c: c, o: o, watch: watch, final: c.absolute(o.Path)}
	p.folder = path.Dir(p.final)
	result, err := p.run(ctx)
	if err != nil {
		return deliver.Result{}, p.classify(ctx, err)
	}
	return result, nil
}

// result is the proof of a delivery that was read back.
func (s *Store) result(o deliver.Object, final string, there bool) deliver.Result {
	u := url.URL{Scheme: "sftp", User: url.User(s.p.User), Host: s.p.Address, Path: final}
	return deliver.Result{URL: u.String(), Name: final, Bytes: o.Size, SHA256: hex.EncodeToString(o.SHA256[:]),
		Verified: wire.VerifiedReadback, AlreadyThere: there}
}

// errNoChecksum: the SFTP of OpenSSH and of most servers has no way to ask for a
// checksum (draft-ietf-secsh-filexfer-extensions-00 has check-file, which no version 3
// server of note offers).
func errNoChecksum() *deliver.Error {
	return deliver.Fail(deliver.ReasonUnsupported, nil, `verify = "checksum": the server offers no checksum over SFTP that capd knows`).
		WithHint(`write verify = "readback" or leave it out`)
}

// session is one SSH connection with its SFTP channel.
type session struct {
	conn   net.Conn
	stream *stream // around conn
	ssh    interface{ Close() error }
	wait   func() error
	sftp   *sftp.Client
	home   string // where relative paths begin
	server string // the server's version string
	expiry *time.Timer
	once   sync.Once
}

// absolute gives a path from the root on.
func (c *session) absolute(p string) string {
	if path.IsAbs(p) {
		return path.Clean(p)
	}
	return path.Join(c.home, p)
}

func (c *session) offers(extension string) bool {
	_, ok := c.sftp.HasExtension(extension)
	return ok
}

// close ends the connection and waits until its goroutines have ended.
func (c *session) close() {
	c.once.Do(func() { c.ssh.Close() })
	_ = c.sftp.Wait() // both end with the connection, and say nothing new
	_ = c.wait()
}

// endWith closes the connection when ctx ends: at once when nothing moves any more, else
// after a moment in which a temporary file can be cleared away. The function returned
// ends the care.
func (c *session) endWith(ctx context.Context) func() {
	var mu sync.Mutex
	var late *time.Timer
	end := func() { c.once.Do(func() { c.ssh.Close() }) }
	stop := context.AfterFunc(ctx, func() {
		if errors.Is(context.Cause(ctx), deliver.ErrStalled) {
			end()
			return
		}
		mu.Lock()
		defer mu.Unlock()
		late = time.AfterFunc(cancelGrace, end)
	})
	return func() {
		stop()
		mu.Lock()
		defer mu.Unlock()
		if late != nil {
			late.Stop()
		}
	}
}

// random is the part of a temporary name that no other try has.
func random() string {
	b := make([]byte, 6)
	rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}
