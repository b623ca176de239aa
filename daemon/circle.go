package daemon

import (
	"context"
	"iter"
	"os"
	"slices"
	"time"

	"capd/ctl/wire"
)

// A capture with a ring keeps its newest segments only, the open one included: before the
// file of the next is made, the oldest one goes. Delivered segments are gone from the box
// anyway; so with a destination an undelivered one goes only when there would be too many,
// or, with a destination or without, when the spool has no room for the next. One that is
// being sent is spared as long as another can go.

// length is how many segments the capture's ring has; 0 = it has none.
func (c *capture) length() int {
	if r := c.record.Capture.Ring; r != nil { // never changes
		return int(*r)
	}
	return 0
}

// here tells whether a closed file is on this box and counts for the ring.
func here(f *wire.File) bool {
	return f.Status == wire.FileSpooled || f.Status == wire.FileUploading || f.Status == wire.FileFailed
}

// filesHere gives a capture's files without those that were removed.
func filesHere(c *wire.Capture) iter.Seq[*wire.File] {
	return func(yield func(*wire.File) bool) {
		for i := range c.Files {
			if f := &c.Files[i]; f.Status != wire.FileRemoved && !yield(f) {
				return
			}
		}
	}
}

// create makes the file of the next segment (spool.Options.Create).
func (c *capture) create(name string) (*os.File, error) {
	for c.tooLong() && c.letGo(false) {
	}
	c.trimLater()
	return c.d.spool.Creator(c.id)(name)
}

// trimLater brings the ring to its length on a goroutine of its own, if it is too long.
func (c *capture) trimLater() {
	if c.tooLong() {
		c.trimming.Go(func() {
			for c.tooLong() && c.letGo(true) {
			}
		})
	}
}

func (c *capture) tooLong() bool {
	if c.length() == 0 {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.open)
	for f := range filesHere(&c.record.Capture) {
		if here(f) {
			n++
		}
	}
	return n > c.length()
}

// giveUpDelivery begins to give up the oldest segment of a ring although it is being
// delivered. It tells whether there is one.
func (c *capture) giveUpDelivery() bool {
	if c.length() == 0 {
		return false
	}
	c.mu.Lock()
	left := slices.ContainsFunc(c.record.Capture.Files, func(f wire.File) bool { return here(&f) })
	c.mu.Unlock()
	if left && c.giving.CompareAndSwap(false, true) {
		c.trimming.Go(func() {
			defer c.giving.Store(false)
			c.letGo(true)
		})
	}
	return left
}

// How long the end of a delivery is waited for.
const (
	giveUpAtOnce = 20 * time.Millisecond // by the engine
	giveUpWithin = 30 * time.Second      // by a goroutine that has time
)

// letGo removes the oldest closed segment that is still here; it tells whether there was
// one. One that is being delivered is passed over, unless patient and no other is there:
// then its delivery is ended first.
func (c *capture) letGo(patient bool) bool {
	name, queued, ok := c.chooseOldest(patient)
	if !ok {
		return false
	}
	if queued {
		within := giveUpAtOnce
		if patient {
			within = giveUpWithin
		}
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		if err := c.d.queue.Forget(ctx, c.id+"/"+name); err != nil {
			c.takeBack(name)
			return false
		}
	}
	return c.discard(name)
}

// chooseOldest marks a segment as removed, so that nobody begins to deliver it.
func (c *capture) chooseOldest(busyToo bool) (name string, queued, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	files := c.record.Capture.Files
	i := slices.IndexFunc(files, func(f wire.File) bool { return here(&f) && f.Status != wire.FileUploading })
	if i < 0 && busyToo {
		i = slices.IndexFunc(files, func(f wire.File) bool { return here(&f) })
	}
	if i < 0 {
		return "", false, false
	}
	files[i].Status, files[i].NextAttempt = wire.FileRemoved, nil
	return files[i].Name, c.queued[files[i].Name] != nil, true
}

// takeBack unmarks a segment whose delivery would not end.
func (c *capture) takeBack(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.fileLocked(name); f != nil && f.Status == wire.FileRemoved {
		f.Status = wire.FileUploading
	}
}

// discard deletes a segment that chooseOldest has marked, and counts it, unless it was
// delivered at the last moment. The record is saved with the next segment: until then a
// restart finds the file missing, and says the same (see missing).
func (c *capture) discard(name string) bool {
	c.mu.Lock()
	f := c.fileLocked(name)
	if f == nil || f.Status != wire.FileRemoved {
		c.mu.Unlock()
		return true
	}
	delete(c.queued, name)
	c.countRemovedLocked(f)
	c.mu.Unlock()
	if err := c.d.spool.RemoveFile(c.id, name); err != nil {
		c.log.Error("remove the oldest segment of a ring", "file", name, "err", err)
		return false
	}
	return true
}

func (c *capture) fileLocked(name string) *wire.File {
	files := c.record.Capture.Files
	if i := slices.IndexFunc(files, func(f wire.File) bool { return f.Name == name }); i >= 0 {
		return &files[i]
	}
	return nil
}

// countRemovedLocked adds a file to the sum of those that were removed, and drops the
// oldest of them from the list when they are many: a ring can turn for days.
func (c *capture) countRemovedLocked(f *wire.File) {
	rec := &c.record.Capture
	if rec.Removed == nil {
		rec.Removed = &wire.Removed{}
	}
	rec.Removed.Files++
	rec.Removed.Packets += f.Packets
	rec.Removed.Bytes += f.Bytes
	listed := 0
	for i := len(rec.Files) - 1; i >= 0; i-- {
		if rec.Files[i].Status != wire.FileRemoved {
			continue
		}
		if listed++; listed > wire.RemovedListed {
			rec.Files = slices.Delete(rec.Files, i, i+1)
		}
	}
}
