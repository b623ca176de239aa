package s3

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"

	"github.com/minio/minio-go/v7"

	"capd/daemon/deliver"
)

// WriteChallenge implements deliver.Challenger. The object gets no retention, so that it
// can be deleted.
func (s *Store) WriteChallenge(ctx context.Context, name string, contents []byte) error {
	return s.with(ctx, name, func(ctx context.Context, u *upload) error {
		u.o.Body, u.o.Size, u.o.SHA256 = bytes.NewReader(contents), int64(len(contents)), sha256.Sum256(contents)
		there, err := u.look(ctx)
		if err != nil && !denied(err) || there {
			return err
		}
		sum, err := u.md5(ctx)
		if err == nil {
			_, err = u.send(ctx, sum, 0)
		}
		if code(err) == "PreconditionFailed" { // somebody was faster
			_, err = u.look(ctx)
			return err
		}
		if err != nil {
			return err
		}
		return u.prove(ctx)
	})
}

// ReadChallenge implements deliver.Challenger.
func (s *Store) ReadChallenge(ctx context.Context, name string) ([]byte, error) {
	var data []byte
	err := s.with(ctx, name, func(ctx context.Context, u *upload) error {
		in, info, _, err := u.core.GetObject(ctx, s.p.Bucket, name, minio.GetObjectOptions{})
		if err != nil {
			return err
		}
		defer in.Close()
		if info.Size > deliver.MaxChallenge {
			return deliver.Fail(deliver.ReasonTooLarge, nil, "%s has %d bytes, a challenge has at most %d", u.url(), info.Size, deliver.MaxChallenge)
		}
		data, err = io.ReadAll(io.LimitReader(in, deliver.MaxChallenge))
		return err
	})
	return data, err
}

// RemoveChallenge implements deliver.Challenger.
func (s *Store) RemoveChallenge(ctx context.Context, name string) error {
	return s.with(ctx, name, func(ctx context.Context, u *upload) error {
		info, err := u.head(ctx)
		if missing(err) {
			return nil
		}
		if err != nil && !denied(err) {
			return err
		}
		return u.remove(ctx, info.VersionID)
	})
}

// with does small work on an object.
func (s *Store) with(ctx context.Context, name string, f func(context.Context, *upload) error) error {
	ctx, watch := s.watch(ctx)
	defer watch.Stop()
	core, err := s.login.core(ctx)
	if err != nil {
		return s.classify(ctx, err, "s3://"+s.p.Bucket+"/"+name)
	}
	u := &upload{s: s, core: core, watch: watch, o: deliver.Object{Path: name}}
	err = f(ctx, u)
	if missing(err) {
		return deliver.Fail(deliver.ReasonMissing, nil, "there is no %s", u.url())
	}
	if err != nil {
		return s.classify(ctx, err, u.url())
	}
	return nil
}

// missing says whether the server says that there is no such object.
func missing(err error) bool { return code(err) == "NoSuchKey" || code(err) == "NotFound" }
