package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"capd/ctl/wire"
	"capd/daemon/spool"
)

// recover takes up what the last capd left: finished captures are listed again, what is
// undelivered is delivered, and captures that a kill cut are repaired to their last
// whole packet. Their rules are gone already: the kernel took them with the process.
func (d *Daemon) recover() error {
	orphans, err := d.spool.Orphans()
	if err != nil {
		return err
	}
	for _, id := range orphans {
		d.log.Warn("remove the folder of a capture that never started", "capture", id)
		if err := d.spool.RemoveCapture(id); err != nil {
			return err
		}
	}
	return spool.LoadRecords(d.spool, func(id string, rec *record) {
		c := &capture{id: id, d: d, log: d.log.With("capture", id), record: *rec, halted: make(chan struct{})}
		close(c.halted)
		rc := &c.record.Capture
		c.missing()
		switch {
		case rc.Status == wire.StatusPending || rc.Status == wire.StatusRunning:
			c.interrupted()
		case c.record.Gone && !finished(rc.Status):
			c.endGone()
			c.saveOrLog()
		case finished(rc.Status) && rc.Completed != nil:
			d.expireKept(c)
		}
		d.captures[id] = c
	}, func(id string, err error) {
		d.log.Error("a record cannot be read and is left alone", "capture", id, "err", err)
	})
}

// interrupted settles a capture that was running when its capd was killed.
func (c *capture) interrupted() {
	rec := &c.record.Capture
	names, err := c.d.spool.Files(c.id)
	if err != nil {
		c.log.Error("list the files of an interrupted capture", "err", err)
	}
	for _, name := range names {
		known := slices.ContainsFunc(rec.Files, func(f wire.File) bool { return f.Name == name })
		if known || name == c.record.manifestName() || name == wire.SignatureName {
			continue
		}
		if ext := filepath.Ext(name); ext == ".zst" || ext == ".age" {
			if f := c.cutFile(name); f.Bytes > 0 || f.Error != "" {
				rec.Files = append(rec.Files, f)
			} else {
				c.removeEmpty(name)
			}
			continue
		}
		segment, err := c.d.spool.Recover(c.id, name, repairer(rec.Format))
		if err != nil {
			c.log.Error("repair segment", "file", name, "err", err)
			rec.Files = append(rec.Files, wire.File{Name: name, Status: wire.FileFailed, Interrupted: true, Error: err.Error()})
			c.record.Refusal = unreadable(name, err)
			continue
		}
		if segment.Packets == 0 {
			c.removeEmpty(name) // a kill just after it was begun: no reader takes a head alone
			continue
		}
		f := wireFile(segment)
		f.Interrupted = true
		rec.Files = append(rec.Files, f)
		rec.Bytes.Captured += uint64(segment.Captured)
	}
	rec.Packets = wire.Packets{} // but for what the files hold nothing is known
	rec.Bytes.Written = 0
	for f := range filesHere(rec) {
		rec.Packets.Captured += f.Packets
		rec.Bytes.Written += f.Bytes
	}
	if r := rec.Removed; r != nil {
		rec.Packets.Captured += r.Packets
		rec.Bytes.Written += r.Bytes
	}
	rec.Stopped, rec.StopReason = now(), wire.StopInterrupted
	c.d.meter.halted(wire.StopInterrupted)
	rest := "the files end with the last packet that reached the disk"
	if c.record.InMemory {
		rest = "what it held in memory is lost"
		c.record.Gone = true
	}
	rec.Warnings = append(rec.Warnings, wire.Warning{Code: "interrupted",
		Message: fmt.Sprintf("capd was killed while the capture ran: %s, and what was matched and lost is not known; capd %s took it up again", rest, c.d.version)})
	switch {
	case c.record.Gone:
		c.endGone()
	case rec.Destination != "":
		rec.Status = wire.StatusDelivering
	default:
		c.finishLocked()
	}
	c.saveOrLog()
}

// missing notes the files that the record counts on and that are not here: those that a
// ring let go just before a kill, and, with a spool in memory, all that was not delivered.
func (c *capture) missing() {
	rec := &c.record.Capture
	var gone []string
	for i := range rec.Files {
		f := &rec.Files[i]
		if !here(f) {
			continue
		}
		_, err := c.d.fileSize(c.id, f.Name)
		if !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		f.Status = wire.FileRemoved
		gone = append(gone, f.Name)
		if c.length() > 0 && !c.record.InMemory {
			continue // its turn had come
		}
		c.record.Gone = true
		f.Error = "it is not on this box any more, and was not delivered"
		if c.record.InMemory {
			f.Error = "it was in memory only when capd ended, and is lost"
		}
		c.log.Error("a segment is lost", "file", f.Name, "packets", f.Packets, "err", f.Error)
	}
	for _, name := range gone {
		if f := c.fileLocked(name); f != nil {
			c.countRemovedLocked(f)
		}
	}
	if len(gone) > 0 && finished(rec.Status) {
		c.saveOrLog()
	}
}

// endGone ends a capture of which something is lost for good. No manifest is delivered:
// where one is, a capture is whole.
func (c *capture) endGone() {
	rec := &c.record.Capture
	var packets uint64
	if rec.Removed != nil {
		packets = rec.Removed.Packets
	}
	rec.Error = &wire.Problem{Code: wire.CodeInterrupted, Hint: "the files that were delivered before are whole",
		Message: fmt.Sprintf("capd ended before everything was delivered, and the rest was in memory only: %d packets in closed files are lost, and what the open one held", packets)}
	if !c.record.InMemory {
		rec.Error.Message = fmt.Sprintf("files with %d packets are not on this box any more, and were not delivered", packets)
	}
	c.finishLocked()
}

func (c *capture) removeEmpty(name string) {
	if err := c.d.spool.RemoveFile(c.id, name); err != nil {
		c.log.Error("remove an empty segment", "file", name, "err", err)
	}
}

// cutFile takes up a compressed or sealed segment that a kill has cut. What it holds can
// be read up to the cut; nothing here can, or should be able to, look inside.
func (c *capture) cutFile(name string) wire.File {
	f := wire.File{Name: name, Status: wire.FileSpooled, Interrupted: true, Cut: true}
	size, err := c.d.fileSize(c.id, name)
	if err != nil {
		f.Status, f.Error = wire.FileFailed, err.Error()
		c.record.Refusal = unreadable(name, err)
	}
	f.Bytes = uint64(size)
	return f
}

// unreadable is why a file cannot be delivered that cannot be read here.
func unreadable(name string, err error) *wire.Problem {
	return undelivered(name, wire.Problem{Code: wire.CodeInternal, Message: err.Error(), Hint: "check this box's disk (dmesg); the file is kept here"})
}
