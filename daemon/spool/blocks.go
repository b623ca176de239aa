package spool

import "sync"

// blocks are the write blocks that are free. The one that was given back last is taken
// first: while the disk keeps up, the same few are filled over and over and stay in the
// CPU's cache, instead of each packet being written to memory that has left it.
type blocks struct {
	mu    sync.Mutex
	given sync.Cond
	free  [][]byte
	total int
	// waiting tells that somebody waits for a block.
	waiting bool
}

func newBlocks(memory []byte, size int) *blocks {
	b := &blocks{total: len(memory) / size}
	b.given.L = &b.mu
	b.free = make([][]byte, 0, b.total)
	for i := range b.total {
		b.free = append(b.free, memory[i*size:(i+1)*size:(i+1)*size])
	}
	return b
}

// take gives a free block, waiting for one where there is none.
func (b *blocks) take() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.free) == 0 {
		b.waiting = true
		b.given.Wait()
	}
	b.waiting = false
	last := len(b.free) - 1
	block := b.free[last]
	b.free = b.free[:last]
	return block
}

func (b *blocks) give(block []byte) {
	b.mu.Lock()
	b.free = append(b.free, block)
	b.mu.Unlock()
	b.given.Signal()
}

// scarce tells that fewer than half of the blocks are free.
func (b *blocks) scarce() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return 2*len(b.free) < b.total
}

// awaited tells that somebody waits for a block.
func (b *blocks) awaited() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.waiting
}
