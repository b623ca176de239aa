package ring

import (
	"fmt"
	"math"
	"time"
)

// wait sleeps until something can have changed.
func (r *Reader) wait() error {
	now := r.clock()
	until := min(r.deadline, r.wakeup(now.monotonic))
	busy := r.busy(now.monotonic)
	if busy {
		until = min(until, now.monotonic+r.nap)
	} else if len(r.heap) > 0 {
		until = min(until, r.release(now))
	}
	r.burst = 0
	r.waits.Store(r.waits.Load() + 1)
	wait := int64(time.Hour)
	if until != never {
		wait = max(0, min(wait, until-now.monotonic))
	}
	if err := r.sleep(!busy, wait); err != nil {
		r.failed = fmt.Errorf("ring: %w", err)
		return r.failed
	}
	return nil
}

// release is when the earliest packet, which is held back, can go on at the latest: when
// the silent groups can be trusted to have nothing before it. See ready.
func (r *Reader) release(now instant) int64 {
	lag := int64(0)
	for i := range r.groups {
		if g := &r.groups[i]; g.Class == Stamped && g.first < 0 && g.state != closed {
			lag = max(lag, g.tuning.lag(now.monotonic))
		}
	}
	e := r.heap[0]
	byStamp := now.monotonic + max(0, e.time-now.wall+lag)
	return min(byStamp, r.arena.slots[e.g.first].received+lag)
}

// poll waits for at most wait nanoseconds: for Wake and datagrams, or without all only
// for Wake and for the groups whose packets' timestamps depend on it.
func (r *Reader) poll(all bool, wait int64) error {
	for i := range r.groups {
		fd := &r.fds[1+i].Fd
		t := &r.groups[i].tuning
		if listen := all || t.class == Clocked; listen != (*fd >= 0) {
			*fd = ^*fd // a negative descriptor is ignored
		}
	}
	r.fds[0].Revents = 0
	err := poll(r.fds, wait, &r.timespec, all)
	if r.fds[0].Revents != 0 {
		r.event.clear(&r.word)
	}
	return err
}

// busy tells whether datagrams come so fast that sleeping for a short while is better
// than being woken by each. It sets how long to sleep.
func (r *Reader) busy(now int64) bool {
	r.arrived += r.burst
	if length := now - r.measured; length >= int64(10*time.Millisecond) {
		r.crowd = int64(r.arrived)*int64(time.Second)/length >= napFrom
		r.measured, r.arrived = now, 0
	}
	if !r.crowd {
		return false
	}
	// What comes during a sleep should be worth waking up for, and must not fill the
	// receive buffers by more than a quarter.
	const datagram = 68 << 10
	least := math.MaxInt
	for i := range r.groups {
		least = min(least, r.groups[i].socket.receiveBuffer)
	}
	switch {
	case r.burst > napFull || r.burst*datagram > least/4:
		r.nap = max(napShortest, r.nap/2)
	case r.burst < napFull/2 && r.burst*datagram < least/16:
		r.nap *= 2
	}
	r.nap = min(r.nap, napLongest)
	return true
}

// SetDeadline makes Next return os.ErrDeadlineExceeded from t on; the zero Time means
// never. It goes by the monotonic clock.
func (r *Reader) SetDeadline(t time.Time) {
	if t.IsZero() {
		r.deadline = never
		return
	}
	r.deadline = int64(t.Sub(r.base))
}

// Wake makes Next return ErrWoken, once, soon. Any goroutine may call it.
func (r *Reader) Wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.isOpen {
		r.woken.Store(true)
		r.event.set()
	}
}
