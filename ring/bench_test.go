package ring

import (
	"errors"
	"fmt"
	"testing"

	"capd/ring/pcapng"
)

var frameSizes = []struct{ frame, batch int }{{60, 300}, {1400, 40}}

func BenchmarkDecode(b *testing.B) {
	for _, s := range frameSizes {
		b.Run(fmt.Sprint(s.frame), func(b *testing.B) {
			header, packet := synthUDP(s.frame)
			m := synth{time: fakeEpoch, in: 7, hwHeader: header, payload: packet}.message()
			d := decoder{prefix: append([]byte(testPrefix), 0), limit: maxCopy}
			b.ReportAllocs()
			for b.Loop() {
				_, _, body, _, _ := cutMessage(m)
				if _, v, _ := d.decode(body, 1); v != good {
					b.Fatal(v)
				}
			}
		})
	}
}

// loopConn gives the same batch over and over, with sequence numbers that go on.
type loopConn struct {
	fakeConn
	batch []byte
	at    []int // where the sequence numbers stand
	seq   uint32
	left  int
}

func newLoopConn(n, frame int) *loopConn {
	c := &loopConn{batch: synthBatch(n, 0, fakeEpoch, frame)}
	for rest := c.batch; len(rest) > 0; {
		kind, _, body, after, ok := cutMessage(rest)
		if ok && kind == ulogPacket {
			start := len(c.batch) - len(rest) + nlmsgHeader + nfgenHeader
			for a := body[nfgenHeader:]; len(a) >= attrHeader; {
				if host.Uint16(a[2:]) == attrSeq {
					c.at = append(c.at, start+attrHeader)
				}
				n := (int(host.Uint16(a)) + 3) &^ 3
				start += n
				a = a[min(n, len(a)):]
			}
		}
		rest = after
	}
	return c
}

func (c *loopConn) receive(b []byte) (int, bool, bool, error) {
	if c.left == 0 {
		return 0, false, false, nil
	}
	c.left--
	for _, at := range c.at {
		be.PutUint32(c.batch[at:], c.seq)
		c.seq++
	}
	return copy(b, c.batch), true, true, nil
}

func loopReader(t testing.TB, stamped, n, frame int) (*Reader, []*loopConn) {
	r, _, _ := newFake(t, Config{Stamped: stamped, Memory: 4 << 20})
	conns := make([]*loopConn, stamped)
	for i := range conns {
		conns[i] = newLoopConn(n, frame)
		r.groups[i].socket.conn = conns[i]
	}
	return r, conns
}

func BenchmarkNext(b *testing.B) {
	for _, groups := range []int{1, 2, 8} {
		for _, s := range frameSizes {
			b.Run(fmt.Sprintf("groups=%d/%d", groups, s.frame), func(b *testing.B) {
				r, conns := loopReader(b, groups, s.batch, s.frame)
				for _, c := range conns {
					c.left = b.N/s.batch/groups + 1
				}
				b.ReportAllocs()
				b.ResetTimer()
				for range b.N {
					if _, err := r.Next(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkPath is a packet's whole way: Next, Frame, block.
func BenchmarkPath(b *testing.B) {
	for _, s := range frameSizes {
		b.Run(fmt.Sprint(s.frame), func(b *testing.B) {
			r, conns := loopReader(b, 1, s.batch, s.frame)
			conns[0].left = b.N/s.batch + 1
			w := newPathWriter(b)
			b.ReportAllocs()
			b.SetBytes(int64(s.frame))
			b.ResetTimer()
			for range b.N {
				if err := w.step(r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// pathWriter does with packets what the daemon does, but throws the blocks away.
type pathWriter struct {
	e       pcapng.Packet
	scratch [MaxHead]byte
	block   []byte
	fill    int
}

func newPathWriter(t testing.TB) *pathWriter {
	m, err := Alloc(4 << 20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Free)
	return &pathWriter{block: m.Bytes()}
}

func (w *pathWriter) step(r *Reader) error {
	p, err := r.Next()
	if err != nil {
		return err
	}
	head, body, original, ok := p.Frame(LinkSLL2, &w.scratch)
	if !ok {
		return errors.New("no frame")
	}
	e := &w.e
	e.Time, e.Head, e.Body, e.Original, e.Flags, e.Dropped = p.Time, head, body, original, uint32(p.Direction()), p.Dropped
	size := w.e.Size()
	if w.fill+size > len(w.block) {
		w.fill = 0
	}
	w.fill += w.e.Put(w.block[w.fill:])
	return nil
}

// TestNoAllocations runs the whole loop: reading, decoding, merging, tuning, encoding.
func TestNoAllocations(t *testing.T) {
	for _, groups := range []int{1, 3} {
		r, conns := loopReader(t, groups, 50, 60)
		for _, c := range conns {
			c.left = 1 << 30
		}
		w := newPathWriter(t)
		allocs := testing.AllocsPerRun(100, func() {
			for range 1000 {
				if err := w.step(r); err != nil {
					t.Fatal(err)
				}
			}
		})
		if allocs != 0 {
			t.Errorf("%d groups: %v allocations for 1000 packets", groups, allocs)
		}
	}
}
