package deliver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"reflect"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"capd/ctl/wire"
)

// ServeOptions are what Serve needs.
type ServeOptions struct {
	Kinds    map[string]OpenFunc // by a profile's Type
	Timeouts Timeouts            // zero: the defaults
	Logger   *slog.Logger
}

// progressEvery is how often the parent is told how far a transfer is.
const progressEvery = 500 * time.Millisecond

// maxRequests bounds what a parent may have under way at once.
const maxRequests = 256

// Serve is the child's side: it takes requests from the socket, which it closes, and
// carries them out, several at once, until the parent closes its end (then it returns
// nil) or ctx is canceled. It returns when every goroutine has ended.
func Serve(ctx context.Context, conn *os.File, o ServeOptions) error {
	sock, err := newSocket(conn)
	if err != nil {
		return err
	}
	return serve(ctx, sock, o)
}

// serve is Serve on a socket that is open already.
func serve(ctx context.Context, sock *socket, o ServeOptions) error {
	defer sock.conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &server{o: o, log: o.Logger, socket: sock, timeouts: o.Timeouts.WithDefaults(),
		requests: map[uint64]context.CancelFunc{}, flows: map[uint64]chan message{}, stores: map[string]*openStore{}}
	// A blocked read is ended with a deadline in the past.
	defer context.AfterFunc(ctx, func() { sock.conn.SetReadDeadline(time.Unix(1, 0)) })()
	err := s.read(ctx)
	cancel()
	s.wg.Wait()
	s.closeStores()
	if ctxErr := context.Cause(ctx); ctxErr != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// server is one Serve.
type server struct {
	o        ServeOptions
	log      *slog.Logger
	socket   *socket
	timeouts Timeouts
	wg       sync.WaitGroup

	mu       sync.Mutex
	requests map[uint64]context.CancelFunc
	flows    map[uint64]chan message // connections waiting for leave
	nextFlow uint64
	stores   map[string]*openStore // by destination
}

// openStore is a Store and the profile that it was made of.
type openStore struct {
	profile Profile
	store   Store
	users   int
	stale   bool // replaced by another profile: closed by its last user
}

func (s *server) read(ctx context.Context) error {
	buf := make([]byte, maxMessage)
	for {
		m, f, err := s.socket.receive(buf)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), errors.Is(err, syscall.ECONNRESET):
			return nil
		case err != nil:
			return fmt.Errorf("read a request: %w", err)
		}
		if err := s.take(ctx, m, f); err != nil {
			return err
		}
	}
}

// take begins what a message asks for. It owns f.
func (s *server) take(ctx context.Context, m message, f *os.File) error {
	refuse := func(format string, args ...any) error {
		if f != nil {
			f.Close()
		}
		return fmt.Errorf(format, args...)
	}
	switch m.Kind {
	case kindPut, kindCheck, kindChallenge:
		if m.Profile == nil || (m.Kind == kindPut) != (m.Put != nil && f != nil) || (m.Kind == kindChallenge) != (m.File != nil) {
			return refuse("request %d (%s) lacks a part", m.ID, m.Kind)
		}
		s.begin(ctx, m, f)
		return nil
	case kindCancel:
		s.mu.Lock()
		cancel := s.requests[m.ID]
		s.mu.Unlock()
		if cancel != nil {
			cancel()
		}
	case kindFlowAnswer:
		s.mu.Lock()
		waiting := s.flows[m.ID]
		delete(s.flows, m.ID)
		s.mu.Unlock()
		if waiting != nil {
			waiting <- m // has room for one
		}
	default:
		return refuse("a request of unknown kind %q", m.Kind)
	}
	if f != nil {
		return refuse("a %s message came with a file", m.Kind)
	}
	return nil
}

// begin carries a request out on a goroutine of its own.
func (s *server) begin(ctx context.Context, m message, f *os.File) {
	ctx, cancel := context.WithCancel(ctx)
	s.mu.Lock()
	full := len(s.requests) >= maxRequests
	if !full {
		s.requests[m.ID] = cancel
	}
	s.mu.Unlock()
	s.wg.Go(func() {
		defer cancel()
		if f != nil {
			defer f.Close()
		}
		answer := message{Kind: kindAnswer, ID: m.ID}
		switch {
		case full:
			answer.Err = Fail(ReasonProcess, nil, "the delivery process has too much to do")
		case m.Kind == kindPut:
			result, err := s.put(ctx, m, f)
			if err != nil {
				answer.Err = Classify(ctx, err, "deliver %s", m.Put.Path)
			} else {
				answer.Result = &result
			}
		case m.Kind == kindChallenge:
			answer.File, answer.Err = s.challenge(ctx, *m.Profile, *m.File)
		default:
			check := s.check(ctx, *m.Profile)
			answer.Check = &check
		}
		if !full {
			s.mu.Lock()
			delete(s.requests, m.ID)
			s.mu.Unlock()
		}
		if err := s.socket.send(answer, nil); err != nil && ctx.Err() == nil {
			s.log.Error("answer a request", "err", err)
		}
	})
}

func (s *server) put(ctx context.Context, m message, f *os.File) (Result, error) {
	info, err := f.Stat()
	if err != nil {
		return Result{}, Fail(ReasonLocal, err, "look at the file")
	}
	if !info.Mode().IsRegular() || info.Size() < m.Put.Size || m.Put.Size < 0 || m.Put.Size > maxSize {
		return Result{}, Fail(ReasonLocal, nil, "the file here has %d bytes, %d are to be delivered", info.Size(), m.Put.Size)
	}
	o := Object{Path: m.Put.Path, Tag: m.Put.Tag, Body: f, Size: m.Put.Size}
	if m.Put.SHA256 != "" {
		o.SHA256, err = parseSHA256(m.Put.SHA256)
		if err != nil {
			return Result{}, Fail(ReasonLocal, err, "deliver %s", o.Path)
		}
	}
	st, release, err := s.store(*m.Profile)
	if err != nil {
		return Result{}, err
	}
	defer release()
	var total atomic.Int64
	var told time.Time
	o.Sent = func(n int64) {
		sum := total.Add(n)
		if now := time.Now(); now.Sub(told) >= progressEvery {
			told = now
			s.socket.tell(message{Kind: kindProgress, ID: m.ID, Bytes: sum})
		}
	}
	return st.Put(ctx, o)
}

func (s *server) check(ctx context.Context, p Profile) wire.Check {
	st, release, err := s.store(p)
	if err != nil {
		var steps Steps
		return steps.Fail(StepProfile, Classify(ctx, err, "destination %s", p.Name))
	}
	defer release()
	return st.Check(ctx)
}

// challenge does what is asked about a challenge file. The answer is never nil without an
// error.
func (s *server) challenge(ctx context.Context, p Profile, c challenge) (*challenge, *Error) {
	st, release, err := s.store(p)
	if err == nil {
		defer release()
		switch c.Do {
		case challengeWrite:
			err = st.WriteChallenge(ctx, c.Path, c.Contents)
			c.Contents = nil
		case challengeRead:
			c.Contents, err = st.ReadChallenge(ctx, c.Path)
		case challengeRemove:
			err = st.RemoveChallenge(ctx, c.Path)
		default:
			err = Fail(ReasonProcess, nil, "the delivery process does not know %q", c.Do)
		}
	}
	if err != nil {
		return nil, Classify(ctx, err, "challenge file %s", c.Path)
	}
	return &c, nil
}

// store gives the Store of a profile, opening it, or opening it anew when the profile
// has changed. release must be called when the work with it is over.
func (s *server) store(p Profile) (Store, func(), error) {
	if err := p.Validate(); err != nil {
		return nil, nil, Fail(ReasonProfile, err, "destination %s cannot be used", p.Name)
	}
	p = p.WithDefaults()
	s.mu.Lock()
	defer s.mu.Unlock()
	have := s.stores[p.Name]
	if have == nil || !reflect.DeepEqual(have.profile, p) {
		open, ok := s.o.Kinds[p.Type]
		if !ok {
			return nil, nil, Fail(ReasonProfile, nil, "destination %s: there is no type %q", p.Name, p.Type)
		}
		dialer := NewDialer(p, s.timeouts, func(ctx context.Context, f Flow) (func(), error) { return s.announce(ctx, p.Name, f) })
		st, err := open(p, Env{Dialer: dialer, Timeouts: s.timeouts, Logger: s.log.With("destination", p.Name)})
		if err != nil {
			return nil, nil, err
		}
		if have != nil {
			have.stale = true
			if have.users == 0 {
				s.shut(have)
			}
		}
		have = &openStore{profile: p, store: st}
		s.stores[p.Name] = have
	}
	have.users++
	return have.store, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if have.users--; have.users == 0 && have.stale {
			s.shut(have)
		}
	}, nil
}

func (s *server) shut(o *openStore) {
	if err := o.store.Close(); err != nil {
		s.log.Warn("close destination", "destination", o.profile.Name, "err", err)
	}
}

func (s *server) closeStores() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.stores {
		s.shut(o)
	}
	clear(s.stores)
}

// announce asks the parent for leave to connect.
func (s *server) announce(ctx context.Context, destination string, f Flow) (func(), error) {
	answers := make(chan message, 1)
	s.mu.Lock()
	s.nextFlow++
	id := s.nextFlow
	s.flows[id] = answers
	s.mu.Unlock()
	forget := func() {
		s.mu.Lock()
		delete(s.flows, id)
		s.mu.Unlock()
	}
	if err := s.socket.send(message{Kind: kindFlow, ID: id, Flow: &messageFlow{Destination: destination, Flow: f}}, nil); err != nil {
		forget()
		return nil, Fail(ReasonProcess, err, "announce the connection")
	}
	release := func() { s.socket.tell(message{Kind: kindFlowClosed, ID: id}) } // a parent that is gone has released it
	select {
	case m := <-answers:
		if m.Err != nil {
			release()
			return nil, m.Err
		}
		return release, nil
	case <-ctx.Done():
		forget()
		release()
		return nil, Fail(ReasonCanceled, context.Cause(ctx), "announce the connection")
	}
}
