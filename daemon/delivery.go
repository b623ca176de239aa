package daemon

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"time"

	"capd/ctl/wire"
	"capd/daemon/deliver"
)

func (d *Daemon) stopDelivery() {
	d.queue.Close()
	d.client.Close()
}

// deliver hands the queue what a capture has ready: segments as they are finished, then,
// when the capture has ended and all of them are proven to be there, the manifest, and
// last its signature. It may be called at any time and does only what is due.
func (d *Daemon) deliver(c *capture) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rec := &c.record.Capture
	if rec.Destination == "" || finished(rec.Status) {
		return
	}
	for i := range rec.Files {
		if rec.Files[i].Status == wire.FileSpooled {
			d.enqueueLocked(c, rec.Files[i].Name, rec.Files[i].Attempts)
		}
	}
	if rec.Status != wire.StatusDelivering {
		return
	}
	var failed *wire.Problem
	for _, f := range rec.Files {
		switch f.Status {
		case wire.FileDelivered, wire.FileRemoved:
		case wire.FileFailed:
			failed = undelivered(f.Name, wire.Problem{Code: wire.CodeDestinationRefused, Message: f.Error})
		default:
			return
		}
	}
	if failed != nil {
		if c.record.Refusal != nil {
			failed = c.record.Refusal // says more
		}
		c.failLocked(failed)
		return
	}
	d.closingFilesLocked(c)
}

// manifestName is what the capture's manifest is called.
func (r *record) manifestName() string {
	if r.Sealed {
		return wire.SealedManifestName
	}
	return wire.ManifestName
}

// makeManifest writes the manifest as it is to be delivered, and gives its bytes.
func (d *Daemon) makeManifest(c *capture) ([]byte, error) {
	data, err := d.buildManifest(&c.record)
	if err != nil {
		return nil, err
	}
	sealing, err := sealingOf(d.config().Destinations[c.record.Capture.Destination])
	if err != nil {
		return nil, err
	}
	if c.record.Sealed = sealing.Sealed(); c.record.Sealed {
		if data, err = sealing.Whole(data); err != nil {
			return nil, err
		}
	}
	return data, d.spool.WriteFile(c.id, c.record.manifestName(), data)
}

// closingFilesLocked delivers manifest and signature, one after the other. The signature
// is of the manifest's bytes as they are delivered, so that who cannot open a sealed one
// can check it all the same.
func (d *Daemon) closingFilesLocked(c *capture) {
	switch c.record.Manifest {
	case "":
		data, err := d.makeManifest(c)
		var signature []byte
		if err == nil {
			signature, err = d.signer.sign(data)
		}
		if err == nil {
			err = d.spool.WriteFile(c.id, wire.SignatureName, signature)
		}
		if err != nil {
			c.log.Error("make the manifest", "err", err)
			c.failLocked(undelivered(c.record.manifestName(), wire.Problem{Code: wire.CodeInternal, Message: err.Error(), Hint: "journalctl -u capd says more"}))
			return
		}
		c.record.Manifest = manifestSpooled
		d.enqueueLocked(c, c.record.manifestName(), 0)
	case manifestSpooled:
		d.enqueueLocked(c, c.record.manifestName(), 0)
	case manifestSigning:
		d.enqueueLocked(c, wire.SignatureName, 0)
	case manifestDelivered:
		if err := d.spool.RemoveFolder(c.id); err != nil {
			c.log.Error("remove what was delivered", "err", err)
			c.failLocked(undelivered(c.record.manifestName(), wire.Problem{Code: wire.CodeInternal, Message: err.Error(), Hint: "journalctl -u capd says more"}))
			return
		}
		c.finishLocked()
		c.tellEndLocked()
		c.log.Info("capture is delivered", "files", len(c.record.Capture.Files), "bytes", c.record.Capture.Bytes.Delivered)
	}
	go c.saveOrLog()
}

// undelivered is what stands in a capture's record of a file that was not delivered.
func undelivered(name string, why wire.Problem) *wire.Problem {
	why.Message = name + " is not delivered: " + why.Message
	return &why
}

// failLocked ends a delivery that only a person can mend: what to do, and then a retry.
func (c *capture) failLocked(why *wire.Problem) {
	rec := &c.record.Capture
	rec.Status, rec.Completed = wire.StatusFailed, now()
	mend := cmp.Or(why.Hint, "mend the destination")
	rec.Error = &wire.Problem{Code: why.Code, Message: why.Message, Hint: mend + "; then: capctl retry " + c.id[:8]}
	c.d.expireLater(c)
	c.tellEndLocked()
	c.log.Error("delivery failed", "err", why.Message, "code", why.Code)
	go c.saveOrLog()
}

// enqueueLocked gives the queue one file, once.
func (d *Daemon) enqueueLocked(c *capture, name string, attempts int) {
	if c.queued[name] != nil {
		return
	}
	if c.queued == nil {
		c.queued = map[string]chan struct{}{}
	}
	handed := make(chan struct{})
	c.queued[name] = handed
	rec := &c.record.Capture
	job := deliver.Job{
		Key: c.id + "/" + name,
		Put: deliver.Put{
			Destination: rec.Destination,
			Vars:        deliver.Vars{Host: d.host, ID: c.id, Name: rec.Name, File: name, Time: rec.Submitted.Time, Labels: rec.Labels},
		},
		Attempts: attempts,
		Open:     func() (*os.File, error) { return d.spool.OpenFile(c.id, name) },
		Changed:  func(u deliver.Update) { c.delivered(name, u, u.State != deliver.StateDelivered) },
	}
	go func() {
		defer close(handed)
		var err error
		if job.Put.Size, err = d.fileSize(c.id, name); err == nil {
			err = d.queue.Enqueue(job)
		}
		if err != nil {
			c.delivered(name, deliver.Update{State: deliver.StateFailed, Attempts: attempts, Err: deliver.Fail(deliver.ReasonLocal, err, "hand the file over")}, false)
		}
	}()
}

// inQueue gives the names of the files that the queue has. It waits for those that are
// being handed over.
func (c *capture) inQueue() []string {
	for {
		c.mu.Lock()
		names := slices.Collect(maps.Keys(c.queued))
		var handing chan struct{}
		for _, handed := range c.queued {
			select {
			case <-handed:
			default:
				handing = handed
			}
		}
		c.mu.Unlock()
		if handing == nil {
			return names
		}
		<-handing
	}
}

func (d *Daemon) fileSize(id, name string) (int64, error) {
	f, err := d.spool.OpenFile(id, name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// delivered takes note of what became of a file, which the queue has further on or not, and
// goes on to the next step. The record
// says durably that a file is delivered before the local copy is deleted: a kill between
// the two leaves a copy too many, which the next start deletes, never a file too few.
func (c *capture) delivered(name string, u deliver.Update, queued bool) {
	c.mu.Lock()
	if !queued {
		delete(c.queued, name)
	}
	rec := &c.record.Capture
	c.d.meter.delivery(rec.Destination, c.id, name, u)
	if u.State == deliver.StateWaiting {
		c.log.Warn("not delivered yet: it is kept, and tried again", "file", name, "destination", rec.Destination, "attempts", u.Attempts, "err", u.Err, "next", u.Next.UTC())
	}
	if u.Err != nil {
		c.d.checks.note(rec.Destination, false)
		if u.State == deliver.StateFailed {
			c.record.Refusal = undelivered(name, *u.Err.Problem())
		}
	}
	if i := slices.IndexFunc(rec.Files, func(f wire.File) bool { return f.Name == name }); i >= 0 {
		noteDelivery(&rec.Files[i], u)
		if u.State == deliver.StateDelivered {
			rec.Bytes.Delivered += rec.Files[i].Bytes
		}
		c.tellLocked(wire.EventFile, &rec.Files[i])
	} else if name == c.record.manifestName() || name == wire.SignatureName {
		c.noteClosingFile(name, u)
	}
	c.mu.Unlock()
	if err := c.save(); err != nil {
		c.log.Error("save record", "err", err)
	} else if u.State == deliver.StateDelivered {
		if err := c.d.spool.RemoveFile(c.id, name); err != nil {
			c.log.Error("remove a delivered file", "file", name, "err", err)
		}
	}
	c.d.deliver(c)
}

// noteDelivery brings a file's entry up to date.
func noteDelivery(f *wire.File, u deliver.Update) {
	if f.Status == wire.FileRemoved && u.State != deliver.StateDelivered {
		return // given up meanwhile
	}
	f.Attempts, f.NextAttempt = u.Attempts, nil
	switch u.State {
	case deliver.StateSending:
		f.Status = wire.FileUploading
	case deliver.StateWaiting:
		f.Status, f.Error, f.NextAttempt = wire.FileSpooled, u.Err.Message, &wire.Time{Time: u.Next.UTC()}
	case deliver.StateFailed:
		f.Status, f.Error = wire.FileFailed, u.Err.Message
	case deliver.StateDelivered:
		f.Status, f.Error, f.Delivered = wire.FileDelivered, "", now()
		f.SHA256 = u.Result.SHA256
		if f.SHA256Plain == "" && !f.Cut { // neither compressed nor sealed
			f.SHA256Plain = u.Result.SHA256
		}
		f.Verified, f.URL = u.Result.Verified, u.Result.URL
	}
}

// noteClosingFile follows the manifest and its signature, which are in no file list.
func (c *capture) noteClosingFile(name string, u deliver.Update) {
	switch {
	case u.State == deliver.StateDelivered && name == c.record.manifestName():
		c.record.Manifest = manifestSigning
	case u.State == deliver.StateDelivered && name == wire.SignatureName:
		c.record.Manifest = manifestDelivered
	case u.State == deliver.StateFailed:
		c.failLocked(c.record.Refusal)
	case u.State == deliver.StateWaiting:
		c.record.Capture.Error = &wire.Problem{Code: u.Err.Code, Message: name + ": " + u.Err.Message, Hint: u.Err.Hint}
	}
	if u.State == deliver.StateDelivered {
		c.record.Capture.Error = nil
	}
}

// Retry delivers again, at once, what is not delivered (api.Daemon).
func (d *Daemon) Retry(_ context.Context, ref string) (wire.Capture, error) {
	c, err := d.find(ref)
	if err != nil {
		return wire.Capture{}, err
	}
	waiting := c.inQueue()
	c.mu.Lock()
	rec := &c.record.Capture
	if rec.Destination == "" {
		c.mu.Unlock()
		return wire.Capture{}, &wire.Error{Status: http.StatusConflict, Code: wire.CodeConflict,
			Message: "the capture has no destination", Hint: "fetch its files: capctl download " + c.id[:8]}
	}
	if c.record.Gone {
		message := "what is not delivered is not on this box any more"
		if rec.Error != nil {
			message = rec.Error.Message
		}
		c.mu.Unlock()
		return wire.Capture{}, &wire.Error{Status: http.StatusConflict, Code: wire.CodeConflict, Message: message, Hint: "there is nothing left to deliver: capctl rm --force " + c.id[:8]}
	}
	if rec.Status == wire.StatusFailed && c.record.Manifest != manifestDelivered {
		rec.Status, rec.Completed, rec.Error = wire.StatusDelivering, nil, nil
		c.record.Refusal = nil
		for i := range rec.Files {
			if rec.Files[i].Status == wire.FileFailed {
				rec.Files[i].Status, rec.Files[i].Error = wire.FileSpooled, ""
			}
		}
	}
	c.mu.Unlock()
	for _, name := range waiting {
		d.queue.Retry(c.id + "/" + name) // one that has left the queue since then is delivered
	}
	c.saveOrLog()
	d.deliver(c)
	return c.snapshot(), nil
}

// resumeDelivery goes on with what the last capd did not finish, and says how much it is.
func (d *Daemon) resumeDelivery() {
	if u := d.Status().Undelivered; u.Files > 0 || u.Failed > 0 {
		d.log.Warn("files of earlier captures are not delivered yet", "files", u.Files, "bytes", u.Bytes, "failed", u.Failed)
	}
	for _, c := range d.captures {
		c.mu.Lock()
		for i := range c.record.Capture.Files {
			switch f := &c.record.Capture.Files[i]; f.Status {
			case wire.FileUploading:
				f.Status = wire.FileSpooled
			case wire.FileDelivered:
				if err := d.spool.RemoveFile(c.id, f.Name); err != nil {
					c.log.Error("remove a delivered file", "file", f.Name, "err", err)
				}
			}
		}
		c.mu.Unlock()
		d.deliver(c)
	}
}

// awaitDelivery gives a stopping capd's deliveries a while: until all is delivered, or
// nothing is under way because each file waits for a better time.
func (d *Daemon) awaitDelivery(grace time.Duration) {
	const idle = 2 * time.Second
	deadline, moved := time.Now().Add(grace), time.Now()
	for now := moved; now.Before(deadline) && now.Sub(moved) < idle; now = time.Now() {
		left := false
		for _, c := range d.List(true) {
			if c.Status != wire.StatusDelivering {
				continue
			}
			left = true
			if slices.ContainsFunc(c.Files, func(f wire.File) bool { return f.Status == wire.FileUploading }) {
				moved = now
			}
		}
		if !left {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// forgetDelivery takes a capture's files out of the queue.
func (d *Daemon) forgetDelivery(ctx context.Context, c *capture) error {
	for _, name := range c.inQueue() {
		if err := d.queue.Forget(ctx, c.id+"/"+name); err != nil {
			return fmt.Errorf("end the delivery of %s: %w", name, err)
		}
	}
	return nil
}
