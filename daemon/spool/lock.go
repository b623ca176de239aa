package spool

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// lock keeps a folder to this process, until unlocked or the process's end. A second capd
// there, in another network namespace perhaps, would take the first one's running captures
// for those of a killed one. The lock is on the folder itself (flock(2)), so that nothing is
// left behind. Where the file system has no such locks, as NFS has none on folders, there is none.
func (s *Spool) lock(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("lock folder: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		f.Close()
		return fmt.Errorf("%s is in use by another capd: give each one its own daemon.state_dir and spool.dir", dir)
	}
	if err != nil {
		f.Close()
		return nil
	}
	s.locks = append(s.locks, f)
	return nil
}

// Close gives the folders up to the next process; files that are open stay so.
func (s *Spool) Close() {
	for _, f := range s.locks {
		f.Close()
	}
	s.locks = nil
}
