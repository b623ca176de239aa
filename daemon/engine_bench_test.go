package daemon

import (
	"fmt"
	"io"
	"testing"
	"time"

	"capd/ctl/wire"
	"capd/daemon/config"
	"capd/daemon/spool"
	"capd/ring"
)

// sameSource gives the same few packets over and over, without copying them.
type sameSource struct {
	packets []ring.Packet
	left    int
}

func (s *sameSource) Next() (*ring.Packet, error) {
	if s.left == 0 {
		return nil, io.EOF
	}
	s.left--
	return &s.packets[s.left%len(s.packets)], nil
}

func (s *sameSource) SetDeadline(time.Time) {}
func (s *sameSource) Wake()                 {}
func (s *sameSource) Drain()                {}

// BenchmarkEngine is what the engine does with a packet, the reader and the disk left out.
func BenchmarkEngine(b *testing.B) {
	for _, size := range []int{46, 1386} {
		for name, r := range map[string]wire.StartRequest{"plain": {}, "headers": {HeadersOnly: true}, "filter": {Filter: "ip[2:2] & 1 = ip[4:2] & 1"}} {
			b.Run(fmt.Sprint(size, "/", name), func(b *testing.B) {
				cfg := config.Default()
				limit, segment := wire.Size(1<<60), wire.Size(1e9)
				r.ByteLimit, r.SegmentSize = &limit, &segment
				cfg.Limits.MaxByteLimit = limit
				p, err := newPlan(r, cfg, &links{})
				if err != nil {
					b.Fatal(err)
				}
				d := &Daemon{kernel: "Linux test", version: "test", host: "box"}
				d.links.known = map[uint32]link{1: {"eth0", 1}}
				memory, err := ring.Alloc(32 << 20)
				if err != nil {
					b.Fatal(err)
				}
				defer memory.Free()
				out, err := spool.NewWriter(spool.Options{
					Segment: (*sealing)(nil).segments(p.request.Format), Memory: memory.Bytes(), Discard: true,
					Finished: func(spool.Segment) {}, Repair: repairer(p.request.Format),
				})
				if err != nil {
					b.Fatal(err)
				}
				s := &sameSource{left: b.N}
				for i := range 300 {
					s.packets = append(s.packets, testPacket(2*i+2, size, false))
					s.packets[i].In = 1
				}
				final := make(chan finalCounts, 1)
				final <- finalCounts{}
				e := &engine{
					source: s, out: out, enc: newEncoder("0123456789abcdef0123456789abcdef", p, d), sel: p.selection(&d.links),
					byteLimit: int64(limit), segmentSize: int64(segment), stop: make(chan stopping, 1), opened: func(string) {},
					final: final, drained: make(chan struct{}), timeLimit: time.Now().Add(time.Hour),
				}
				b.ResetTimer()
				if err := e.run(); err != nil {
					b.Fatal(err)
				}
				if e.count.packets() != uint64(b.N) {
					b.Fatalf("%d packets of %d", e.count.packets(), b.N)
				}
			})
		}
	}
}
