package daemon

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"capd/daemon/config"
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

// What a capture cannot do without, in bytes: the least ring, and two of the least write
// blocks (spool.BlockSize); a datagram or two.
const (
	leastBlocks = 128 << 10
	leastRing   = ring.MinMemory + leastBlocks
	leastRecv   = 128 << 10
)

// grain is what parts of the ring memory are multiples of, in bytes: the largest page, so
// that rounding up to pages does not make more of it than there is.
const grain = 64 << 10

// sizeShares decides how much memory captures may take together.
func sizeShares(cfg *config.Config) (*shares, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return nil, fmt.Errorf("read the memory's size: %w", err)
	}
	total := int(uint64(info.Totalram) * uint64(info.Unit))
	both := min(max(total/20, 64<<20), 512<<20)
	ringSize, receive := int(cfg.Ring.Size), int(cfg.Ring.ReceiveBuffer)
	switch {
	case ringSize == 0 && receive == 0:
		// Receive buffers take memory only when they fill; the ring's is taken in advance.
		ringSize = max(both/4, minRing)
		receive = both - ringSize
	case ringSize == 0:
		ringSize = max(both-receive, minRing)
	case receive == 0:
		receive = max(both-ringSize, minRing)
	}
	return newShares(max(ringSize, minRing), max(receive, minRing), cfg.Limits.MaxCaptures), nil
}

// minRing is the least memory that a ring or the receive buffers can do with, in bytes.
const minRing = 16 << 20

// newShares keeps for each possible capture a quarter of an even part; the rest goes to
// those that come first. Totals too small for maxCaptures are raised to what that many
// captures cannot do without.
func newShares(ringSize, receiveBuffer, maxCaptures int) *shares {
	ringSize = max(ringSize, maxCaptures*leastRing)
	receiveBuffer = max(receiveBuffer, maxCaptures*leastRecv)
	return &shares{
		ringSize: ringSize, receiveBuffer: receiveBuffer,
		ring: ringSize, recv: receiveBuffer, free: maxCaptures,
		ringMinimum: max(leastRing, ringSize/maxCaptures/4/grain*grain),
		recvMinimum: max(leastRecv, receiveBuffer/maxCaptures/4),
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
	sh := &share{ring: part(s.ring, s.ringMinimum) / grain * grain, recv: part(s.recv, s.recvMinimum)}
	// Slots hold what arrives within the merge window and one round of reads; write
	// blocks hold what the disk has not taken yet, which is what needs the room.
	sh.slots = max(sh.ring/4/grain*grain, ring.MinMemory)
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
