package spool

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// memoryFiles keeps segments in memory that no path leads to (memfd_create(2)): it goes with
// the process, and what reads a segment takes a descriptor as it does of one on a disk.
type memoryFiles struct {
	mu    sync.Mutex
	files map[string]map[string]*os.File // by capture and name
}

func newMemoryFiles() *memoryFiles { return &memoryFiles{files: map[string]map[string]*os.File{}} }

// create makes a segment and gives a descriptor of its own to write it with.
func (m *memoryFiles) create(id, name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	kept := os.NewFile(uintptr(fd), name)
	own, err := reopen(kept, os.O_RDWR)
	if err != nil {
		kept.Close()
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.files[id] == nil {
		m.files[id] = map[string]*os.File{}
	}
	m.files[id][name] = kept
	return own, nil
}

// reopen gives a descriptor with an offset and rights of its own.
func reopen(f *os.File, flags int) (*os.File, error) {
	return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), flags, 0)
}

// open gives a segment for reading, or fs.ErrNotExist.
func (m *memoryFiles) open(id, name string) (*os.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.files[id][name]
	if f == nil {
		return nil, fmt.Errorf("segment %q: %w", name, fs.ErrNotExist)
	}
	return reopen(f, os.O_RDONLY)
}

// remove forgets a segment and gives its length in bytes, 0 where there is none. Its
// memory is free when its last reader has closed it.
func (m *memoryFiles) remove(id, name string) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.files[id][name]
	if f == nil {
		return 0
	}
	delete(m.files[id], name)
	return closeSized(f)
}

// removeAll forgets a capture's segments and gives their length in bytes.
func (m *memoryFiles) removeAll(id string) (total int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range m.files[id] {
		total += closeSized(f)
	}
	delete(m.files, id)
	return total
}

func closeSized(f *os.File) int64 {
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}

// memorySpace tells the memory that this process may use and what of it is available, in
// bytes: the machine's (proc(5), /proc/meminfo), or less where a control group above the
// process has a bound (Documentation/admin-guide/cgroup-v2.rst, memory.max).
func memorySpace() (total, available int64, err error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, 0, fmt.Errorf("read the memory's size: %w", err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), ":")
		n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		switch {
		case err != nil:
		case key == "MemTotal":
			total = n << 10
		case key == "MemAvailable":
			available = n << 10
		}
	}
	if total == 0 || available == 0 {
		return 0, 0, errors.New("read the memory's size: /proc/meminfo does not tell it")
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return total, available, nil // no control groups
	}
	group, ok := strings.CutPrefix(strings.TrimSpace(string(own)), "0::")
	for ok && group != "/" && group != "." {
		if most, err := readNumber("/sys/fs/cgroup" + group + "/memory.max"); err == nil {
			total = min(total, most)
			if current, err := readNumber("/sys/fs/cgroup" + group + "/memory.current"); err == nil {
				available = min(available, max(0, most-current))
			}
		}
		group = path.Dir(group)
	}
	return total, available, nil
}

func readNumber(file string) (int64, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
}
