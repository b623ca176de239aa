package spool

import (
	"fmt"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sector is the alignment of O_DIRECT writes in bytes: offset, length and address. 4096
// suits every block device with 512- or 4096-byte sectors (open(2), O_DIRECT).
const sector = 4096

// BlockSize gives the size of the write blocks that a Writer cuts out of memory bytes:
// 4 MiB where there is room for eight of them, else a smaller power of two, at least
// 64 KiB.
func BlockSize(memory int) int {
	size := 4 << 20
	for size > 64<<10 && memory/size < 8 {
		size /= 2
	}
	return size
}

// Segment describes one finished file.
type Segment struct {
	Name        string    // file name inside the capture's folder
	Bytes       int64     // length of the file
	PlainBytes  int64     // length before it was encoded; Bytes where it was not
	Hurried     int64     // plain bytes that came after Encoder.Hurry
	PlainSHA256 string    // of the plain bytes, hexadecimal, where they were encoded; else ""
	Packets     uint64    // packets in it
	Captured    int64     // their bytes, without what the format adds
	First, Last time.Time // earliest and latest timestamp; zero without packets
	Opened      time.Time // when its first byte was written
	LostPackets uint64    // packets that were committed but are not in the file, because writing failed
	Err         error     // why the file ends early; nil when it is whole
}

// Options configures a Writer.
type Options struct {
	// Create makes the file of a segment, for reading and writing, with O_DIRECT where that
	// is offered; the Writer closes it.
	Create func(name string) (*os.File, error)
	// Segment gives the name of segment n (from 1), and what its bytes go through before
	// they reach the disk; a nil Encode means as they are.
	Segment func(n int) (name string, encode Encode)
	// Memory is page aligned and belongs to the Writer until Close has returned. It is
	// cut into blocks of BlockSize(len(Memory)); at least two must fit.
	Memory []byte
	// SegmentSize is the expected length of a segment in bytes, which is allocated ahead
	// where Ahead grants it; a nil Ahead never does.
	SegmentSize int64
	Ahead       func(n int64) bool
	// Admit is asked for room on the disk, a block at a time; its error is what Room gives.
	// Release gives back what of it a finished segment did not need. Written is told how
	// much of what Admit or Ahead granted needs to be set aside no more, because the file
	// has it or will not get it. All three may be nil, if Ahead is nil too.
	Admit   func(n int64) error
	Release func(n int64)
	Written func(n int64)
	// Finished is called once for each segment, in order, when the file has its final
	// length and is on stable storage. It runs on a goroutine of the Writer.
	Finished func(Segment)
	// Discard throws everything away: there are no files, and Finished is not called.
	Discard bool
	// Repair finds the last whole packet of a segment that writing left incomplete.
	Repair RepairFunc
}

// RepairFunc looks at the first size bytes of a capture file and tells where its last
// whole block ends and how many packets stand before it.
type RepairFunc func(f *os.File, size int64) (Repaired, error)

// Repaired is what RepairFunc found.
type Repaired struct {
	Bytes       int64
	Packets     uint64
	Captured    int64 // bytes of those packets
	First, Last time.Time
}

// Writer turns a stream of encoded packets into segment files. One goroutine calls
// Reserve, Commit, Flush, Rotate and Close; a goroutine of the Writer's own does the
// disk's work, so that a slow disk is felt only when every block is full.
//
// The bytes go to the disk past the page cache (O_DIRECT) in whole blocks, because the
// copy through the page cache is what loses packets at full rate. Where a file system
// refuses that, the same writes go through the page cache.
type Writer struct {
	opt       Options
	blockSize int
	free      *blocks
	ops       chan op
	scratch   []byte
	done      chan struct{}

	sinkMemory []byte // the disk goroutine's, for encoded segments
	failed     atomic.Pointer[error]

	// The producer's side.
	block    []byte // current block; nil before the first Reserve of a segment
	fill     int    // bytes used in block
	offset   int64  // offset in the file of block's first byte
	flushed  int    // bytes of block that a Flush has handed over, whole sectors
	seg      *segment
	number   int
	dirty    bool // bytes since the last Flush
	reserved int
}

type opKind uint8

const (
	opWrite  opKind = iota // write data at offset; the block goes back to free
	opFlush                // write data at offset and tail after it; the block stays with the producer
	opFinish               // write data at offset (padded), cut the file to its length, report it
)

type op struct {
	kind   opKind
	seg    *segment
	offset int64
	data   []byte
	tail   *[sector]byte // opFlush: what follows data, zero padded; from sectorPool
	block  []byte        // to give back
	length int64         // opFinish: the file's final length
}

// NewWriter makes the first segment's file, so that a folder that cannot be written to
// is found before a capture runs.
func NewWriter(opt Options) (*Writer, error) {
	w := &Writer{opt: opt, blockSize: BlockSize(len(opt.Memory)), done: make(chan struct{})}
	n := len(opt.Memory) / w.blockSize
	if n < 2 {
		return nil, fmt.Errorf("spool writer: %d bytes of memory hold fewer than two blocks", len(opt.Memory))
	}
	w.free = newBlocks(opt.Memory, w.blockSize)
	w.ops = make(chan op, n+4)
	w.open()
	if !opt.Discard {
		if err := w.seg.create(); err != nil {
			return nil, err
		}
	}
	go w.run()
	return w, nil
}

// open begins the next segment on the producer's side.
func (w *Writer) open() {
	w.number++
	name, encode := w.opt.Segment(w.number)
	w.seg = &segment{Segment: Segment{Name: name, Opened: time.Now()}, make: w.opt.Create, encode: encode}
	w.offset, w.fill, w.flushed, w.block = 0, 0, 0, nil
}

// Err tells why writing failed, or nil. After a failure nothing more reaches the disk.
func (w *Writer) Err() error {
	if p := w.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// Room sees to it that the current segment may grow by n more bytes, and asks Admit for
// as many blocks as that takes. Its error is Admit's; it may be asked again. What is
// committed without having been granted is written all the same.
func (w *Writer) Room(n int) error {
	if w.opt.Admit == nil {
		return nil
	}
	for w.Size()+int64(n) > w.seg.admitted {
		if err := w.opt.Admit(int64(w.blockSize)); err != nil {
			return err
		}
		w.seg.admitted += int64(w.blockSize)
	}
	return nil
}

// Granted is the length that the current segment may reach without asking Room again, in
// bytes.
func (w *Writer) Granted() int64 {
	if w.opt.Admit == nil {
		return math.MaxInt64
	}
	return w.seg.admitted
}

// Size is the length of the current segment so far, in bytes.
func (w *Writer) Size() int64 { return w.offset + int64(w.fill) }

// Behind tells that more than half of the write blocks wait for the disk.
func (w *Writer) Behind() bool { return w.free.scarce() }

// Waiting tells whether the producer waits for the disk, because every block is full. Any
// goroutine may ask.
func (w *Writer) Waiting() bool { return w.free.awaited() }

// Encoded tells whether the current segment's bytes are compressed or sealed.
func (w *Writer) Encoded() bool { return w.seg.encode != nil }

// Dirty tells whether something was committed since the last Flush.
func (w *Writer) Dirty() bool { return w.dirty }

// Packets is the number of packets in the current segment.
func (w *Writer) Packets() uint64 { return w.seg.Packets }

// Opened is when the current segment was begun.
func (w *Writer) Opened() time.Time { return w.seg.Opened }

// Name is the current segment's file name.
func (w *Writer) Name() string { return w.seg.Name }

// Reserve gives n bytes to write the next block of the file into, valid until Commit.
// It waits for the disk when every write block is full.
func (w *Writer) Reserve(n int) []byte {
	if w.block == nil {
		w.takeBlock()
	}
	w.reserved = n
	if n <= len(w.block)-w.fill {
		return w.block[w.fill : w.fill+n : w.fill+n]
	}
	// The record crosses the end of the block: it is built aside and split at Commit.
	if len(w.scratch) < n {
		w.scratch = make([]byte, max(n, 256<<10))
	}
	return w.scratch[:n:n]
}

// takeBlock makes a free block the current one.
func (w *Writer) takeBlock() {
	w.block, w.fill, w.flushed = w.free.take(), 0, 0
}

// Commit adds the reserved bytes to the segment.
func (w *Writer) Commit() {
	n := w.reserved
	w.dirty = true
	if n <= len(w.block)-w.fill {
		w.fill += n
		if w.fill == len(w.block) {
			w.handOver()
		}
		return
	}
	rest := w.scratch[:n]
	for len(rest) > 0 {
		if w.block == nil {
			w.takeBlock()
		}
		c := copy(w.block[w.fill:], rest)
		rest, w.fill = rest[c:], w.fill+c
		if w.fill == len(w.block) {
			w.handOver()
		}
	}
}

// CommitN is Commit for the first n of the reserved bytes.
func (w *Writer) CommitN(n int) {
	if n < w.reserved && w.reserved > len(w.block)-w.fill && n <= len(w.block)-w.fill {
		copy(w.block[w.fill:], w.scratch[:n]) // it was built aside, but fits after all
	}
	w.reserved = n
	w.Commit()
}

// CommitPacket is Commit for a record that holds n bytes of one packet with the given
// timestamp in nanoseconds since the epoch.
func (w *Writer) CommitPacket(ns int64, n int) {
	s := w.seg
	if s.Packets == 0 {
		s.firstNS, s.lastNS = ns, ns
	}
	s.Packets++
	s.Captured += int64(n)
	s.firstNS, s.lastNS = min(s.firstNS, ns), max(s.lastNS, ns)
	if end := w.fill + w.reserved; end < len(w.block) { // nearly always
		w.fill, w.dirty = end, true
		return
	}
	w.Commit()
}

// handOver gives the full current block to the disk goroutine.
func (w *Writer) handOver() {
	if w.opt.Discard {
		w.offset += int64(w.fill)
		w.fill = 0
		return
	}
	w.ops <- op{kind: opWrite, seg: w.seg, offset: w.offset + int64(w.flushed), data: w.block[w.flushed:w.fill], block: w.block}
	w.offset += int64(w.fill)
	w.block, w.fill, w.flushed = nil, 0, 0
}

// Flush hands over what was committed since the last Flush, so that a kill of the
// process costs at most what came later. It does not wait for the disk, and does
// nothing while the disk is behind: then blocks are being written anyway.
func (w *Writer) Flush() {
	if w.opt.Discard {
		w.dirty = false
	}
	if !w.dirty || w.block == nil || len(w.ops) > 0 {
		return
	}
	w.dirty = false
	if w.seg.encode != nil {
		w.ops <- op{kind: opFlush, seg: w.seg, data: w.block[w.flushed:w.fill]}
		w.flushed = w.fill
		return
	}
	whole := w.fill &^ (sector - 1)
	// The last, unfinished sector is copied: the producer goes on filling the original.
	tail := sectorPool.Get().(*[sector]byte)
	clear(tail[copy(tail[:], w.block[whole:w.fill]):])
	w.ops <- op{kind: opFlush, seg: w.seg, offset: w.offset + int64(w.flushed), data: w.block[w.flushed:whole], tail: tail}
	w.flushed = whole
}

// Rotate ends the current segment and begins the next. It does not wait for the disk
// unless every block is full.
func (w *Writer) Rotate() {
	w.finish()
	w.open()
}

func (w *Writer) finish() {
	if w.opt.Discard {
		if w.block != nil {
			w.free.give(w.block)
		}
		w.block = nil
		return
	}
	o := op{kind: opFinish, seg: w.seg, offset: w.offset + int64(w.flushed), block: w.block, length: w.Size()}
	switch {
	case w.block == nil:
	case w.seg.encode != nil:
		o.data = w.block[w.flushed:w.fill]
	default:
		end := (w.fill + sector - 1) &^ (sector - 1)
		clear(w.block[w.fill:end]) // nothing but this capture's bytes reaches the file, even for a moment
		o.data = w.block[w.flushed:end]
	}
	w.ops <- o
	w.block = nil
}

// Close ends the last segment, waits until every segment is on the disk and reported,
// and returns what Err returns.
func (w *Writer) Close() error {
	w.finish()
	close(w.ops)
	<-w.done
	return w.Err()
}

// run does the disk's work until Close.
func (w *Writer) run() {
	var closing sync.WaitGroup
	var before chan struct{} // closed when the previous segment has been reported
	for o := range w.ops {
		w.perform(o)
		w.settle(o.seg, o.seg.certain())
		if o.kind == opFinish {
			// Making the file durable can take long: the next segment is written meanwhile.
			after := make(chan struct{})
			wait := before
			before = after
			closing.Go(func() {
				defer close(after)
				s := o.seg.close(o.length, w.opt.Repair)
				if s.Err != nil {
					w.fail(s.Err)
				}
				w.settle(o.seg, o.seg.admitted)
				if w.opt.Release != nil {
					w.opt.Release(o.seg.admitted - s.Bytes)
				}
				if wait != nil {
					<-wait
				}
				w.opt.Finished(s)
			})
		}
		if o.tail != nil {
			sectorPool.Put(o.tail)
		}
		if o.block != nil {
			w.free.give(o.block)
		}
	}
	closing.Wait()
	if w.sinkMemory != nil {
		_ = unix.Munmap(w.sinkMemory)
	}
	close(w.done)
}

func (w *Writer) fail(err error) { w.failed.CompareAndSwap(nil, &err) }

// settle tells Written that n bytes of the segment's grants are settled.
func (w *Writer) settle(s *segment, n int64) {
	if w.opt.Written != nil {
		w.opt.Written(n - s.settled)
	}
	s.settled = n
}

// perform writes an op's bytes, unless writing has failed already.
func (w *Writer) perform(o op) {
	s := o.seg
	if s.err != nil {
		return
	}
	if err := w.Err(); err != nil {
		s.err = err
		return
	}
	err := s.create()
	if err == nil && s.encode != nil {
		if err = w.pass(o); err != nil {
			s.err = err
			w.fail(err)
		}
		return
	}
	if err == nil && len(o.data) > 0 {
		w.allocate(o)
		err = s.write(o.data, o.offset)
	}
	if err == nil && o.tail != nil {
		err = s.write(o.tail[:], o.offset+int64(len(o.data)))
	}
	if err == nil {
		s.onDisk = o.offset + int64(len(o.data))
		return
	}
	s.err = err
	w.fail(err)
}

// allocate takes the whole segment's room with its first large write, so that its extents
// stay in one piece and the file system does its bookkeeping once.
func (w *Writer) allocate(o op) {
	size := w.opt.SegmentSize
	if o.seg.allocated || len(o.data) < 1<<20 || w.opt.Ahead == nil || !w.opt.Ahead(size) {
		return
	}
	// Where that is not offered, or there is no room after all, the write itself tells.
	_ = unix.Fallocate(int(o.seg.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
	o.seg.allocated = true
	w.opt.Written(size)
}

// sectorPool keeps the one-sector buffers of Flush.
var sectorPool = sync.Pool{New: func() any {
	raw := make([]byte, 2*sector)
	shift := -int(uintptr(unsafe.Pointer(&raw[0]))) & (sector - 1)
	return (*[sector]byte)(raw[shift:])
}}
