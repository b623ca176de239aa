package ring

import (
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
)

// TestArena commits and releases at random and looks at every byte.
func TestArena(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	a := newArena(make([]byte, 8*window))
	type held struct {
		slot int32
		fill byte
	}
	var slots []held
	fill := byte(0)
	full := 0
	for range 200_000 {
		if room := a.room(); room != nil && rng.IntN(3) > 0 {
			n := 1 + rng.IntN(window)
			if rng.IntN(2) == 0 {
				n = 1 + rng.IntN(500)
			}
			fill++
			room[0], room[n-1] = fill, fill
			slots = append(slots, held{a.commit(n), fill})
			continue
		} else if room == nil {
			full++
		}
		if len(slots) == 0 {
			continue
		}
		i := rng.IntN(min(len(slots), 6)) // not always the oldest
		b := a.bytes(slots[i].slot)
		if b[0] != slots[i].fill || b[len(b)-1] != slots[i].fill {
			t.Fatal("a datagram was overwritten")
		}
		a.release(slots[i].slot)
		slots = slices.Delete(slots, i, i+1)
	}
	for _, s := range slots {
		a.release(s.slot)
	}
	if a.used != 0 || a.held != 0 || full == 0 {
		t.Errorf("%d slots and %d bytes in use at the end; it was full %d times", a.used, a.held, full)
	}
}

func TestHeap(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	groups := make([]group, 32)
	h := make(heap, 0, len(groups))
	for range 2000 {
		for i := range groups {
			groups[i].index, groups[i].head = i, &Packet{Time: int64(rng.IntN(20))}
			h.push(&groups[i])
		}
		h.remove(rng.IntN(len(h)))
		last := entry{time: -1, g: &groups[0]}
		for len(h) > 0 {
			e := h[0]
			if e.before(last) {
				t.Fatalf("%d after %d", e.time, last.time)
			}
			last = e
			h.remove(0)
		}
	}
}

func TestMemory(t *testing.T) {
	m, err := Alloc(3<<20 + 1)
	if err != nil {
		t.Fatal(err)
	}
	b := m.Bytes()
	if len(b) < 3<<20+1 || len(b)%os.Getpagesize() != 0 {
		t.Errorf("%d bytes", len(b))
	}
	present := make([]byte, len(b)/os.Getpagesize())
	if err := mincore(b, present); err != nil {
		t.Fatal(err)
	}
	if i := slices.IndexFunc(present, func(p byte) bool { return p&1 == 0 }); i >= 0 {
		t.Errorf("page %d is not populated", i)
	}
	if i := slices.IndexFunc(b, func(c byte) bool { return c != 0 }); i >= 0 {
		t.Errorf("byte %d is not zero", i)
	}
	m.Free()
	m.Free()
	(*Memory)(nil).Free()
	for _, n := range []int{0, -1, math.MaxInt} {
		if m, err := Alloc(n); err == nil {
			m.Free()
			t.Errorf("allocated %d bytes", n)
		}
	}
}
