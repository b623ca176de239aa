package s3

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"capd/ctl/wire"
	"capd/daemon/deliver"
)

// Check implements deliver.Store.
func (s *Store) Check(ctx context.Context) wire.Check {
	var steps deliver.Steps
	core, err := s.login.core(ctx)
	if err != nil {
		return steps.Fail(deliver.StepProfile, deliver.Classify(ctx, err, "credentials"))
	}
	from := "key " + s.p.AccessKeyID
	if s.p.Credentials != "" {
		from = "credentials from " + s.p.Credentials
	}
	steps.OK(deliver.StepProfile, from)
	if step, err := s.reach(ctx, &steps); err != nil {
		return steps.Fail(step, deliver.Classify(ctx, err, "%s", s.p.Endpoint))
	}
	ctx, watch := s.watch(ctx)
	defer watch.Stop()
	if err := s.authenticate(ctx, core, &steps); err != nil {
		return steps.Fail(deliver.StepAuthenticate, s.classify(ctx, err, "s3://"+s.p.Bucket))
	}
	if s.p.ObjectLockDays > 0 {
		watch.Touch()
		if err := s.checkLock(ctx, core, &steps); err != nil {
			return steps.Fail(deliver.StepObjectLock, s.classify(ctx, err, "s3://"+s.p.Bucket))
		}
	}
	if s.p.Probe == deliver.ProbeNone {
		return steps.Done()
	}
	s.probe(ctx, core, watch, &steps)
	return steps.Check
}

// reach resolves, connects and looks at the certificate, as a delivery would.
func (s *Store) reach(ctx context.Context, steps *deliver.Steps) (string, error) {
	u, err := url.Parse(s.p.Endpoint)
	if err != nil {
		return deliver.StepProfile, err
	}
	host, port := u.Hostname(), u.Port()
	if port == "" {
		port = u.Scheme // a service's name does as well
	}
	if s.p.VirtualHost() {
		host = s.p.Bucket + "." + host
	}
	addrs, err := s.env.Dialer.Resolve(ctx, host)
	if err != nil {
		return deliver.StepResolve, err
	}
	steps.OK(deliver.StepResolve, fmt.Sprintf("%s is %s", host, addrs))
	conn, err := s.env.Dialer.DialContext(ctx, "tcp", net.JoinHostPort(host, port))
	if err != nil {
		return deliver.StepConnect, err
	}
	defer conn.Close()
	steps.OK(deliver.StepConnect, fmt.Sprintf("%s answers", conn.RemoteAddr()))
	if u.Scheme != "https" {
		return "", nil
	}
	config := s.transport.TLSClientConfig.Clone()
	config.ServerName = host
	handshake, cancel := context.WithTimeout(ctx, s.env.Timeouts.Progress)
	defer cancel()
	secured := tls.Client(conn, config)
	if err := secured.HandshakeContext(handshake); err != nil {
		return deliver.StepCertificate, deliver.Classify(ctx, err, "the certificate of %s", host)
	}
	leaf := secured.ConnectionState().PeerCertificates[0]
	steps.OK(deliver.StepCertificate, fmt.Sprintf("of %s, signed by %s, good until %s", name(leaf.Subject.CommonName, host), name(leaf.Issuer.CommonName, "itself"), leaf.NotAfter.UTC().Format(time.RFC3339)))
	return "", nil
}

func name(given, otherwise string) string {
	if given == "" {
		return otherwise
	}
	return given
}

// authenticate lists at most one object: an answer with a body, so that a wrong secret
// and a missing right can be told apart. A right to list is welcome, not needed.
func (s *Store) authenticate(ctx context.Context, core *minio.Core, steps *deliver.Steps) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	first := <-core.Client.ListObjects(ctx, s.p.Bucket, minio.ListObjectsOptions{Prefix: deliver.FixedFolder(s.p.Path), MaxKeys: 1})
	if denied(first.Err) {
		steps.OK(deliver.StepAuthenticate, "the key is known; it may not list the bucket, which is not needed")
		return nil
	}
	if first.Err != nil {
		return first.Err
	}
	if ctx.Err() != nil { // then the list ends without a word
		return context.Cause(ctx)
	}
	steps.OK(deliver.StepAuthenticate, "bucket "+s.p.Bucket)
	return nil
}

// checkLock asks whether the bucket takes a retention.
func (s *Store) checkLock(ctx context.Context, core *minio.Core, steps *deliver.Steps) error {
	enabled, _, _, _, err := core.GetObjectLockConfig(ctx, s.p.Bucket)
	switch {
	case denied(err):
		steps.OK(deliver.StepObjectLock, "not known: the key may not ask for the bucket's configuration")
		return nil
	case code(err) == "ObjectLockConfigurationNotFoundError" || err == nil && enabled != "Enabled":
		return deliver.Fail(deliver.ReasonUnsupported, nil, "the bucket %s has no object lock", s.p.Bucket).
			WithHint("make a bucket with object lock, or leave object_lock_days out")
	case err != nil:
		return err
	}
	steps.OK(deliver.StepObjectLock, fmt.Sprintf("%d days from each delivery", s.p.ObjectLockDays))
	return nil
}

// probe writes an object, reads it back and deletes it. It gets no retention, so that it
// can be deleted.
func (s *Store) probe(ctx context.Context, core *minio.Core, watch *deliver.Watch, steps *deliver.Steps) {
	unique := make([]byte, 6)
	rand.Read(unique) // never fails (crypto/rand)
	text := "capd was here to see whether it may write.\n" + hex.EncodeToString(unique) + "\n"
	o := deliver.Object{Path: deliver.FixedFolder(s.p.Path) + ".capd-probe-" + hex.EncodeToString(unique),
		Body: strings.NewReader(text), Size: int64(len(text)), SHA256: sha256.Sum256([]byte(text))}
	u := &upload{s: s, core: core, watch: watch, o: o}
	fail := func(step string, err error) { steps.Fail(step, s.classify(ctx, err, u.url())) }

	var info minio.UploadInfo
	sum, err := u.md5(ctx)
	if err == nil {
		info, err = u.send(ctx, sum, 0)
	}
	if err != nil {
		fail(deliver.StepWrite, err)
		return
	}
	steps.OK(deliver.StepWrite, u.url())
	if s.p.Probe == deliver.ProbeFull {
		err := u.prove(ctx)
		if err == nil && s.p.Verify != deliver.VerifyReadback {
			var same bool
			if same, err = u.readBack(ctx); err == nil && !same {
				err = deliver.Fail(deliver.ReasonCorrupt, nil, "%s does not hold what was written", u.url())
			}
		}
		if err != nil {
			if removeErr := u.remove(ctx, info.VersionID); removeErr != nil {
				s.log.Warn("a probe stays in the bucket", "url", u.url(), "err", removeErr)
			}
			fail(deliver.StepReadBack, err)
			return
		}
		steps.OK(deliver.StepReadBack, fmt.Sprintf("%d bytes, SHA-256 as sent", o.Size))
	}
	err = u.remove(ctx, info.VersionID)
	switch {
	case err == nil:
		steps.OK(deliver.StepDelete, u.url())
	case s.p.Probe == deliver.ProbeFull:
		var known *deliver.Error
		if denied(err) && !errors.As(err, &known) {
			err = deliver.Fail(deliver.ReasonPermission, nil, "%s may not be deleted", u.url()).
				WithHint(`capd deletes only its own probes: give the key s3:DeleteObject for .capd-probe-*, or set probe = "write"`)
		}
		fail(deliver.StepDelete, err)
		return
	default:
		steps.OK(deliver.StepDelete, u.url()+" stays: it cannot be deleted")
	}
	steps.Done()
}

// remove deletes the object, in a versioned bucket that very version if it may.
func (u *upload) remove(ctx context.Context, version string) error {
	u.watch.Touch()
	if version != "" {
		if err := u.core.RemoveObject(ctx, u.s.p.Bucket, u.o.Path, minio.RemoveObjectOptions{VersionID: version}); err == nil {
			return nil
		}
		u.watch.Touch()
	}
	return u.core.RemoveObject(ctx, u.s.p.Bucket, u.o.Path, minio.RemoveObjectOptions{})
}
