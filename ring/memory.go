package ring

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// hugePage is the size that transparent huge pages have on the machines this runs on;
// areas of at least that size ask for them (Documentation/admin-guide/mm/transhuge.rst).
const hugePage = 2 << 20

// Memory is a page-aligned area outside Go's heap. It is populated: every page is there
// from the start, so that neither a page fault nor a lack of memory can hit the hot path.
// It is left out of core dumps.
type Memory struct {
	area []byte // what Free unmaps
	use  []byte
}

// Alloc gives an area of the given number of bytes, 1 or more, rounded up to whole pages
// and filled with zeros. The area belongs to the caller until Free.
func Alloc(bytes int) (*Memory, error) {
	if bytes < 1 {
		return nil, fmt.Errorf("allocate %d bytes: not a positive number", bytes)
	}
	page := os.Getpagesize()
	size := (bytes + page - 1) &^ (page - 1)
	area, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("mmap %d bytes: %w", size, err)
	}
	if size >= hugePage {
		_ = unix.Madvise(area, unix.MADV_HUGEPAGE) // fewer TLB misses where the kernel has it
	}
	_ = unix.Madvise(area, unix.MADV_DONTDUMP) // packets have no place in a core dump
	if err := populate(area); err != nil {
		_ = unix.Munmap(area)
		return nil, fmt.Errorf("populate %d bytes: %w", size, err)
	}
	return &Memory{area: area, use: area[:size:size]}, nil
}

// populate makes every page exist. It reports ENOMEM where touching the pages would have
// killed the process.
func populate(area []byte) error {
	for {
		switch err := unix.Madvise(area, unix.MADV_POPULATE_WRITE); err {
		case nil:
			return nil
		case unix.EINTR, unix.EAGAIN:
		case unix.EINVAL: // before Linux 5.14
			for i := 0; i < len(area); i += os.Getpagesize() {
				area[i] = 0
			}
			return nil
		default:
			return err
		}
	}
}

// Bytes is the area. It must not be used after Free.
func (m *Memory) Bytes() []byte { return m.use }

// Free gives the area back to the kernel. Nobody may use it from then on. A second call,
// and a call on nil, do nothing.
func (m *Memory) Free() {
	if m == nil || m.area == nil {
		return
	}
	_ = unix.Munmap(m.area)
	m.area, m.use = nil, nil
}
