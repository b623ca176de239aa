package ring

// window is the room that each read needs: the longest datagram that the kernel makes. A
// batch of 65216 bytes is enlarged to 130752 by a packet that does not fit it otherwise
// (a kmalloc of 128 KiB less struct skb_shared_info).
const window = 128 << 10

// arena is the ring: datagrams of any length lie in it one behind the other, in the
// order in which they were read, with no room lost between them. So one area takes both
// batches of 64 KiB, the 128 KiB that a GSO packet makes of one, and many datagrams of one
// packet each. Where it runs empty it starts over at its beginning, which keeps the bytes
// in the CPU's cache as long as nothing has to be held back.
type arena struct {
	area  []byte
	write int // where the next datagram goes
	slots []slot
	first int // index of the oldest slot in use
	used  int // slots in use, released ones in between included
	held  int // bytes in slots in use
}

// slot describes one datagram in the arena.
type slot struct {
	offset, length int
	received       int64 // on the reader's monotonic clock, right after it was read
	clock          int64 // the same moment as wall-clock time, nanoseconds since the epoch
	next           int32 // the next slot of the same group, -1 = none
	released       bool
	hurried        bool
}

// slotShare is how many bytes of arena there are for each slot description: datagrams of
// one packet are about that long.
const slotShare = 512

func newArena(area []byte) arena {
	return arena{area: area, slots: make([]slot, max(64, len(area)/slotShare))}
}

// room gives window bytes for the next read, or nil where the ring is full. They stay
// free until commit.
func (a *arena) room() []byte {
	if a.used == len(a.slots) {
		return nil
	}
	if a.used == 0 {
		a.write = 0
		return a.area[:window:window]
	}
	oldest := a.slots[a.first].offset
	if a.write > oldest {
		// Start over before the end where that leaves room for twice what is held and a
		// quarter of the ring: the shorter the way round, the more of it stays in the cache.
		early := oldest > 2*(a.write-oldest)+len(a.area)/4
		if !early && len(a.area)-a.write >= window {
			return a.area[a.write : a.write+window : a.write+window]
		}
		if oldest <= window {
			return nil
		}
		a.write = 0
	}
	if oldest-a.write <= window {
		return nil
	}
	return a.area[a.write : a.write+window : a.write+window]
}

// commit makes the first n bytes (1 to window) of what room gave a slot.
func (a *arena) commit(n int) int32 {
	i := a.first + a.used
	if i >= len(a.slots) {
		i -= len(a.slots)
	}
	a.used++
	a.held += n
	a.slots[i] = slot{offset: a.write, length: n, next: -1}
	a.write += (n + 63) &^ 63
	return int32(i)
}

// bytes is a slot's datagram.
func (a *arena) bytes(i int32) []byte {
	s := &a.slots[i]
	return a.area[s.offset : s.offset+s.length : s.offset+s.length]
}

// release gives a slot's room back, once every older slot is released too.
func (a *arena) release(i int32) {
	a.slots[i].released = true
	for a.used > 0 && a.slots[a.first].released {
		a.held -= a.slots[a.first].length
		a.used--
		if a.first++; a.first == len(a.slots) {
			a.first = 0
		}
	}
}
