package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Putter is what the queue needs of a Client.
type Putter interface {
	Put(ctx context.Context, p Put, f *os.File) (Result, error)
}

var _ Putter = (*Client)(nil)

// Job is one file to be delivered.
type Job struct {
	Key      string                   // unique among the queue's jobs
	Put      Put                      // what, under which values, to which destination
	Open     func() (*os.File, error) // for each try; the queue closes it
	Attempts int                      // tries made before, in an earlier life of the daemon
	// Changed is told of each step, in order, never two at once for one job. It must not
	// call the queue's Close or Forget.
	Changed func(Update)
}

// State is where a job stands.
type State string

// States of a job.
const (
	StateSending   State = "sending"   // a try began
	StateWaiting   State = "waiting"   // a try failed, the next is at Update.Next
	StateDelivered State = "delivered" // the end: the queue has forgotten the job
	StateFailed    State = "failed"    // failed for good; only Retry tries again
)

// Update is what Job.Changed is told.
type Update struct {
	State    State
	Attempts int       // tries begun so far, earlier lives included
	Result   Result    // only for StateDelivered
	Err      *Error    // for StateWaiting and StateFailed
	Next     time.Time // only for StateWaiting
}

// QueueOptions are what a Queue needs.
type QueueOptions struct {
	// Concurrency is how many files may be under way to a destination at once. It is
	// asked before each start, so that a reload counts. nil or a result below 1:
	// DefaultConcurrency.
	Concurrency func(destination string) int
	Logger      *slog.Logger
}

// Queue delivers jobs: to each destination a few at once, oldest first, again after a
// failure that may pass. A destination that fails as a whole is tried with one job at a
// time, and holds up no other. The queue keeps nothing on disk: after a restart the
// daemon enqueues what its records say is undelivered.
type Queue struct {
	put    Putter
	o      QueueOptions
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	closed bool
	jobs   map[string]*entry
	places map[string]*place
}

// NewQueue makes a queue. Close ends it.
func NewQueue(put Putter, o QueueOptions) *Queue {
	ctx, cancel := context.WithCancel(context.Background())
	return &Queue{put: put, o: o, log: o.Logger, ctx: ctx, cancel: cancel, jobs: map[string]*entry{}, places: map[string]*place{}}
}

// Enqueue adds a job. Its key must not be in the queue.
func (q *Queue) Enqueue(j Job) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return errors.New("the delivery queue is closed")
	}
	if q.jobs[j.Key] != nil {
		return fmt.Errorf("the delivery of %s is queued already", j.Key)
	}
	p := q.places[j.Put.Destination]
	if p == nil {
		p = &place{name: j.Put.Destination}
		q.places[p.name] = p
	}
	e := &entry{Job: j, place: p, attempts: j.Attempts}
	q.jobs[j.Key] = e
	p.entries = append(p.entries, e)
	q.schedule(p)
	return nil
}

// Retry tries a job now that waits or has failed for good, and the destination with it.
// A job under way gets one more try at once if it fails. It tells whether there is such
// a job.
func (q *Queue) Retry(key string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	e := q.jobs[key]
	if e == nil {
		return false
	}
	if e.busy {
		e.again = true
		return true
	}
	q.ready(e)
	q.schedule(e.place)
	return true
}

// ready makes a job one that may start now.
func (q *Queue) ready(e *entry) {
	e.failed, e.again, e.failures, e.next = false, false, 0, time.Time{}
	e.place.hold = time.Time{}
}

// Forget takes a job out of the queue. One that is under way is ended first: when Forget
// returns nil its file is not in use, and Changed is not called any more. The error is
// ctx's. A key that is not there is no mistake.
func (q *Queue) Forget(ctx context.Context, key string) error {
	q.mu.Lock()
	e := q.jobs[key]
	if e == nil {
		q.mu.Unlock()
		return nil
	}
	e.forgotten = true
	if !e.busy {
		q.remove(e)
		q.mu.Unlock()
		return nil
	}
	if e.cancel != nil {
		e.cancel()
	}
	if e.idle == nil {
		e.idle = make(chan struct{})
	}
	idle := e.idle
	q.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Close ends every try and waits for them. Jobs that were under way are told of a
// failure that may pass.
func (q *Queue) Close() {
	q.mu.Lock()
	q.closed = true
	for _, p := range q.places {
		if p.timer != nil {
			p.timer.Stop()
		}
	}
	q.mu.Unlock()
	q.cancel()
	q.wg.Wait()
}
