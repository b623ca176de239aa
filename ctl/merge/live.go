package merge

import (
	"bufio"
	"container/heap"
	"crypto/sha256"
	"io"
	"sync"
	"time"

	"capd/ring/pcapng"
)

// LiveInput is a pcapng stream that comes as it happens.
type LiveInput struct {
	Host string // the box's name where the stream does not say
	R    io.ReadCloser
}

// How long a packet waits for older ones of other boxes, and how many may wait.
const (
	liveHold    = 500 * time.Millisecond
	livePackets = 50_000
)

// arrived is a packet, or the end of an input.
type arrived struct {
	packet
	at    time.Time
	input int
	ended *source // not nil: the input has ended
	carry [][]byte
}

// Live merges streams as they come, until all have ended. A packet waits until every
// input has one, at most half a second: clocks and connections that differ by less come
// out in order. What is written is whole blocks, passed on as soon as nothing more is to
// be written. When w fails the inputs are closed, and that error is returned; faults of
// inputs are in the result. about, which may be nil, is asked at the first packet of a
// host's interface what its comment should say of the host.
func Live(w io.Writer, section pcapng.Section, inputs []LiveInput, about func(host string) string) (Result, error) {
	m := &Merger{about: about, ids: map[described]uint32{}, carried: map[[sha256.Size]byte]bool{}, w: bufio.NewWriterSize(w, 256<<10)}
	come := make(chan arrived, 1024)
	gone := make(chan struct{})
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer close(gone)
	defer func() {
		for _, in := range inputs {
			in.R.Close()
		}
	}()
	for n, in := range inputs {
		m.result.Hosts = append(m.result.Hosts, in.Host)
		tasks.Go(func() { readLive(n, in, come, gone) })
	}
	l := live{merger: m, waiting: make([]int, len(inputs)), ended: make([]bool, len(inputs)), left: len(inputs)}
	if err := m.put(section.Append(nil)); err != nil {
		return m.result, err
	}
	for l.left > 0 || len(l.queue) > 0 {
		if err := l.emit(time.Now()); err != nil {
			return m.result, err
		}
		var due <-chan time.Time
		if len(l.queue) > 0 {
			due = time.After(time.Until(l.queue[0].at.Add(liveHold)))
		}
		select {
		case a := <-come:
			if err := l.take(a); err != nil {
				return m.result, err
			}
			continue
		default:
		}
		if l.left == 0 && len(l.queue) == 0 {
			break
		}
		if err := m.w.Flush(); err != nil { // nothing more now
			return m.result, err
		}
		select {
		case a := <-come:
			if err := l.take(a); err != nil {
				return m.result, err
			}
		case <-due:
		}
	}
	return m.finish()
}

// readLive hands on the packets of one input.
func readLive(n int, in LiveInput, come chan<- arrived, gone <-chan struct{}) {
	s := &source{in: &Input{Name: in.Host, Fallback: in.Host}, stats: map[pcapng.Interface]pcapng.Statistics{}, left: map[string]uint64{}}
	s.next = s.reading(pcapng.NewReader(in.R))
	for {
		isPacket, err := s.next()
		a := arrived{input: n, at: time.Now()}
		switch {
		case err != nil:
			s.err, a.ended = err, s
		case !isPacket:
			continue
		default:
			a.packet = s.p
			a.host, a.order = s.host(), s.read
			a.Body = append([]byte(nil), a.Body...)
			s.read++
			a.carry, s.blocks = s.blocks, nil
		}
		select {
		case come <- a:
		case <-gone:
			return
		}
		if err != nil {
			return
		}
	}
}

// live holds the packets that wait.
type live struct {
	merger  *Merger
	queue   arrivals
	waiting []int // packets of each input
	ended   []bool
	left    int // inputs that have not ended
}

func (l *live) take(a arrived) error {
	if a.ended != nil {
		l.left--
		l.ended[a.input] = true
		return l.merger.end(a.ended)
	}
	if err := l.merger.carry(a.carry); err != nil {
		return err
	}
	l.waiting[a.input]++
	heap.Push(&l.queue, a)
	return nil
}

// emit writes every packet whose turn has come.
func (l *live) emit(now time.Time) error {
	for len(l.queue) > 0 {
		first := l.queue[0]
		have := 0
		for i, n := range l.waiting {
			if n > 0 && !l.ended[i] {
				have++
			}
		}
		if have < l.left && len(l.queue) < livePackets && now.Sub(first.at) < liveHold {
			return nil
		}
		heap.Pop(&l.queue)
		l.waiting[first.input]--
		if err := l.merger.write(first.packet); err != nil {
			return err
		}
	}
	return nil
}

// arrivals is a heap of packets by time.
type arrivals []arrived

func (q arrivals) Len() int { return len(q) }
func (q arrivals) Less(i, j int) bool {
	a, b := &q[i], &q[j]
	if a.Time != b.Time {
		return a.Time < b.Time
	}
	return a.input < b.input || a.input == b.input && a.order < b.order
}
func (q arrivals) Swap(i, j int) { q[i], q[j] = q[j], q[i] }

// Push implements heap.Interface.
func (q *arrivals) Push(x any) { *q = append(*q, x.(arrived)) }

// Pop implements heap.Interface.
func (q *arrivals) Pop() any {
	n := len(*q) - 1
	a := (*q)[n]
	(*q)[n] = arrived{}
	*q = (*q)[:n]
	return a
}
