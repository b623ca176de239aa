package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"capd/testbed"
)

// The tests write records of their own: a length, a number, and bytes that follow from
// the number, so that every file can be checked to the byte.

func appendRecord(dst []byte, number uint32, size int) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(size))
	dst = binary.LittleEndian.AppendUint32(dst, number)
	for i := 8; i < size; i++ {
		dst = append(dst, byte(number)+byte(i))
	}
	return dst
}

// repairRecords is the tests' RepairFunc.
func repairRecords(f *os.File, size int64) (Repaired, error) {
	data := make([]byte, size)
	n, _ := f.ReadAt(data, 0)
	data = data[:n]
	var out Repaired
	for len(data) >= 8 {
		length := int(binary.LittleEndian.Uint32(data))
		if length < 8 || length > len(data) {
			break
		}
		if want := appendRecord(nil, binary.LittleEndian.Uint32(data[4:]), length); !bytes.Equal(want, data[:length]) {
			return out, fmt.Errorf("record %d is damaged", out.Packets)
		}
		data = data[length:]
		out.Bytes += int64(length)
		out.Packets++
	}
	return out, nil
}

func memory(t testing.TB, size int) []byte {
	t.Helper()
	m, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(m) })
	return m
}

// finished collects the segments a Writer reports.
type finished struct {
	mu   sync.Mutex
	list []Segment
}

func (f *finished) add(s Segment) {
	f.mu.Lock()
	f.list = append(f.list, s)
	f.mu.Unlock()
}

func (f *finished) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.list)
}

func plainSegments(n int) (string, Encode) { return fmt.Sprintf("%04d.rec", n), nil }

func newTestWriter(t testing.TB, dir string, memorySize int) (*Writer, *finished) {
	t.Helper()
	done := new(finished)
	w, err := NewWriter(Options{
		Create: InFolder(dir), Segment: plainSegments,
		Memory: memory(t, memorySize), SegmentSize: 8 << 20, Finished: done.add, Repair: repairRecords,
		Ahead: func(int64) bool { return true }, Written: func(int64) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	return w, done
}

// folders are file systems with and without O_DIRECT.
func folders(t *testing.T) map[string]string {
	shm, err := os.MkdirTemp("/dev/shm", "capd-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(shm) })
	return map[string]string{"disk": t.TempDir(), "tmpfs": shm}
}

func TestSegmentsHoldEveryRecord(t *testing.T) {
	for name, dir := range folders(t) {
		t.Run(name, func(t *testing.T) {
			w, done := newTestWriter(t, dir, 1<<20)
			rnd := rand.New(rand.NewPCG(1, 2))
			perSegment := []uint64{0}
			var written int64
			for i := range uint32(20000) {
				size := 8 + rnd.IntN(3000)
				if rnd.IntN(500) == 0 {
					size = 70000 + rnd.IntN(150000) // larger than a block
				}
				appendRecord(w.Reserve(size)[:0], i, size)
				w.CommitPacket(int64(i)+1, size)
				perSegment[len(perSegment)-1]++
				written += int64(size)
				if rnd.IntN(100) == 0 {
					w.Flush()
				}
				if w.Size() > 8<<20 {
					w.Rotate()
					perSegment = append(perSegment, 0)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if len(done.list) != len(perSegment) || len(done.list) < 3 {
				t.Fatalf("%d segments reported, %d made", len(done.list), len(perSegment))
			}
			next := uint32(0)
			for i, s := range done.list {
				data, err := os.ReadFile(filepath.Join(dir, s.Name))
				if err != nil {
					t.Fatal(err)
				}
				if int64(len(data)) != s.Bytes || s.Packets != perSegment[i] || s.Captured != s.Bytes || s.Err != nil {
					t.Errorf("segment %+v: file has %d bytes, %d packets were committed", s, len(data), perSegment[i])
				}
				if s.First.UnixNano() != int64(next)+1 {
					t.Errorf("segment %s: first is %d, want %d", s.Name, s.First.UnixNano(), next+1)
				}
				for len(data) > 0 {
					length := int(binary.LittleEndian.Uint32(data))
					if want := appendRecord(nil, next, length); !bytes.Equal(want, data[:length]) {
						t.Fatalf("segment %s: record %d differs", s.Name, next)
					}
					data, next, written = data[length:], next+1, written-int64(length)
				}
				if s.Last.UnixNano() != int64(next) {
					t.Errorf("segment %s: last is %d, want %d", s.Name, s.Last.UnixNano(), next)
				}
			}
			if next != 20000 || written != 0 {
				t.Errorf("%d records and all but %d bytes are in the files", next, written)
			}
		})
	}
}

// What was flushed is on the disk although the segment goes on: it survives a kill.
func TestFlushedRecordsSurvive(t *testing.T) {
	for name, dir := range folders(t) {
		t.Run(name, func(t *testing.T) {
			w, done := newTestWriter(t, dir, 1<<20)
			for i := range uint32(1000) {
				appendRecord(w.Reserve(333)[:0], i, 333)
				w.CommitPacket(1, 333)
				if i%7 == 0 {
					w.Flush()
					for len(w.ops) > 0 {
					}
				}
			}
			w.Flush()
			// The flush is asynchronous: the file says when it has come through.
			path := filepath.Join(dir, w.Name())
			var found Repaired
			for range 10000 {
				f, err := os.Open(path)
				if err != nil {
					t.Fatal(err)
				}
				info, _ := f.Stat()
				found, err = repairRecords(f, info.Size())
				f.Close()
				if err == nil && found.Packets == 1000 {
					break
				}
			}
			if found.Packets != 1000 {
				t.Errorf("%d of 1000 flushed records can be recovered", found.Packets)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if len(done.list) != 1 || done.list[0].Bytes != 333000 {
				t.Errorf("segments: %+v", done.list)
			}
		})
	}
}

// A full file system ends the file at its last whole record; what is not in it is told.
func TestFullDiskKeepsWholeRecords(t *testing.T) {
	testbed.NeedRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=3m"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	w, done := newTestWriter(t, dir, 1<<20)
	for i := range uint32(5000) {
		appendRecord(w.Reserve(1000)[:0], i, 1000)
		w.CommitPacket(int64(i)+1, 1000)
		if i == 4000 {
			w.Rotate()
		}
	}
	err := w.Close()
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("Close: %v, want ENOSPC", err)
	}
	if len(done.list) != 2 {
		t.Fatalf("segments: %+v", done.list)
	}
	first, second := done.list[0], done.list[1]
	f, err := os.Open(filepath.Join(dir, first.Name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, _ := f.Stat()
	found, err := repairRecords(f, info.Size())
	if err != nil || found.Bytes != info.Size() || found.Packets != first.Packets || found.Packets == 0 {
		t.Errorf("file: %d bytes, %+v, %v; reported %+v", info.Size(), found, err, first)
	}
	if first.Packets+first.LostPackets != 4001 || second.Packets != 0 || second.LostPackets != 999 {
		t.Errorf("lost packets are told wrongly: %+v %+v", first, second)
	}
}

func TestCommitAllocatesNothing(t *testing.T) {
	w, _ := newTestWriter(t, t.TempDir(), 64<<20)
	record := appendRecord(nil, 7, 1440)
	n := testing.AllocsPerRun(20000, func() {
		copy(w.Reserve(len(record)), record)
		w.CommitPacket(1, len(record))
	})
	if n != 0 {
		t.Errorf("%v allocations a packet", n)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestNewWriterNeedsItsFolder(t *testing.T) {
	_, err := NewWriter(Options{Create: InFolder(filepath.Join(t.TempDir(), "gone")), Segment: plainSegments, Memory: memory(t, 1<<20)})
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("NewWriter: %v, want ErrNotExist", err)
	}
}

func BenchmarkWriter(b *testing.B) {
	for _, size := range []int{108, 1452} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			w, _ := newTestWriter(b, b.TempDir(), 64<<20)
			record := appendRecord(nil, 7, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				copy(w.Reserve(len(record)), record)
				w.CommitPacket(1, len(record))
				if w.Size() > 64<<20 {
					w.Rotate()
				}
			}
			if err := w.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// countedEncoder passes everything on; being told twice would panic.
type countedEncoder struct {
	io.Writer
	told chan struct{}
}

func (e countedEncoder) Flush() error { return nil }
func (e countedEncoder) Close() error { return nil }
func (e countedEncoder) Hurry() error { close(e.told); return nil }

// An encoding that does not keep up is told so, once a segment.
func TestEncoderIsTold(t *testing.T) {
	done := new(finished)
	gate, dir := make(chan struct{}), t.TempDir()
	w, err := NewWriter(Options{
		Create: func(name string) (*os.File, error) {
			if name != "0001.rec" {
				<-gate // the second segment's file comes when its blocks are full
			}
			return InFolder(dir)(name)
		},
		Segment: func(n int) (string, Encode) {
			return fmt.Sprintf("%04d.rec", n), func(dst io.Writer) (Encoder, error) {
				return countedEncoder{dst, make(chan struct{})}, nil
			}
		},
		Memory: memory(t, 1<<20), Finished: done.add, Repair: repairRecords,
	})
	if err != nil {
		t.Fatal(err)
	}
	add := func(blocks int) {
		for range blocks * w.blockSize >> 10 {
			copy(w.Reserve(1<<10), "record")
			w.Commit()
		}
	}
	add(1)
	w.Rotate()
	for deadline := time.Now().Add(time.Minute); done.count() == 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	add(6) // of eight
	close(gate)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if len(done.list) != 2 || done.list[0].Hurried != 0 || done.list[1].Hurried != 6*int64(w.blockSize) {
		t.Errorf("segments: %+v", done.list)
	}
}
