package deliver

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"slices"
	"time"
)

// Backoff between tries.
const (
	backoffMin = time.Second
	backoffMax = 5 * time.Minute
)

// backoff gives the pause after so many failures in a row (1 or more): doubling, give or
// take a quarter, so that many boxes do not knock at the same moment.
func backoff(failures int) time.Duration {
	pause := backoffMax
	if n := failures - 1; n < 16 {
		pause = min(backoffMin<<n, backoffMax)
	}
	pause += time.Duration((rand.Float64() - 0.5) * 0.5 * float64(pause))
	return min(max(pause, backoffMin), backoffMax)
}

// place is one destination.
type place struct {
	name     string
	entries  []*entry // in the order of Enqueue
	sending  int
	failures int       // of the destination as a whole, in a row
	hold     time.Time // nothing starts before
	timer    *time.Timer
}

// entry is a job in the queue. It is waiting, failed, or busy (in the hands of one
// goroutine, which alone calls Changed).
type entry struct {
	Job
	place     *place
	attempts  int
	failures  int // of this job itself, in a row
	next      time.Time
	failed    bool // for good
	busy      bool
	again     bool               // Retry came while busy
	forgotten bool               // Forget came while busy
	cancel    context.CancelFunc // of the try under way
	idle      chan struct{}      // closed when no longer busy; made by Forget
}

func (e *entry) tell(u Update) {
	if e.Changed != nil {
		e.Changed(u)
	}
}

// schedule starts what may start at a destination, and sets its timer for what may start
// later. The queue is locked.
func (q *Queue) schedule(p *place) {
	if q.closed {
		return
	}
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
	now := time.Now()
	if p.hold.After(now) {
		q.wake(p, p.hold)
		return
	}
	var earliest time.Time
	for _, e := range p.entries {
		if p.sending >= q.concurrency(p) {
			return // the end of a try schedules again
		}
		switch {
		case e.busy || e.failed:
		case e.next.After(now):
			if earliest.IsZero() || e.next.Before(earliest) {
				earliest = e.next
			}
		default:
			q.start(e)
		}
	}
	if !earliest.IsZero() {
		q.wake(p, earliest)
	}
}

// concurrency is how many tries a destination may have now.
func (q *Queue) concurrency(p *place) int {
	if p.failures > 0 {
		return 1 // one asks whether it is well again
	}
	if q.o.Concurrency != nil {
		if n := q.o.Concurrency(p.name); n > 0 {
			return n
		}
	}
	return DefaultConcurrency
}

func (q *Queue) wake(p *place, at time.Time) {
	p.timer = time.AfterFunc(time.Until(at), func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.schedule(p)
	})
}

// start begins a try on a goroutine of its own.
func (q *Queue) start(e *entry) {
	ctx, cancel := context.WithCancel(q.ctx)
	e.busy, e.cancel = true, cancel
	e.attempts++
	e.place.sending++
	q.wg.Go(func() {
		defer cancel()
		q.try(ctx, e)
	})
}

// try makes one try and settles what follows from it.
func (q *Queue) try(ctx context.Context, e *entry) {
	e.tell(Update{State: StateSending, Attempts: e.attempts})
	result, err := q.send(ctx, e)

	q.mu.Lock()
	p := e.place
	p.sending--
	e.cancel = nil
	var update Update
	var fellow []*entry
	if err == nil {
		p.failures, p.hold = 0, time.Time{}
		update = Update{State: StateDelivered, Result: result}
		q.remove(e)
	} else {
		update, fellow = q.settle(e, err)
	}
	forgotten := e.forgotten
	q.mu.Unlock()

	update.Attempts = e.attempts
	if !forgotten {
		e.tell(update)
	}
	for _, other := range fellow {
		other.tell(Update{State: StateFailed, Attempts: other.attempts, Err: err})
	}

	q.mu.Lock()
	defer q.mu.Unlock()
	for _, done := range append(fellow, e) {
		q.release(done)
	}
	q.schedule(p)
}

// send opens the file and hands it over.
func (q *Queue) send(ctx context.Context, e *entry) (Result, *Error) {
	f, err := e.Open()
	if err != nil {
		if ctx.Err() == nil && errors.Is(err, fs.ErrNotExist) {
			return Result{}, Fail(ReasonLocal, nil, "the file is not on this box any more")
		}
		return Result{}, Fail(ReasonLocal, err, "open the file")
	}
	defer f.Close()
	result, err := q.put.Put(ctx, e.Put, f)
	if err != nil {
		return Result{}, Classify(ctx, err, "deliver")
	}
	return result, nil
}

// settle decides what a failed try means for the job, and for those behind it: fellow
// are jobs that fail with it, taken in hand. The queue is locked.
func (q *Queue) settle(e *entry, err *Error) (update Update, fellow []*entry) {
	p, now := e.place, time.Now()
	switch {
	case err.Permanent:
		e.failed = true
		if err.Wide {
			// The others would only knock with the same wrong key, a hundred times.
			for _, other := range p.entries {
				if !other.busy && !other.failed {
					other.failed, other.busy = true, true
					fellow = append(fellow, other)
				}
			}
		}
		return Update{State: StateFailed, Err: err}, fellow
	case err.Wide:
		if !p.hold.After(now) {
			p.failures++
			p.hold = now.Add(backoff(p.failures))
		}
		e.next = p.hold
	default:
		e.failures++
		e.next = now.Add(backoff(e.failures))
	}
	return Update{State: StateWaiting, Err: err, Next: e.next}, nil
}

// release gives a job out of hand. The queue is locked.
func (q *Queue) release(e *entry) {
	e.busy = false
	if e.forgotten {
		q.remove(e)
	} else if e.again {
		q.ready(e)
	}
	if e.idle != nil {
		close(e.idle)
		e.idle = nil
	}
}

// remove takes a job out. The queue is locked.
func (q *Queue) remove(e *entry) {
	if q.jobs[e.Key] == e {
		delete(q.jobs, e.Key)
	}
	p := e.place
	p.entries = slices.DeleteFunc(p.entries, func(other *entry) bool { return other == e })
	if len(p.entries) == 0 && p.sending == 0 && p.failures == 0 && q.places[p.name] == p {
		if p.timer != nil {
			p.timer.Stop()
		}
		delete(q.places, p.name)
	}
}
