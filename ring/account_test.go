package ring

import (
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestAccount drives the account with numbers and holes of every kind.
func TestAccount(t *testing.T) {
	header, packet := synthUDP(60)
	ok := func(seq uint32) []byte { return synth{seq: seq, payload: packet, hwHeader: header}.message() }
	theirs := func(seq uint32) []byte { return synth{seq: seq, payload: packet, prefix: "ulogd"}.message() }
	bad := func(seq uint32) []byte { return synth{seq: seq, noHeader: true, payload: packet}.message() }
	lost := synth{noSeq: true, payload: packet}.message()       // malformed, its number unknown
	broken := netlinkMessage(ulogPacket, 0, []byte{2, 0, 0, 1}) // what a failed build leaves
	noise := []byte{200, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}
	wrapped := func(n uint32) []byte { return ok(1<<32 - 1<<30 + n) }
	for name, c := range map[string]struct {
		datagrams                                   [][]byte
		received, foreign, malformed, gaps, garbage uint64
		dropped                                     []uint64
		expect                                      uint32
		alsoStart                                   uint32 // the account's first number
	}{
		"in order":                      {datagrams: [][]byte{datagram(ok(0), ok(1)), ok(2)}, received: 3, dropped: []uint64{0, 0, 0}, expect: 3},
		"a gap between datagrams":       {datagrams: [][]byte{ok(0), ok(5), ok(6)}, received: 3, gaps: 4, dropped: []uint64{0, 4, 0}, expect: 7},
		"a gap before the first":        {datagrams: [][]byte{ok(3)}, received: 1, gaps: 3, dropped: []uint64{3}, expect: 4},
		"foreign":                       {datagrams: [][]byte{ok(0), theirs(1), theirs(2), ok(3)}, received: 2, foreign: 2, dropped: []uint64{0, 0}, expect: 4},
		"a gap before a foreign one":    {datagrams: [][]byte{ok(0), theirs(3), ok(4)}, received: 2, foreign: 1, gaps: 2, dropped: []uint64{0, 2}, expect: 5},
		"malformed with its number":     {datagrams: [][]byte{ok(0), bad(1), ok(2)}, received: 2, malformed: 1, dropped: []uint64{0, 1}, expect: 3},
		"malformed, number unknown":     {datagrams: [][]byte{ok(0), lost, ok(2)}, received: 2, malformed: 1, dropped: []uint64{0, 1}, expect: 3},
		"malformed that had no number":  {datagrams: [][]byte{ok(0), lost, ok(1)}, received: 2, garbage: 1, dropped: []uint64{0, 0}, expect: 2},
		"three unreadable, two numbers": {datagrams: [][]byte{ok(0), lost, broken, lost, ok(3)}, received: 2, malformed: 2, garbage: 1, dropped: []uint64{0, 2}, expect: 4},
		"one unreadable, three numbers": {datagrams: [][]byte{ok(0), lost, ok(4)}, received: 2, malformed: 1, gaps: 2, dropped: []uint64{0, 3}, expect: 5},
		"noise ends a datagram":         {datagrams: [][]byte{append(datagram(ok(0)), noise...), ok(4)}, received: 2, malformed: 1, gaps: 2, dropped: []uint64{0, 3}, expect: 5},
		"unreadable at the end":         {datagrams: [][]byte{ok(0), lost, broken}, received: 1, garbage: 2, dropped: []uint64{0}, expect: 1},
		"nothing but noise":             {datagrams: [][]byte{noise, noise, {1, 2, 3}}, garbage: 3, expect: 0},
		"a number twice":                {datagrams: [][]byte{ok(0), ok(1), ok(1), ok(0), ok(2)}, received: 3, garbage: 2, dropped: []uint64{0, 0, 0}, expect: 3},
		"the counter turns over":        {datagrams: [][]byte{wrapped(1<<30 - 1), ok(0), ok(2)}, alsoStart: 1<<32 - 1, received: 3, gaps: 1, dropped: []uint64{0, 0, 1}, expect: 3},
	} {
		t.Run(name, func(t *testing.T) {
			r, conns, _ := newFake(t, Config{Stamped: 1})
			r.groups[0].account.expect = c.alsoStart
			conns[0].queue = c.datagrams
			r.Drain()
			var p Packet
			var dropped []uint64
			for {
				err := next(r, &p)
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				dropped = append(dropped, p.Dropped)
			}
			s := r.Stats().Groups[0]
			if s.Received != c.received || s.Foreign != c.foreign || s.Malformed != c.malformed || s.Gaps != c.gaps || s.Garbage != c.garbage {
				t.Errorf("account %+v", s)
			}
			if !slices.Equal(dropped, c.dropped) {
				t.Errorf("dropped before each packet: %v, want %v", dropped, c.dropped)
			}
			if got := s.Received + s.Foreign + s.Malformed + s.Gaps; uint32(got) != c.expect-c.alsoStart {
				t.Errorf("the account adds up to %d, want %d", got, c.expect-c.alsoStart)
			}
		})
	}
}

// TestAccountRandom damages a long stream at random.
func TestAccountRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		r, conns, _ := newFake(t, Config{Stamped: 1})
		highest := uint32(0)
		for seq := uint32(0); seq < 3000; {
			n := 1 + rng.IntN(60)
			d := synthBatch(n, seq, fakeEpoch, 60)
			switch rng.IntN(6) {
			case 0:
				seq += uint32(n)
				continue // lost
			case 1:
				d = d[:rng.IntN(len(d))]
			case 2:
				d[rng.IntN(len(d))] ^= 1 << rng.IntN(8)
			}
			conns[0].queue = append(conns[0].queue, d)
			seq += uint32(n)
			highest = seq
		}
		conns[0].queue = append(conns[0].queue, one(highest, fakeEpoch, "last"))
		r.Drain()
		all(t, r)
		// A flipped bit in a sequence number can jump far: then the last packet's number is in
		// the past and is garbage.
		if a := &r.groups[0].account; uint32(a.received+a.foreign+a.malformed+a.gaps) != a.expect {
			t.Errorf("%+v does not add up", a)
		} else if a.expect == highest+1 {
			checkAccount(t, r, 0, highest)
		}
	}
}
