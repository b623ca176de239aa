package deliver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"capd/ctl/wire"
)

// Options are what a Client needs.
type Options struct {
	// Socket is the path at which a delivery process with a unit and a user of its own
	// listens (ServePeers); "" = Command starts one.
	Socket string
	// Command starts the delivery process; its end of the socket is descriptor
	// ChildDescriptor. It must call Confine and Serve.
	Command []string
	// Profiles gives a destination's profile as it is in force now. It is asked for each
	// request and what it gives travels with it, so that the delivery process reads no
	// configuration and a reload that was refused cannot reach it.
	Profiles func(name string) (Profile, error)
	// Flow is told of each connection before it is made, and the connection waits until
	// it returns; release is called when the connection is over or its process has died.
	// nil: connections are made unasked. It may be called from several goroutines.
	Flow func(ctx context.Context, destination string, f Flow) (release func(), err error)
	// Stderr takes what the delivery process logs; nil: os.Stderr.
	Stderr io.Writer
	Logger *slog.Logger
}

// ChildDescriptor is the number of the socket in the delivery process.
const ChildDescriptor = 3

// Put is one file for one destination.
type Put struct {
	Destination string
	Vars        Vars
	Size        int64             // bytes; at most maxSize
	SHA256      string            // of those bytes, hexadecimal, where it is known; a file that differs is refused
	Sent        func(total int64) // told of progress now and then; must not block; may be nil
}

// How long a Client waits.
const (
	startWait  = 10 * time.Second // a request, for a process that is being restarted
	cancelWait = 10 * time.Second // a canceled request, for its answer
	closeWait  = 10 * time.Second // Close, for the process to end by itself
)

// Client is the parent's side: it keeps one delivery process running, or a connection to
// one, and hands requests to it. It opens no internet socket. Its methods may be called from several goroutines.
type Client struct {
	o      Options
	log    *slog.Logger
	cancel context.CancelFunc
	done   chan struct{} // closed when every goroutine has ended

	nextID atomic.Uint64
	mu     sync.Mutex
	link   *link         // nil while no process runs
	up     chan struct{} // closed and replaced when link becomes non-nil
	last   error         // why the process is not there
	closed bool
}

// Start starts the delivery process and keeps it running until Close, or until ctx is
// canceled. It does not wait for the process to be ready.
func Start(ctx context.Context, o Options) *Client {
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	ctx, cancel := context.WithCancel(ctx)
	c := &Client{o: o, log: o.Logger, cancel: cancel, done: make(chan struct{}), up: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.supervise(ctx)
	}()
	return c
}

// Close ends the delivery process, first gently, and waits for it and for every
// goroutine. Requests under way fail with an error that is worth a retry.
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	<-c.done
}

// PID is the delivery process's id, 0 while none runs. Of one behind Options.Socket it is
// the id of whoever listened there first: systemd's, where that has made the socket.
func (c *Client) PID() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link == nil {
		return 0
	}
	return c.link.pid
}

// Put delivers the file's first p.Size bytes and gives the proof. f must be open for
// reading; it is not closed, its offset is not moved, and it may be closed when Put
// returns. Errors are *Error.
func (c *Client) Put(ctx context.Context, p Put, f *os.File) (Result, error) {
	profile, err := c.profile(p.Destination)
	if err != nil {
		return Result{}, err
	}
	path, err := Expand(profile.Path, p.Vars)
	if err != nil {
		return Result{}, Fail(ReasonProfile, err, "destination %s: path", p.Destination)
	}
	if p.Size < 0 || p.Size > maxSize {
		return Result{}, Fail(ReasonTooLarge, nil, "a file of %s is more than one upload takes (%s)", wire.About(p.Size), wire.About(int64(maxSize)))
	}
	request := message{Kind: kindPut, Profile: &profile, Put: &putRequest{Path: path, Tag: tagOf(p.Vars.ID), Size: p.Size, SHA256: p.SHA256}}
	answer, err := c.call(ctx, request, f, p.Sent)
	if err != nil {
		return Result{}, err
	}
	if answer.Result == nil {
		return Result{}, Fail(ReasonProcess, nil, "the delivery process gave no result")
	}
	return *answer.Result, nil
}

// Check goes through the steps of a delivery to a destination. A step that fails is no
// error: see wire.Check. Errors are *Error.
func (c *Client) Check(ctx context.Context, destination string) (wire.Check, error) {
	profile, err := c.profile(destination)
	if err != nil {
		return wire.Check{}, err
	}
	answer, err := c.call(ctx, message{Kind: kindCheck, Profile: &profile}, nil, nil)
	if err != nil {
		return wire.Check{}, err
	}
	if answer.Check == nil {
		return wire.Check{}, Fail(ReasonProcess, nil, "the delivery process gave no result")
	}
	return *answer.Check, nil
}

// Challenge writes a challenge file into a destination's fixed folder (FixedFolder of its
// path), reads it back, and leaves it there: whoever can tell what it holds may look into
// the place. name is one plain name, contents at most MaxChallenge bytes. Errors are *Error.
func (c *Client) Challenge(ctx context.Context, destination, name string, contents []byte) error {
	if len(contents) == 0 || len(contents) > MaxChallenge {
		return Fail(ReasonTooLarge, nil, "a challenge of %d bytes: 1 to %d are possible", len(contents), MaxChallenge)
	}
	_, err := c.challenge(ctx, destination, name, challenge{Do: challengeWrite, Contents: contents})
	return err
}

// ReadChallenge gives what a challenge file holds now. Errors are *Error; one that is not
// there is ReasonMissing.
func (c *Client) ReadChallenge(ctx context.Context, destination, name string) ([]byte, error) {
	return c.challenge(ctx, destination, name, challenge{Do: challengeRead})
}

// RemoveChallenge deletes a challenge file. One that is not there is no error. Errors are
// *Error.
func (c *Client) RemoveChallenge(ctx context.Context, destination, name string) error {
	_, err := c.challenge(ctx, destination, name, challenge{Do: challengeRemove})
	return err
}

func (c *Client) challenge(ctx context.Context, destination, name string, ch challenge) ([]byte, error) {
	profile, err := c.profile(destination)
	if err != nil {
		return nil, err
	}
	if safe(name) != name {
		return nil, Fail(ReasonProfile, nil, "%q is no name for a challenge file: one plain name of at most %d bytes is wanted", name, maxValue)
	}
	ch.Path = FixedFolder(profile.Path) + name
	answer, err := c.call(ctx, message{Kind: kindChallenge, Profile: &profile, File: &ch}, nil, nil)
	if err != nil {
		return nil, err
	}
	if answer.File == nil {
		return nil, Fail(ReasonProcess, nil, "the delivery process gave no result")
	}
	return answer.File.Contents, nil
}

func (c *Client) profile(name string) (Profile, error) {
	p, err := c.o.Profiles(name)
	if err == nil {
		err = p.Validate()
	}
	if err != nil {
		return Profile{}, Fail(ReasonProfile, err, "destination %s cannot be used", name)
	}
	return p.WithDefaults(), nil
}

// tagOf shortens a capture's id for the names of temporary files.
func tagOf(id string) string {
	id = safe(id)
	return id[:min(len(id), 12)]
}

// call sends one request and waits for its answer.
func (c *Client) call(ctx context.Context, m message, f *os.File, sent func(int64)) (message, error) {
	l, err := c.running(ctx)
	if err != nil {
		return message{}, err
	}
	m.ID = c.nextID.Add(1)
	answers := l.register(m.ID, sent)
	if answers == nil {
		return message{}, processGone(l.failure())
	}
	defer l.forget(m.ID)
	if err := l.socket.send(m, f); err != nil {
		var unsupported *json.UnsupportedValueError
		if errors.As(err, &unsupported) {
			return message{}, Fail(ReasonLocal, err, "send the request")
		}
		return message{}, processGone(err)
	}
	select {
	case answer := <-answers:
		return settle(answer)
	case <-ctx.Done():
	}
	canceled := Fail(ReasonCanceled, context.Cause(ctx), "the delivery was ended")
	if err := l.socket.send(message{Kind: kindCancel, ID: m.ID}, nil); err != nil {
		return message{}, canceled
	}
	// The file is in use, and a temporary name is being cleared away, until the answer
	// comes. It may still be a success.
	wait := time.NewTimer(cancelWait)
	defer wait.Stop()
	select {
	case answer := <-answers:
		if answer.Err == nil {
			return answer, nil
		}
	case <-wait.C:
	}
	return message{}, canceled
}

func settle(answer message) (message, error) {
	if answer.Err != nil {
		return message{}, answer.Err
	}
	return answer, nil
}

func processGone(cause error) *Error {
	return Fail(ReasonProcess, cause, "the delivery process ended").WithHint("it is restarted, and the delivery is tried again; see the journal")
}

// running gives the link to the process, waiting a while for one that is on its way.
func (c *Client) running(ctx context.Context) (*link, error) {
	wait := time.NewTimer(startWait)
	defer wait.Stop()
	for {
		c.mu.Lock()
		l, up, last, closed := c.link, c.up, c.last, c.closed
		c.mu.Unlock()
		switch {
		case closed:
			return nil, Fail(ReasonCanceled, nil, "capd is stopping")
		case l != nil:
			return l, nil
		}
		select {
		case <-up:
		case <-c.done:
			return nil, Fail(ReasonCanceled, nil, "capd is stopping")
		case <-ctx.Done():
			return nil, Fail(ReasonCanceled, context.Cause(ctx), "the delivery was ended")
		case <-wait.C:
			return nil, processGone(last)
		}
	}
}

// setLink publishes the link to a new process, or nil and why the old one is gone.
func (c *Client) setLink(l *link, last error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.link, c.last = l, last
	if l != nil {
		close(c.up)
		c.up = make(chan struct{})
	}
}

// link is the connection to one delivery process, and the requests that it has.
type link struct {
	pid    int
	socket *socket

	mu    sync.Mutex
	calls map[uint64]*call // nil when the process is gone
	err   error
}

type call struct {
	answers chan message // takes one without blocking
	sent    func(int64)
}

// register gives the channel on which the request's one answer will come, nil when the
// process is gone already.
func (l *link) register(id uint64, sent func(int64)) <-chan message {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.calls == nil {
		return nil
	}
	c := &call{answers: make(chan message, 1), sent: sent}
	l.calls[id] = c
	return c.answers
}

func (l *link) forget(id uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.calls, id)
}

func (l *link) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// answer hands a message to the call it belongs to; one that is gone is no mistake.
func (l *link) answer(m message) {
	l.mu.Lock()
	c := l.calls[m.ID]
	l.mu.Unlock()
	switch {
	case c == nil:
	case m.Kind == kindProgress && c.sent != nil:
		c.sent(m.Bytes)
	case m.Kind == kindAnswer:
		select {
		case c.answers <- m:
		default: // a second answer
		}
	}
}

// fail answers every request with the end of the process.
func (l *link) fail(err error) {
	l.mu.Lock()
	calls := l.calls
	l.calls, l.err = nil, err
	l.mu.Unlock()
	for _, c := range calls {
		select {
		case c.answers <- message{Kind: kindAnswer, Err: processGone(err)}:
		default:
		}
	}
}

var errBadMessage = errors.New("the delivery process sent a message that makes no sense")

func badMessage(m message) error { return fmt.Errorf("%w: %q", errBadMessage, m.Kind) }
