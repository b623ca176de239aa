package ring

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Reader merges the packets of its NFLOG groups into one stream in time order. Next,
// SetDeadline and Drain belong to one goroutine, which holds its OS thread; Wake and Stats
// may be called from any.
//
// Order: Next takes the earliest of the packets that are at hand, and hands it over only
// when everything that the Stamped groups without one have logged before it must be here:
// OrderBound plus the kernel's flush timeout after its stamp at the latest. So packets
// come in the order of their timestamps, except that one whose way from its receive stamp
// to the log rule took longer than OrderBound may come late, that packets of one group
// stay in the order in which the kernel logged them (CPUs that share a group log within
// the time of such a way of each other), and that nothing waits once the ring is full
// (Stats.Hurried). A step of the wall clock can misplace packets around it, but holds none
// back: what was read a flush timeout and OrderBound ago goes on by the monotonic clock,
// and what others keep overtaking after a second. A Reader with a single Stamped group
// never waits for it.
type Reader struct {
	groups []group
	limit  int // bytes of a packet that the kernel copies
	memory *Memory
	arena  arena
	log    *slog.Logger
	flags  uint16 // NFULA_CFG_FLAGS of all groups

	// The merge.
	run     *group // the group that Next goes on with, not in the heap
	until   int64  // while its packets are not later than this
	heap    heap
	horizon instant // of the Stamped groups that have no packet at hand, the least
	started int     // slots begun since the sockets were last read
	full    bool    // the last read found no room
	urgent  *group

	// Waiting.
	clock    func() instant
	sleep    func(all bool, wait int64) error
	fds      []unix.PollFd // the event, then the groups' sockets
	timespec unix.Timespec
	word     [8]byte
	base     time.Time // where the monotonic clock starts
	deadline int64     // on the monotonic clock
	burst    int       // datagrams since the last wait
	arrived  int       // datagrams since measured
	measured int64     // monotonic time
	crowd    bool      // they come fast
	nap      int64     // how long to sleep when busy

	draining bool
	failed   error

	woken   atomic.Bool
	hurried atomic.Uint64
	rounds  atomic.Uint64
	waits   atomic.Uint64
	held    atomic.Int64

	mu     sync.Mutex // guards event against Wake after Close
	event  event
	isOpen bool
}

const (
	// perRound is how many datagrams are read from a socket before packets are handed over:
	// what stays in a CPU's second-level cache.
	perRound = 4
	never    = math.MaxInt64
	// napLongest is how long a busy reader sleeps between two looks at its sockets, so that
	// it is not woken for every datagram.
	napLongest  = int64(5 * time.Millisecond)
	napShortest = int64(50 * time.Microsecond)
	// napFrom is the rate in datagrams/s at which sleeping pays.
	napFrom = 250
	// napFull is how many datagrams a sleep should gather at most.
	napFull = 16
)

// Open binds free NFLOG groups in the calling thread's network namespace and makes them
// ready: when it returns, the ring's memory is there and every packet that a rule logs to
// the groups is counted. It needs CAP_NET_ADMIN; reading does not, but without it batches
// are no longer adapted to the traffic.
func Open(c Config) (*Reader, error) {
	if c.Stamped < 0 || c.Clocked < 0 || c.Stamped > MaxGroups || c.Clocked > MaxGroups || c.Stamped+c.Clocked == 0 {
		return nil, fmt.Errorf("ring: %d stamped and %d clocked groups: 0 to %d of each are possible, and at least one", c.Stamped, c.Clocked, MaxGroups)
	}
	if c.ReceiveBuffer <= 0 {
		c.ReceiveBuffer = defaultReceiveBuffer
	}
	memory, err := Alloc(max(c.Memory, MinMemory))
	if err != nil {
		return nil, fmt.Errorf("ring: %w", err)
	}
	r := newReader(c, memory)
	r.event, err = openEvent()
	if err == nil {
		r.fds = append(r.fds, unix.PollFd{Fd: int32(r.event.fd), Events: unix.POLLIN})
		err = r.bind(c)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("ring: %w", err), r.Close())
	}
	r.clock, r.sleep = r.clocks, r.poll
	return r, nil
}

// newReader makes a Reader without the kernel's part.
func newReader(c Config, memory *Memory) *Reader {
	r := &Reader{
		memory: memory, arena: newArena(memory.Bytes()), log: c.Logger, base: time.Now(),
		deadline: never, horizon: forever, nap: napLongest, isOpen: true, event: event{-1},
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	r.limit = maxCopy
	if c.CopyRange > 0 && c.CopyRange < maxCopy {
		r.limit = int(c.CopyRange)
	}
	if r.flags = flagSeq; c.Conntrack {
		r.flags |= flagConntrack
	}
	var prefix []byte
	if c.Prefix != "" {
		prefix = append([]byte(c.Prefix), 0)
	}
	r.groups = make([]group, c.Stamped+c.Clocked)
	for i := range r.groups {
		g := &r.groups[i]
		g.index, g.first, g.last = i, -1, -1
		n := c.Stamped
		if g.CPU = i; i >= c.Stamped {
			g.Class, g.CPU, n = Clocked, i-c.Stamped, c.Clocked
		}
		if n == 1 {
			g.CPU = -1
		}
		g.decoder.prefix, g.decoder.limit = prefix, r.limit
		g.tuning.begin(g.Class, r.limit)
	}
	r.heap = make(heap, 0, len(r.groups))
	for i := range r.groups {
		r.silent(&r.groups[i])
	}
	return r
}

// receiveBuffer is the part of ReceiveBuffer that a group of the class gets. Where there
// are both classes, three quarters go to the Stamped groups: what a router forwards comes
// in there, what it says itself is in the Clocked ones.
func (c *Config) receiveBuffer(class Class) int {
	switch {
	case c.Stamped == 0 || c.Clocked == 0:
		return c.ReceiveBuffer / (c.Stamped + c.Clocked)
	case class == Stamped:
		return c.ReceiveBuffer / 4 * 3 / c.Stamped
	}
	return c.ReceiveBuffer / 4 / c.Clocked
}

// firstNumber is the lowest group number that is tried: those below are what people give
// to other tools by hand.
const firstNumber = 1000

// bind opens a socket for each group and binds it to a free number.
func (r *Reader) bind(c Config) error {
	number := firstNumber + rand.N(1<<16-firstNumber)
	for i := range r.groups {
		g := &r.groups[i]
		var err error
		var link *netlinkConn
		if link, g.socket.receiveBuffer, err = openConn(c.receiveBuffer(g.Class)); err != nil {
			return err
		}
		g.socket.conn = link
		r.fds = append(r.fds, unix.PollFd{Fd: int32(link.fd), Events: unix.POLLIN})
		other := func(datagram []byte) { r.strange(g, datagram) }
		timeout := uint32(stampedTicks)
		if g.Class == Clocked {
			timeout = clockedTicks
		}
		const tries = 200
		for try := 1; ; try++ {
			g.Number = uint16(number)
			if number++; number == 1<<16 {
				number = firstNumber
			}
			taken, err := g.socket.setUp(g.Number, uint32(r.limit), timeout, &r.flags, r.arena.area[:window], other)
			if err == nil {
				break
			}
			if !taken || try == tries {
				return err
			}
		}
		if err := g.tuning.apply(g, true); err != nil {
			return err
		}
	}
	return nil
}

// Conntrack tells whether packets bring what connection tracking knows of them, where it
// has seen them before the log rule.
func (r *Reader) Conntrack() bool { return r.flags&flagConntrack != 0 }

// strange counts what comes before any rule of ours can have sent it.
func (r *Reader) strange(g *group, datagram []byte) {
	for len(datagram) > 0 {
		kind, _, body, rest, ok := cutMessage(datagram)
		datagram = rest
		if !ok {
			g.account.settle(malformed, numbered{})
		} else if kind == ulogPacket {
			_, v, n := g.decoder.decode(body, 0)
			if v == good {
				v = foreign
			}
			g.account.settle(v, n)
		}
	}
	g.dirty = true
}

// Groups are the groups that were bound: first the Stamped ones in the order of their
// CPUs, then the Clocked ones.
func (r *Reader) Groups() []Group {
	out := make([]Group, len(r.groups))
	for i := range r.groups {
		out[i] = r.groups[i].Group
	}
	return out
}

// clocks reads both clocks.
func (r *Reader) clocks() instant {
	now := time.Now()
	return instant{int64(now.Sub(r.base)), now.UnixNano()}
}

// read sees to interruptions, then does one pass over the sockets, of all groups or of
// those that have nothing at hand. It gives the number of datagrams.
func (r *Reader) read(all bool) (int, error) {
	if r.failed != nil {
		return 0, r.failed
	}
	if r.woken.Load() {
		r.woken.Store(false)
		return 0, ErrWoken
	}
	now := r.clock()
	if now.monotonic >= r.deadline {
		return 0, os.ErrDeadlineExceeded
	}
	r.started, r.full = 0, false
	got := 0
	for i := range r.groups {
		g := &r.groups[i]
		if !all && g.first >= 0 {
			continue
		}
		n, err := r.fill(g, &now)
		if err != nil {
			r.failed = fmt.Errorf("ring: group %d: %w", g.Number, err)
			return got, r.failed
		}
		got += n
	}
	r.horizon = forever
	for i := range r.groups {
		g := &r.groups[i]
		if g.first < 0 {
			r.silent(g)
		}
		g.publish()
	}
	r.tune(now.monotonic)
	r.burst += got
	r.held.Store(int64(r.arena.held))
	r.rounds.Store(r.rounds.Load() + 1)
	if r.arena.used > 0 {
		if s := &r.arena.slots[r.arena.first]; now.monotonic-s.received > int64(overdue) {
			r.urgent = r.owner(int32(r.arena.first))
		}
	}
	return got, nil
}

// fill reads from one socket into the ring. It keeps now up to date.
func (r *Reader) fill(g *group, now *instant) (int, error) {
	if g.state == closed {
		return 0, nil
	}
	for n := 0; n < perRound; {
		room := r.arena.room()
		if room == nil {
			r.full = true
			return n, nil
		}
		length, kernel, ok, err := g.socket.conn.receive(room)
		if err != nil {
			return n, err
		}
		if !ok {
			return n, r.dry(g, *now)
		}
		*now = r.clock()
		if r.store(g, length, kernel, *now) {
			n++
		}
	}
	if r.draining && g.state == bound && g.unbind.since > drainAtMost*g.socket.receiveBuffer {
		return perRound, r.sendUnbind(g, now.monotonic)
	}
	return perRound, nil
}

// store takes a datagram that was read into the ring's room. It tells whether it may hold
// packets.
func (r *Reader) store(g *group, length int, kernel bool, now instant) bool {
	g.dirty = true
	if length > window {
		g.account.cut++
		length = window
	}
	if length < nlmsgHeader || !kernel {
		g.account.garbage++
		return false
	}
	room := r.arena.room()
	if seq, errno, ok := answer(room[:length]); ok {
		r.answered(g, seq, errno)
		return false
	}
	g.account.datagrams++
	g.account.bytes += uint64(length)
	g.tuning.arrived += length
	g.unbind.since += length
	i := r.arena.commit(length)
	s := &r.arena.slots[i]
	s.received, s.clock = now.monotonic, now.wall
	if g.last >= 0 {
		r.arena.slots[g.last].next = i
		g.last = i
		return true
	}
	g.first, g.last = i, i
	r.start(g)
	r.advance(g)
	return true
}

// dry notes that a socket had nothing more at the time now.
func (r *Reader) dry(g *group, now instant) error {
	// Leaving the prompt mode takes nothing back of what was known before.
	h := now.before(g.tuning.lag(now.monotonic))
	g.horizon = instant{max(g.horizon.monotonic, h.monotonic), h.wall}
	if r.draining {
		return r.leave(g, now.monotonic)
	}
	return nil
}

// Stats gives the account. Any goroutine may call it, also after Close.
func (r *Reader) Stats() Stats {
	s := Stats{
		Groups: make([]GroupStats, len(r.groups)), Held: int(r.held.Load()), Memory: len(r.arena.area),
		Hurried: r.hurried.Load(), Rounds: r.rounds.Load(), Waits: r.waits.Load(),
	}
	for i := range r.groups {
		s.Groups[i] = r.groups[i].stats()
	}
	return s
}

// Close gives groups, sockets and memory back. Next must not be running, nor a packet of
// it be in use. A second call does nothing.
func (r *Reader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.isOpen {
		return nil
	}
	r.isOpen = false
	r.failed = ErrClosed
	r.run, r.heap, r.started = nil, r.heap[:0], perRound
	var errs []error
	for i := range r.groups {
		if c := r.groups[i].socket.conn; c != nil {
			errs = append(errs, c.close())
		}
	}
	if r.event.fd >= 0 {
		r.event.close()
	}
	r.memory.Free()
	return errors.Join(errs...)
}
