package daemon

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"capd/ctl/wire"
	"capd/ring"
)

// newTestTap makes a tap and joins it.
func newTestTap(t *testing.T, e *engine, enc *encoder) *tap {
	t.Helper()
	p, err := newTap(enc)
	if err != nil {
		t.Fatal(err)
	}
	if !e.join(p) {
		t.Fatal("the engine has ended")
	}
	return p
}

// readTap reads a stream to its end. pause is called before each piece.
func readTap(t *testing.T, p *tap, pause func()) []byte {
	var all []byte
	for {
		pause()
		b, err := p.next(context.Background())
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Error(err)
			return all
		}
		all = append(all, b...)
	}
}

// streamed is what a stream tells, read as a file.
func streamed(t *testing.T, stream []byte) told {
	t.Helper()
	return readBack(t, outcome{files: [][]byte{stream}}, wire.FormatPcapng)
}

// Every reader gets what the files get, in the same order, or is told exactly how many
// packets it did not get: one that keeps up, one that pauses at random, one that reads
// nothing until the capture has ended, and one that comes late.
func TestTapTellsEveryPacketOrItsLoss(t *testing.T) {
	const count = 60_000 // in all several times the size of a tap
	packets := mixed(count)
	for _, format := range []string{wire.FormatPcapng, wire.FormatPcap} {
		t.Run(format, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(1, 2))
			s := listOf(packets)
			var readers sync.WaitGroup
			streams := make([][]byte, 3)
			var late, idle *tap
			s.begin = func(e *engine, live func() *encoder) {
				for i, pause := range []func(){func() {}, func() {
					if rnd.IntN(3) == 0 {
						time.Sleep(time.Duration(rnd.IntN(3)) * time.Millisecond)
					}
				}} {
					p := newTestTap(t, e, live())
					readers.Go(func() { streams[i] = readTap(t, p, pause); e.leave(p) })
				}
				idle = newTestTap(t, e, live())
				s.at = func(i int) {
					if i == count/2 {
						late = newTestTap(t, e, live())
					}
				}
			}
			const tail = 17
			o := runEngine(t, wire.StartRequest{Format: format}, s, tail)
			readers.Wait()
			streams[2] = readTap(t, idle, func() {})
			o.engine.leave(idle)
			all := readBack(t, o, format)
			var lost uint64 // by the kernel, as far as packets tell of it
			for i := range packets {
				lost += packets[i].Dropped
			}
			for i, stream := range streams {
				got := streamed(t, stream)
				captured := uint64(len(all.numbers))
				if got.received != captured+lost+tail || got.delivered != uint64(len(got.numbers)) ||
					got.delivered+got.osDropped != captured+lost+tail || got.ifDropped != got.osDropped {
					t.Errorf("reader %d: of %d captured and %d lost packets the stream's statistics tell %+v", i, captured, lost+tail, told{
						received: got.received, ifDropped: got.ifDropped, osDropped: got.osDropped, delivered: got.delivered})
				}
				if !slices.IsSorted(got.numbers) {
					t.Errorf("reader %d: packets are out of order", i)
				}
				// What no packet follows stands in the statistics alone.
				if last := slices.Index(all.numbers, got.numbers[len(got.numbers)-1]); got.delivered+got.dropped > captured+lost ||
					last == len(all.numbers)-1 && got.delivered+got.dropped != captured+lost {
					t.Errorf("reader %d: %d packets and drop counts of %d, of %d", i, got.delivered, got.dropped, captured+lost)
				}
				t.Logf("reader %d got %d of %d", i, len(got.numbers), captured)
			}
			if got := streamed(t, streams[2]); len(got.numbers) == len(all.numbers) {
				t.Error("who reads nothing until the end has lost nothing")
			}
			got := streamed(t, readTap(t, late, func() {}))
			o.engine.leave(late)
			if len(got.numbers) == 0 || got.numbers[0] < count/2 || got.numbers[0] > count/2+2000 {
				t.Errorf("who came at packet %d sees %d packets, the first is %v", count/2, len(got.numbers), got.numbers[:min(1, len(got.numbers))])
			}
		})
	}
}

// A stream is well-formed from its first bytes, tells the interfaces that are known when
// it begins, and ends when the capture does, even without a packet.
func TestTapOfNothing(t *testing.T) {
	s := listOf(nil)
	var p *tap
	s.begin = func(e *engine, live func() *encoder) { p = newTestTap(t, e, live()) }
	o := runEngine(t, wire.StartRequest{}, s, 0)
	stream := readTap(t, p, func() {})
	if got := streamed(t, stream); len(got.numbers) != 0 || got.delivered != 0 {
		t.Errorf("a stream without packets tells of %+v", got)
	}
	if !bytes.Equal(stream[:len(stream)-100], o.files[0][:len(stream)-100]) {
		t.Errorf("the stream\n%x\nis not the file\n%x", stream, o.files[0])
	}
	o.engine.leave(p)
	if late, err := newTap(p.enc); err != nil || o.engine.join(late) {
		t.Errorf("joined an engine that has ended (%v)", err)
	} else {
		late.memory.Free()
	}
}

// Readers come and go while packets flow; nobody else notices.
func TestTapsComeAndGo(t *testing.T) {
	packets := mixed(20_000)
	s := listOf(packets)
	var visits sync.WaitGroup
	s.begin = func(e *engine, live func() *encoder) {
		s.at = func(i int) {
			if i%1000 != 0 {
				return
			}
			p := newTestTap(t, e, live())
			visits.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				for range i / 2000 {
					if _, err := p.next(ctx); errors.Is(err, io.EOF) {
						break
					} else if err != nil {
						t.Error(err)
					}
				}
				e.leave(p)
			})
		}
	}
	o := runEngine(t, wire.StartRequest{}, s, 0)
	visits.Wait()
	if all := readBack(t, o, wire.FormatPcapng); len(all.numbers) != len(packets) {
		t.Errorf("the file has %d packets of %d", len(all.numbers), len(packets))
	}
	if len(o.engine.tapped) != 0 {
		t.Errorf("%d readers are left", len(o.engine.tapped))
	}
}

// A packet costs no allocation either where somebody reads along.
func TestTapAllocatesNothingPerPacket(t *testing.T) {
	packets := make([]ring.Packet, 64)
	for i := range packets {
		packets[i] = testPacket(i, 60+i%3*600, i%4 >= 2)
	}
	s, allocatesNothing := steady(t, packets, 250_000)
	var reader sync.WaitGroup
	s.begin = func(e *engine, live func() *encoder) {
		p := newTestTap(t, e, live())
		reader.Go(func() {
			defer e.leave(p)
			for {
				if _, err := p.next(context.Background()); err != nil {
					return
				}
			}
		})
	}
	runEngine(t, wire.StartRequest{SegmentSize: ptr(wire.Size(1e9))}, s, 0)
	reader.Wait()
	allocatesNothing()
}
