package daemon

import (
	"fmt"
	"io"
	"testing"
	"time"

	"capd/ctl/wire"
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
				r.ByteLimit, r.SegmentSize = ptr(wire.Size(1<<60)), ptr(wire.Size(1e9))
				s := &sameSource{left: b.N}
				for i := range 300 {
					s.packets = append(s.packets, testPacket(2*i+2, size, false))
					s.packets[i].In = 1
				}
				e := newEngine(b, r, s, 32<<20, spool.Options{Discard: true})
				e.final <- finalCounts{}
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
