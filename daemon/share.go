package daemon

import (
	"fmt"
	"sync"

	"capd/ring"
)

// shares divides the box's ring memory and receive buffers among captures. A capture's
// share is its own from start to stop, so that a flood in one costs no other a packet;
// nothing is taken while no capture runs.
type shares struct {
	ringSize      int // bytes in all
	receiveBuffer int

	mu          sync.Mutex
	ring, recv  int // bytes not yet given out
	free        int // captures that may still be started
	ringMinimum int // what each of those is sure to get
	recvMinimum int
}

// share is one capture's part.
type share struct {
	slots  int          // bytes for datagrams, held by the ring
	recv   int          // bytes of receive buffer over all the capture's sockets
	blocks *ring.Memory // write blocks
	ring   int          // what slots and blocks take together
}

// newShares keeps for each possible capture a quarter of an even part; the rest goes to
// those that come first.
func newShares(ringSize, receiveBuffer, maxCaptures int) *shares {
	return &shares{
		ringSize: ringSize, receiveBuffer: receiveBuffer,
		ring: ringSize, recv: receiveBuffer, free: maxCaptures,
		ringMinimum: ringSize / maxCaptures / 4, recvMinimum: receiveBuffer / maxCaptures / 4,
	}
}

// take gives half of what is not kept for others, with its write blocks populated.
func (s *shares) take() (*share, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.free == 0 {
		return nil, fmt.Errorf("ring memory is given out")
	}
	part := func(left, minimum int) int {
		return minimum + max(0, left-s.free*minimum)/2
	}
	sh := &share{ring: part(s.ring, s.ringMinimum), recv: part(s.recv, s.recvMinimum)}
	// Slots hold what arrives within the merge window and one round of reads; write
	// blocks hold what the disk has not taken yet, which is what needs the room.
	sh.slots = sh.ring / 4
	blocks, err := ring.Alloc(sh.ring - sh.slots)
	if err != nil {
		return nil, fmt.Errorf("allocate write blocks: %w", err)
	}
	sh.blocks = blocks
	s.ring, s.recv, s.free = s.ring-sh.ring, s.recv-sh.recv, s.free-1
	return sh, nil
}

// give takes a share back. The capture no longer touches it.
func (s *shares) give(sh *share) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sh.blocks.Free()
	s.ring, s.recv, s.free = s.ring+sh.ring, s.recv+sh.recv, s.free+1
}
