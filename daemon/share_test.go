package daemon

import (
	"bytes"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"testing"

	"capd/daemon/spool"
	"capd/ring"
)

// boxes are sizes that a configuration can give: from the least memory to much, for one
// capture and for many.
var boxes = []struct{ ringSize, receiveBuffer, captures int }{
	{16 << 20, 16 << 20, 1},
	{16 << 20, 16 << 20, 16},
	{32 << 20, 32 << 20, 16},
	{64 << 20, 16 << 20, 3},
	{256 << 20, 256 << 20, 16},
	{256 << 20, 64 << 20, 200},
	{16 << 20, 16 << 20, 1024},
}

// taken is what the captures that hold these shares take together, and whether each can
// do its work with what it has.
func taken(t *testing.T, held []*share) (ringBytes, recv int) {
	t.Helper()
	for _, sh := range held {
		// What the ring really takes of it, see ring.Config.Memory.
		ringBytes += max(sh.slots, ring.MinMemory) + len(sh.blocks.Bytes())
		recv += sh.recv
		if n := len(sh.blocks.Bytes()); n/spool.BlockSize(n) < 2 {
			t.Fatalf("a share of %+v: write blocks of %d bytes are fewer than two", sh, n)
		}
	}
	return ringBytes, recv
}

// Every capture gets its part, and all together no more than there is.
func TestSharesStayWithinTheirTotals(t *testing.T) {
	for _, b := range boxes {
		s := newShares(b.ringSize, b.receiveBuffer, b.captures)
		ring0, recv0 := s.ring, s.recv
		var held []*share
		for range b.captures {
			sh, err := s.take()
			if err != nil {
				t.Fatalf("%+v: capture %d: %v", b, len(held)+1, err)
			}
			if held = append(held, sh); sh.recv < s.recvMinimum || sh.ring < s.ringMinimum {
				t.Fatalf("%+v: capture %d gets %+v, less than the least of %d and %d", b, len(held), sh, s.ringMinimum, s.recvMinimum)
			}
			if len(held) > 1 && (sh.ring > held[len(held)-2].ring || sh.recv > held[len(held)-2].recv) {
				t.Fatalf("%+v: capture %d gets more than the one before", b, len(held))
			}
		}
		if r, v := taken(t, held); r > s.ringSize || v > s.receiveBuffer {
			t.Errorf("%+v: %d captures take %d bytes of ring memory and %d of receive buffers; there are %d and %d", b, len(held), r, v, s.ringSize, s.receiveBuffer)
		}
		if sh, err := s.take(); err == nil {
			t.Errorf("%+v: one capture too many gets %+v", b, sh)
			s.give(sh)
		}
		for _, sh := range held {
			s.give(sh)
		}
		if s.ring != ring0 || s.recv != recv0 || s.free != b.captures {
			t.Errorf("%+v: %d, %d and %d are left when all was given back", b, s.ring, s.recv, s.free)
		}
		if b.captures <= 16 && s.ringSize > max(b.ringSize, 18<<20) {
			t.Errorf("%+v: the ring memory is raised to %d", b, s.ringSize)
		}
	}
}

// In whatever order captures come and go, the totals hold and come back, and whoever
// comes may come.
func TestSharesInAnyOrder(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 8))
	for range 20 {
		s := newShares(24<<20, 16<<20, 8)
		ring0, recv0 := s.ring, s.recv
		var held []*share
		for range 100 {
			if len(held) > 0 && (len(held) == 8 || rnd.IntN(2) == 0) {
				i := rnd.IntN(len(held))
				s.give(held[i])
				held = append(held[:i], held[i+1:]...)
				continue
			}
			sh, err := s.take()
			if err != nil {
				t.Fatalf("with %d of 8 captures: %v", len(held), err)
			}
			if sh.recv < s.recvMinimum || sh.ring < s.ringMinimum {
				t.Fatalf("with %d of 8 captures: %+v, less than %d and %d", len(held), sh, s.ringMinimum, s.recvMinimum)
			}
			held = append(held, sh)
			if r, v := taken(t, held); r > s.ringSize || v > s.receiveBuffer {
				t.Fatalf("%d captures take %d bytes of ring memory and %d of receive buffers; there are %d and %d", len(held), r, v, s.ringSize, s.receiveBuffer)
			}
		}
		for _, sh := range held {
			s.give(sh)
		}
		if s.ring != ring0 || s.recv != recv0 || s.free != 8 {
			t.Fatalf("%d, %d and %d are left when all was given back, of %d and %d", s.ring, s.recv, s.free, ring0, recv0)
		}
	}
}

// resident is the process's resident size in bytes (proc_pid_statm(5)).
func resident(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(string(bytes.Fields(text)[1]))
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// Memory is there from the start of a capture, and gone after the last.
func TestShareMemoryIsGivenBack(t *testing.T) {
	const ringSize, margin = 256 << 20, 16 << 20
	s := newShares(ringSize, 16<<20, 4)
	runtime.GC()
	debug.FreeOSMemory()
	before := resident(t)
	if before > 200<<20 {
		t.Logf("the test process has %d bytes already", before)
	}
	var held []*share
	blocks := 0
	for range 4 {
		sh, err := s.take()
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, sh)
		if blocks += len(sh.blocks.Bytes()); resident(t) < before+blocks-margin {
			t.Errorf("%d bytes of write blocks are given out, but the process has grown from %d to %d only", blocks, before, resident(t))
		}
	}
	if blocks < ringSize/2 {
		t.Errorf("of %d bytes %d are write blocks", ringSize, blocks)
	}
	for _, sh := range held {
		s.give(sh)
	}
	if after := resident(t); after > before+margin {
		t.Errorf("after the last capture the process has %d bytes, %d before the first", after, before)
	}
}
