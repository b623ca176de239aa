package deliver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"sync"
	"time"
)

// Watch ends a context with ErrStalled when nothing moves for too long. What moves is
// what its user tells it (Touch), and what TCP does on a connection that it follows: a
// slow link may take minutes over what was handed to the kernel in a moment.
type Watch struct {
	cancel context.CancelCauseFunc

	mu    sync.Mutex
	limit time.Duration
	timer *time.Timer
	conn  *announcedConn // nil: none is followed
	moved uint64         // on conn, when it was looked at last
}

// NewWatch gives a context that ends when nothing moves for as long as limit, twice that
// at most. Stop it when the work is done.
func NewWatch(ctx context.Context, limit time.Duration) (context.Context, *Watch) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &Watch{cancel: cancel, limit: limit}
	w.timer = time.AfterFunc(limit, w.look)
	return ctx, w
}

// look ends the context, unless bytes were sent and acknowledged, or came, since the last
// look.
func (w *Watch) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conn != nil {
		if moved := w.conn.moved(); moved != w.moved {
			w.moved = moved
			w.timer.Reset(w.limit)
			return
		}
	}
	w.cancel(ErrStalled)
}

// Follow makes a connection of the Dialer, or what is built on one, count as moving for
// as long as its bytes do. Others are not followed.
func (w *Watch) Follow(conn net.Conn) {
	for {
		if ours, ok := conn.(*announcedConn); ok {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.conn, w.moved = ours, ours.moved()
			return
		}
		inner, ok := conn.(interface{ NetConn() net.Conn }) // *tls.Conn
		if !ok {
			return
		}
		conn = inner.NetConn()
	}
}

// Touch says that something moved.
func (w *Watch) Touch() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Reset(w.limit)
}

// Expect changes the limit, from now on.
func (w *Watch) Expect(limit time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.limit = limit
	if w.conn != nil {
		w.moved = w.conn.moved()
	}
	w.timer.Reset(limit)
}

// Stop ends the watch and its context.
func (w *Watch) Stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Stop()
	w.cancel(context.Canceled)
}

// Pace is a token bucket: it bounds the bytes per second of all transfers that share
// it. The nil Pace lets everything through.
type Pace struct {
	rate float64 // bytes per second

	mu   sync.Mutex
	free time.Time // when the next byte may go
}

// NewPace makes a bucket for so many bytes per second; nil for 0.
func NewPace(bytesPerSecond int64) *Pace {
	if bytesPerSecond <= 0 {
		return nil
	}
	return &Pace{rate: float64(bytesPerSecond)}
}

// burst is how far a Pace that was idle may run ahead.
const burst = 100 * time.Millisecond

// Quantum is how many of n bytes to move at once, at least 1.
func (p *Pace) Quantum(n int) int {
	if p == nil {
		return n
	}
	return max(1, min(n, int(p.rate/4)))
}

// Wait takes n bytes out of the bucket and waits until they may go.
func (p *Pace) Wait(ctx context.Context, n int) error {
	if p == nil || n <= 0 {
		return nil
	}
	p.mu.Lock()
	now := time.Now()
	if earliest := now.Add(-burst); p.free.Before(earliest) {
		p.free = earliest
	}
	p.free = p.free.Add(time.Duration(float64(n) / p.rate * float64(time.Second)))
	wait := p.free.Sub(now)
	p.mu.Unlock()
	if wait <= 0 {
		return nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Source reads an object to be sent: paced, hashed, watched, and ended by its context.
// It is an io.Reader and nothing more, so that nobody rewinds it.
type Source struct {
	ctx   context.Context
	o     Object
	pace  *Pace
	watch *Watch
	off   int64
	sum   hash.Hash // nil: not hashed
}

// NewSource reads o from its beginning. pace and watch may be nil.
func NewSource(ctx context.Context, o Object, pace *Pace, watch *Watch) *Source {
	return &Source{ctx: ctx, o: o, pace: pace, watch: watch, sum: sha256.New()}
}

// NewUnhashedSource is NewSource for a server that itself compares what it gets with
// o.SHA256 before it takes it. It has no Whole.
func NewUnhashedSource(ctx context.Context, o Object, pace *Pace, watch *Watch) io.Reader {
	return &Source{ctx: ctx, o: o, pace: pace, watch: watch}
}

// Read implements io.Reader.
func (s *Source) Read(b []byte) (int, error) {
	if s.off >= s.o.Size {
		return 0, io.EOF
	}
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	b = b[:min(int64(s.pace.Quantum(len(b))), s.o.Size-s.off)]
	if err := s.pace.Wait(s.ctx, len(b)); err != nil {
		return 0, err
	}
	n, err := s.o.Body.ReadAt(b, s.off)
	if n < len(b) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, Fail(ReasonLocal, err, "the file here cannot be read at byte %d", s.off+int64(n))
	}
	if s.sum != nil {
		s.sum.Write(b)
	}
	s.off += int64(n)
	if s.watch != nil {
		s.watch.Touch()
	}
	if s.o.Sent != nil {
		s.o.Sent(int64(n))
	}
	return n, nil
}

// Whole says whether all of the object was read and was what it should be, and gives its
// SHA-256.
func (s *Source) Whole() ([32]byte, error) {
	if s.off != s.o.Size {
		return [32]byte{}, Fail(ReasonUnknown, nil, "only %d of %d bytes were sent", s.off, s.o.Size)
	}
	sum := [32]byte(s.sum.Sum(nil))
	if s.o.SHA256 != [32]byte{} && sum != s.o.SHA256 {
		return [32]byte{}, changed(s.o)
	}
	return sum, nil
}

func changed(o Object) *Error {
	return Fail(ReasonLocal, nil, "the file here is not what it was when it was closed (SHA-256 %x is expected)", o.SHA256).
		WithHint("check this box's disk and memory (dmesg); the file is kept here")
}

// ErrMore ends a reading back that gives more than was sent: a server can go on for ever.
var ErrMore = errors.New("more came back than was sent")

// Sink hashes what comes back, paced and watched.
type Sink struct {
	ctx   context.Context
	most  int64 // bytes
	pace  *Pace
	watch *Watch
	sum   hash.Hash
	n     int64
}

// NewSink makes a Sink for the bytes of o. pace and watch may be nil.
func NewSink(ctx context.Context, o Object, pace *Pace, watch *Watch) *Sink {
	return &Sink{ctx: ctx, most: o.Size, pace: pace, watch: watch, sum: sha256.New()}
}

// Write implements io.Writer. What is beyond the object's size is counted and not taken:
// ErrMore.
func (s *Sink) Write(b []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	if s.n+int64(len(b)) > s.most {
		s.n += int64(len(b))
		return 0, ErrMore
	}
	for rest := b; len(rest) > 0; {
		part := rest[:s.pace.Quantum(len(rest))]
		if err := s.pace.Wait(s.ctx, len(part)); err != nil {
			return len(b) - len(rest), err
		}
		s.sum.Write(part)
		if s.watch != nil {
			s.watch.Touch()
		}
		rest = rest[len(part):]
	}
	s.n += int64(len(b))
	return len(b), nil
}

// Bytes is how many bytes came back, as far as they were read.
func (s *Sink) Bytes() int64 { return s.n }

// Is says whether what came back is the object, whose SHA-256 must be known.
func (s *Sink) Is(o Object) bool { return s.n == o.Size && [32]byte(s.sum.Sum(nil)) == o.SHA256 }

// Sum is the SHA-256 of what came back, in hexadecimal.
func (s *Sink) Sum() string { return hex.EncodeToString(s.sum.Sum(nil)) }

// Learn fills in the SHA-256, where it is not known yet, by reading all of the object: for
// a comparison with what is at a destination already. What is sent needs it not, see
// Source.Whole.
func (o *Object) Learn(ctx context.Context, watch *Watch) error {
	if o.SHA256 != [32]byte{} {
		return nil
	}
	silent := *o
	silent.Sent = nil
	src := NewSource(ctx, silent, nil, watch)
	if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{src}, make([]byte, 256<<10)); err != nil {
		return err
	}
	sum, err := src.Whole()
	o.SHA256 = sum
	return err
}

// parseSHA256 reads 64 hexadecimal digits.
func parseSHA256(s string) ([32]byte, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 32 {
		return [32]byte{}, fmt.Errorf("%q is not a SHA-256", s)
	}
	return [32]byte(b), nil
}
