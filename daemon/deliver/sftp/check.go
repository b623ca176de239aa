package sftp

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path"
	"strings"

	"capd/ctl/wire"
	"capd/daemon/deliver"
)

// Check implements deliver.Store. The probe goes the whole way of a file: folder,
// temporary name, fsync, reading back, publishing.
func (s *Store) Check(ctx context.Context) wire.Check {
	var steps deliver.Steps
	c, err := s.connect(ctx, &steps)
	if err != nil {
		step := deliver.StepConnect
		var at *stepError
		if errors.As(err, &at) {
			step = at.step
		}
		return steps.Fail(step, deliver.Classify(ctx, err, "connect to %s", s.p.Address))
	}
	if err := s.adopt(c); err != nil {
		return steps.Fail(deliver.StepConnect, deliver.Classify(ctx, err, "connect to %s", s.p.Address))
	}
	defer s.drop(c)
	if s.p.Verify == deliver.VerifyChecksum {
		return steps.Fail(deliver.StepVerify, errNoChecksum())
	}
	if s.p.Probe == deliver.ProbeNone {
		return steps.Done()
	}
	s.probe(ctx, c, &steps)
	return steps.Check
}

// probe writes a file, reads it back and removes it, with its folder.
func (s *Store) probe(ctx context.Context, c *session, steps *deliver.Steps) {
	ctx, watch := deliver.NewWatch(ctx, s.env.Timeouts.Progress)
	defer watch.Stop()
	watch.Follow(c.conn)
	defer c.endWith(ctx)()

	base := c.absolute(deliver.FixedFolder(s.p.Path))
	name := ".capd-probe-" + random()
	dir := base
	if strings.Contains(strings.TrimPrefix(s.p.Path[len(deliver.FixedFolder(s.p.Path)):], "/"), "/") {
		dir = path.Join(base, name) // the deliveries make folders too
	}
	body := "capd was here to see whether it may write.\n" + name + "\n"
	o := deliver.Object{Path: path.Join(dir, name), Tag: "probe", Body: strings.NewReader(body), Size: int64(len(body)), SHA256: sha256.Sum256([]byte(body))}
	p := &putting{s: s, c: c, o: o, watch: watch, final: o.Path, folder: dir}
	fail := func(step string, err error) { steps.Fail(step, p.classify(ctx, err)) }

	remove := func() error {
		watch.Touch()
		err := c.sftp.Remove(o.Path)
		if dir != base {
			s.mu.Lock()
			delete(s.folders, dir)
			s.mu.Unlock()
			err = errors.Join(err, c.sftp.RemoveDirectory(dir))
		}
		return err
	}
	// After a failure there may be nothing to remove, and that one is reported.
	discard := func() {
		if err := remove(); err != nil {
			s.log.Debug("remove the probe", "file", o.Path, "err", err)
		}
	}
	result, err := p.run(ctx)
	if err != nil {
		discard()
		fail(deliver.StepWrite, err)
		return
	}
	steps.OK(deliver.StepWrite, fmt.Sprintf("%s, %s", result.Name, c.means()))
	if s.p.Probe == deliver.ProbeFull {
		back, err := p.readBack(ctx, o.Path)
		if err == nil && !back.Is(o) {
			err = deliver.Fail(deliver.ReasonCorrupt, nil, "%s does not hold what was written", o.Path)
		}
		if err != nil {
			discard()
			fail(deliver.StepReadBack, err)
			return
		}
		steps.OK(deliver.StepReadBack, fmt.Sprintf("%d bytes, SHA-256 as sent", back.Bytes()))
	}
	if err := remove(); err != nil {
		if s.p.Probe == deliver.ProbeFull {
			steps.Fail(deliver.StepDelete, p.classify(ctx, err).
				WithHint("capd deletes only its own temporary files; where it must not, write probe = \"write\""))
			return
		}
		steps.OK(deliver.StepDelete, o.Path+" stays: it cannot be deleted")
	} else {
		steps.OK(deliver.StepDelete, o.Path)
	}
	steps.Done()
}

// means tells what the server offers for a safe delivery.
func (c *session) means() string {
	means := []string{"no fsync", "published by rename"}
	if c.offers(extFsync) {
		means[0] = "fsync"
	}
	if c.offers(extHardlink) {
		means[1] = "published by link"
	}
	return strings.Join(means, ", ")
}
