package spool

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"capd/ctl/wire"
)

// ErrFull is why Admit refuses; it is an ENOSPC too.
var ErrFull error = full{}

type full struct{}

func (full) Error() string        { return "the spool is full" }
func (full) Is(target error) bool { return target == syscall.ENOSPC }

// slack is what a grant leaves free beyond limits.min_free_space, in bytes: for what is
// written without having been granted, which is the heads of segments and what a file
// system needs for a segment's extents and its folder.
const slack = 1 << 20

// Admit grants a segment n more bytes, unless the spool would then hold more than size
// bytes, or its file system have less than keep bytes free once all that was granted is
// written.
func (s *Spool) Admit(n, size, keep int64) error {
	if used := s.used.Add(n); used > size {
		s.used.Add(-n)
		return fmt.Errorf("%w: of the %s that limits.spool_size allows it holds %s, and the next block takes %s", ErrFull, wire.About(size), wire.About(used-n), wire.About(n))
	}
	if err := s.Reserve(n, keep); err != nil {
		s.used.Add(-n)
		return err
	}
	return nil
}

// Reserve sets n bytes of the file system aside until Written, as Admit does, but does not
// count them as used.
func (s *Spool) Reserve(n, keep int64) error {
	// What is written meanwhile is counted twice for a moment, never not at all.
	waiting := s.waiting.Add(n)
	_, free, err := s.Space()
	if err == nil && free-waiting-slack < keep {
		err = fmt.Errorf("%w: its %s has %s free, %s of them are granted already, and limits.min_free_space keeps %s", ErrFull, s.medium(), wire.About(free), wire.About(waiting-n), wire.About(keep))
	}
	if err != nil {
		s.waiting.Add(-n)
	}
	return err
}

// Written tells that n bytes of what Admit or Reserve granted are on the file system now,
// and missing in what it says is free, or that they never will be.
func (s *Spool) Written(n int64) { s.waiting.Add(-n) }

// Release gives back what Admit granted and is not on the disk, or not any more.
func (s *Spool) Release(n int64) { s.used.Add(-n) }

// Used is what segments take, in bytes, with what they were granted and have not filled.
func (s *Spool) Used() int64 { return s.used.Load() }

func (s *Spool) medium() string {
	if s.memory != nil {
		return "memory"
	}
	return "file system"
}

// Space tells the size of the spool's file system and what is free on it for this
// process, or, for a spool in memory, the memory that the process may use and what of it
// is available; in bytes.
func (s *Spool) Space() (total, free int64, err error) {
	if s.memory != nil {
		return memorySpace()
	}
	var st unix.Statfs_t
	if err := unix.Statfs(s.segments, &st); err != nil {
		return 0, 0, fmt.Errorf("statfs %s: %w", s.segments, err)
	}
	return int64(st.Blocks) * int64(st.Bsize), int64(st.Bavail) * int64(st.Bsize), nil // Bsize is 32 bits wide on some
}

// usage measures what the segments take, in bytes.
func (s *Spool) usage() (int64, error) {
	var total int64
	err := filepath.WalkDir(s.segments, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return ignoreGone(err)
		}
		info, err := d.Info()
		if err == nil {
			total += info.Size()
		}
		return ignoreGone(err)
	})
	return total, err
}
