package sftp

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"path"

	"capd/daemon/deliver"
)

// WriteChallenge implements deliver.Challenger: the way of any file.
func (s *Store) WriteChallenge(ctx context.Context, name string, contents []byte) error {
	if s.p.Verify == deliver.VerifyChecksum {
		return errNoChecksum()
	}
	_, err := s.Put(ctx, deliver.Object{Path: name, Tag: "challenge", Body: bytes.NewReader(contents), Size: int64(len(contents)), SHA256: sha256.Sum256(contents)})
	return err
}

// ReadChallenge implements deliver.Challenger.
func (s *Store) ReadChallenge(ctx context.Context, name string) ([]byte, error) {
	var data []byte
	err := s.with(ctx, name, func(p *putting) error {
		info, err := p.c.sftp.Lstat(p.final)
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return deliver.Fail(deliver.ReasonMissing, nil, "%s is there but is not a file", p.final)
		}
		if info.Size() > deliver.MaxChallenge {
			return deliver.Fail(deliver.ReasonTooLarge, nil, "%s has %d bytes, a challenge has at most %d", p.final, info.Size(), deliver.MaxChallenge)
		}
		p.watch.Touch()
		f, err := p.c.sftp.Open(p.final)
		if err != nil {
			return err
		}
		defer f.Close()
		data, err = io.ReadAll(io.LimitReader(f, deliver.MaxChallenge))
		return err
	})
	return data, err
}

// RemoveChallenge implements deliver.Challenger.
func (s *Store) RemoveChallenge(ctx context.Context, name string) error {
	return s.with(ctx, name, func(p *putting) error {
		if err := p.c.sftp.Remove(p.final); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// with does small work on a file over a connection of its own.
func (s *Store) with(ctx context.Context, name string, f func(*putting) error) error {
	c, err := s.connect(ctx, nil)
	if err == nil {
		err = s.adopt(c)
	}
	if err != nil {
		return deliver.Classify(ctx, err, "connect to %s", s.p.Address)
	}
	defer s.drop(c)
	ctx, watch := deliver.NewWatch(ctx, s.env.Timeouts.Progress)
	defer watch.Stop()
	watch.Follow(c.conn)
	defer c.endWith(ctx)()
	p := &putting{s: s, c: c, watch: watch, final: c.absolute(name)}
	p.folder = path.Dir(p.final)
	err = f(p)
	if errors.Is(err, fs.ErrNotExist) {
		return deliver.Fail(deliver.ReasonMissing, nil, "there is no %s", p.final)
	}
	if err != nil {
		return p.classify(ctx, err)
	}
	return nil
}
