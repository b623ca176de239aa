// Package spool keeps captures on the box until they are delivered: the segment files,
// one folder a capture, and the records that let a restarted daemon go on. It knows
// nothing of packets: whoever encodes them tells it lengths, counts and times.
package spool

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Spool is the two folders of a box: records (small files that hold no packet) and
// segments, which may be kept in memory instead. Its methods may be called from several
// goroutines for different captures.
type Spool struct {
	records  string
	segments string
	memory   *memoryFiles // nil: segments lie on the disk
	used     atomic.Int64 // bytes in segments, as admitted and not given back
	waiting  atomic.Int64 // bytes that were granted and are not on the file system yet
	locks    []*os.File   // the folders, open
}

// idPattern is what a capture's id looks like; nothing else is ever joined to a path.
var idPattern = regexp.MustCompile(`^[0-9a-f]{32}$`)

// namePattern is what a file in a capture's folder is called.
var namePattern = regexp.MustCompile(`^[0-9a-z][0-9a-zA-Z._-]{0,79}$`)

// Open makes the folders (mode 0700) where they are missing: records under
// stateDir/captures, segments under segmentDir. With inMemory no segment is ever written
// below segmentDir, which is not made; what an earlier life has left there is still found.
// Folders that another process has opened so are refused, until it ends or calls Close.
func Open(stateDir, segmentDir string, inMemory bool) (_ *Spool, err error) {
	s := &Spool{records: filepath.Join(stateDir, "captures"), segments: segmentDir}
	dirs := []string{stateDir, s.records}
	if inMemory {
		s.memory = newMemoryFiles()
	} else {
		dirs = append(dirs, s.segments)
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make state folder: %w", unusable(dir, err))
		}
	}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	for _, dir := range dirs {
		if err := s.lock(dir); err != nil {
			return nil, err
		}
		if err := writable(dir); err != nil {
			return nil, err
		}
	}
	if err := s.sweep(); err != nil {
		return nil, err
	}
	used, err := s.usage()
	if err != nil {
		return nil, fmt.Errorf("measure the spool: %w", err)
	}
	s.used.Store(used)
	return s, nil
}

// writable tells early what else each capture would fail by. A full disk is no reason
// not to start: what is to be delivered makes room.
func writable(dir string) error {
	probe, err := os.MkdirTemp(dir, ".probe-")
	switch {
	case err == nil:
		return os.Remove(probe)
	case errors.Is(err, unix.EROFS), errors.Is(err, fs.ErrPermission):
		return unusable(dir, err)
	}
	return nil
}

// unusable adds the mend to an error of a folder.
func unusable(dir string, err error) error {
	switch {
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w (under the package's unit: systemctl edit capd.service, [Service] ReadWritePaths=%s)", err, dir)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w (make the folder and give it to capd's user: install -d -m 700 -o capd -g capd %s)", err, dir)
	}
	return err
}

// sweep deletes what a kill has left of writeWhole.
func (s *Spool) sweep() error {
	entries, err := os.ReadDir(s.records)
	if err != nil {
		return fmt.Errorf("read records: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), unfinished) {
			if err := os.Remove(filepath.Join(s.records, e.Name())); err != nil {
				return fmt.Errorf("remove an unfinished record: %w", err)
			}
		}
	}
	return nil
}

// unfinished begins the names of writeWhole's temporary files.
const unfinished = ".new-"

// InMemory tells whether segments are kept in memory only.
func (s *Spool) InMemory() bool { return s.memory != nil }

// Folder is the capture's folder for segments on the disk. It need not exist.
func (s *Spool) Folder(id string) string { return filepath.Join(s.segments, id) }

// Create makes a place for the capture's segments.
func (s *Spool) Create(id string) error {
	if !idPattern.MatchString(id) {
		return fmt.Errorf("capture id %q is not 32 hexadecimal digits", id)
	}
	if s.memory != nil {
		return nil
	}
	if err := os.Mkdir(s.Folder(id), 0o700); err != nil {
		return fmt.Errorf("make spool folder: %w", err)
	}
	return nil
}

// Creator gives what makes the files of a capture's segments (Options.Create).
func (s *Spool) Creator(id string) func(name string) (*os.File, error) {
	if s.memory != nil {
		return func(name string) (*os.File, error) { return s.memory.create(id, name) }
	}
	return InFolder(s.Folder(id))
}

// InFolder makes segments' files in a folder, which must exist (Options.Create).
func InFolder(dir string) func(name string) (*os.File, error) {
	return func(name string) (*os.File, error) {
		const flags = os.O_RDWR | os.O_CREATE | os.O_EXCL
		path := filepath.Join(dir, name)
		f, err := os.OpenFile(path, flags|unix.O_DIRECT, 0o600)
		if errors.Is(err, unix.EINVAL) {
			os.Remove(path) // some file systems make the file before they refuse the flag
			f, err = os.OpenFile(path, flags, 0o600)
		}
		return f, err
	}
}

// OpenFile opens a file of a capture for reading. The error is fs.ErrNotExist where it
// is gone or never was.
func (s *Spool) OpenFile(id, name string) (*os.File, error) {
	if !idPattern.MatchString(id) || !namePattern.MatchString(name) {
		return nil, fmt.Errorf("file %q: %w", name, fs.ErrNotExist)
	}
	if s.memory != nil {
		if f, err := s.memory.open(id, name); !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
	}
	f, err := os.Open(s.besidePath(id, name))
	if errors.Is(err, fs.ErrNotExist) {
		f, err = os.Open(filepath.Join(s.Folder(id), name))
	}
	return f, err
}

// RemoveFile deletes a file of a capture; one that is not there is no error. When it
// returns, the deletion is durable.
func (s *Spool) RemoveFile(id, name string) error {
	if !idPattern.MatchString(id) || !namePattern.MatchString(name) {
		return fmt.Errorf("file %q: %w", name, fs.ErrNotExist)
	}
	if s.memory != nil {
		s.Release(s.memory.remove(id, name))
	}
	if err := removeDurably(s.besidePath(id, name)); err != nil {
		return err
	}
	path := filepath.Join(s.Folder(id), name)
	info, err := os.Stat(path)
	if err != nil {
		return ignoreGone(err)
	}
	if err := removeDurably(path); err != nil {
		return err
	}
	s.Release(info.Size())
	return nil
}

func removeDurably(path string) error {
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove from spool: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

// WriteFile keeps a small file that holds no packet, whole or not at all. It lies beside
// the capture's record, on the disk in any case, and is not counted as used.
func (s *Spool) WriteFile(id, name string, data []byte) error {
	if !idPattern.MatchString(id) || !namePattern.MatchString(name) {
		return fmt.Errorf("write file %q: %w", name, fs.ErrInvalid)
	}
	return writeWhole(s.besidePath(id, name), data)
}

// besidePath is where WriteFile keeps a file. No record has such a name (LoadRecords).
func (s *Spool) besidePath(id, name string) string { return filepath.Join(s.records, id+"."+name) }

// RemoveCapture deletes a capture's folder with all that is in it, and its record.
func (s *Spool) RemoveCapture(id string) error {
	if !idPattern.MatchString(id) {
		return fmt.Errorf("capture id %q is not 32 hexadecimal digits", id)
	}
	if err := s.RemoveFolder(id); err != nil {
		return err
	}
	if err := os.Remove(s.recordPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove record: %w", err)
	}
	return nil
}

// RemoveFolder deletes all files of a capture but not its record.
func (s *Spool) RemoveFolder(id string) error {
	if !idPattern.MatchString(id) {
		return fmt.Errorf("capture id %q is not 32 hexadecimal digits", id)
	}
	if s.memory != nil {
		s.Release(s.memory.removeAll(id))
	}
	beside, err := os.ReadDir(s.records)
	if err != nil {
		return fmt.Errorf("remove spool folder: %w", err)
	}
	for _, e := range beside {
		if name, ok := strings.CutPrefix(e.Name(), id+"."); ok && name != "json" {
			if err := removeDurably(s.besidePath(id, name)); err != nil {
				return err
			}
		}
	}
	names, err := s.Files(id)
	if err != nil {
		return fmt.Errorf("remove spool folder: %w", err)
	}
	for _, name := range names {
		if info, err := os.Stat(filepath.Join(s.Folder(id), name)); err == nil {
			s.Release(info.Size())
		}
	}
	if err := os.RemoveAll(s.Folder(id)); err != nil {
		return fmt.Errorf("remove spool folder: %w", err)
	}
	return nil
}

// Files lists the names of a capture's segments on the disk, sorted.
func (s *Spool) Files(id string) ([]string, error) {
	entries, err := os.ReadDir(s.Folder(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// Orphans lists captures that have a folder but no record: what a kill between the
// making of the two left behind.
func (s *Spool) Orphans() ([]string, error) {
	entries, err := os.ReadDir(s.segments)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil // a spool in memory has no folder
		}
		return nil, fmt.Errorf("read spool: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if !e.IsDir() || !idPattern.MatchString(e.Name()) {
			continue
		}
		if _, err := os.Stat(s.recordPath(e.Name())); errors.Is(err, fs.ErrNotExist) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

func (s *Spool) recordPath(id string) string { return filepath.Join(s.records, id+".json") }

// SaveRecord writes a capture's record, whole or not at all, and durably.
func (s *Spool) SaveRecord(id string, record any) error {
	if !idPattern.MatchString(id) {
		return fmt.Errorf("capture id %q is not 32 hexadecimal digits", id)
	}
	data, err := json.MarshalIndent(record, "", "  ")
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	return writeWhole(s.recordPath(id), append(data, '\n'))
}

// LoadRecords reads every record into a new T and hands it over with its id. A record
// that cannot be read is reported through bad and left where it is.
func LoadRecords[T any](s *Spool, each func(id string, record *T), bad func(id string, err error)) error {
	entries, err := os.ReadDir(s.records)
	if err != nil {
		return fmt.Errorf("read records: %w", err)
	}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || !idPattern.MatchString(id) {
			continue
		}
		record := new(T)
		data, err := os.ReadFile(s.recordPath(id))
		if err == nil {
			err = json.Unmarshal(data, record)
		}
		if err != nil {
			bad(id, fmt.Errorf("record %s: %w", s.recordPath(id), err))
			continue
		}
		each(id, record)
	}
	return nil
}

// ignoreGone lets a walk pass over what is deleted under it.
func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Recover cuts a segment that a kill left open down to its last whole packet and makes
// it durable.
func (s *Spool) Recover(id, name string, repair RepairFunc) (Segment, error) {
	path := filepath.Join(s.Folder(id), name)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return Segment{}, fmt.Errorf("recover segment: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Segment{}, fmt.Errorf("recover segment: %w", err)
	}
	found, err := repair(f, info.Size())
	if err != nil {
		return Segment{}, fmt.Errorf("recover segment %s: %w", name, err)
	}
	if err := f.Truncate(found.Bytes); err != nil {
		return Segment{}, fmt.Errorf("recover segment: %w", err)
	}
	if err := f.Sync(); err != nil {
		return Segment{}, fmt.Errorf("recover segment: %w", err)
	}
	return Segment{Name: name, Bytes: found.Bytes, Packets: found.Packets, Captured: found.Captured, First: found.First, Last: found.Last}, nil
}

// writeWhole replaces a file: temporary name, sync, rename, sync of the folder.
func writeWhole(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), unfinished+"*")
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	return nil
}
