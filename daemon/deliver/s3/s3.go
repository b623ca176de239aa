// Package s3 delivers files to an S3 bucket, each with one signed PUT.
package s3

import (
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/encrypt"

	"capd/ctl/wire"
	"capd/daemon/deliver"
)

// metaSHA256 is the user metadata that holds a file's SHA-256 in hexadecimal
// (x-amz-meta-capd-sha256).
const metaSHA256 = "Capd-Sha256"

// Store is one bucket.
type Store struct {
	p         deliver.Profile
	env       deliver.Env
	log       *slog.Logger
	up        *deliver.Pace
	down      *deliver.Pace
	transport *http.Transport
	login     login

	mu            sync.Mutex
	unconditional bool // the server does not know If-None-Match on a PUT
}

var _ deliver.Store = (*Store)(nil)

// Open makes a Store (deliver.OpenFunc). It does not connect.
func Open(p deliver.Profile, env deliver.Env) (deliver.Store, error) {
	env.Timeouts = env.Timeouts.WithDefaults()
	s := &Store{p: p, env: env, log: env.Logger, up: deliver.NewPace(p.Bandwidth), down: deliver.NewPace(p.Bandwidth)}
	var err error
	if s.transport, err = newTransport(p, env, false); err != nil {
		return nil, err
	}
	s.login.store = s
	return s, nil
}

// Close ends the connections that are kept.
func (s *Store) Close() error {
	s.transport.CloseIdleConnections()
	s.login.close()
	return nil
}

// Put implements deliver.Store: a look at the name, one PUT whose MD5 and SHA-256 the
// server compares before it takes it, and a look at what it holds. A PUT is atomic: an
// object is there whole or not at all, and nothing is left of one that failed.
func (s *Store) Put(ctx context.Context, o deliver.Object) (deliver.Result, error) {
	ctx, watch := s.watch(ctx)
	defer watch.Stop()
	result, err := s.put(ctx, watch, o)
	if err != nil {
		return deliver.Result{}, s.classify(ctx, err, "write s3://"+s.p.Bucket+"/"+o.Path)
	}
	return result, nil
}

// watch watches over requests, on whichever connection each is made.
func (s *Store) watch(ctx context.Context) (context.Context, *deliver.Watch) {
	ctx, watch := deliver.NewWatch(ctx, s.env.Timeouts.Progress)
	trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) { watch.Follow(info.Conn) }}
	return httptrace.WithClientTrace(ctx, trace), watch
}

func (s *Store) put(ctx context.Context, watch *deliver.Watch, o deliver.Object) (deliver.Result, error) {
	core, err := s.login.core(ctx)
	if err != nil {
		return deliver.Result{}, err
	}
	u := &upload{s: s, core: core, watch: watch, o: o}
	there, err := u.look(ctx)
	if err != nil && !denied(err) {
		return deliver.Result{}, err // without the right to list, a missing name is denied too: the PUT will tell
	}
	if there {
		return u.result(true), nil
	}
	sum, err := u.md5(ctx)
	if err != nil {
		return deliver.Result{}, err
	}
	_, err = u.send(ctx, sum, s.p.ObjectLockDays)
	if code(err) == "PreconditionFailed" {
		// Somebody was faster, or an earlier try of ours whose answer was lost.
		if there, err = u.look(ctx); err != nil && denied(err) {
			return deliver.Result{}, deliver.Fail(deliver.ReasonExists, nil, "%s is there already, and may not be looked at", u.url()).
				WithHint("with the right s3:GetObject capd could tell whether it is the same")
		}
		if err == nil && !there {
			err = deliver.Fail(deliver.ReasonBusy, nil, "%s was there a moment ago and is gone", u.url())
		}
		return u.result(true), err
	}
	if err != nil {
		return deliver.Result{}, err
	}
	return u.result(false), u.prove(ctx)
}

// upload is one Put.
type upload struct {
	s     *Store
	core  *minio.Core
	watch *deliver.Watch
	o     deliver.Object
}

func (u *upload) url() string { return "s3://" + u.s.p.Bucket + "/" + u.o.Path }

func (u *upload) result(there bool) deliver.Result {
	verified := wire.VerifiedChecksum
	if u.s.p.Verify == deliver.VerifyReadback {
		verified = wire.VerifiedReadback
	}
	return deliver.Result{URL: u.url(), Name: u.o.Path, Bytes: u.o.Size, SHA256: hex.EncodeToString(u.o.SHA256[:]), Verified: verified, AlreadyThere: there}
}

// look tells whether the name is there already with the same contents.
func (u *upload) look(ctx context.Context) (bool, error) {
	info, err := u.head(ctx)
	if missing(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	exists := deliver.Fail(deliver.ReasonExists, nil, "%s is there already with other contents", u.url()).
		WithHint("capd never replaces a file: move that one away, or put {id} into the profile's path")
	if info.Size != u.o.Size {
		return false, exists
	}
	if err := u.o.Learn(ctx, u.watch); err != nil {
		return false, err
	}
	sum := metadata(info)
	if sum != "" && sum != hex.EncodeToString(u.o.SHA256[:]) {
		return false, exists
	}
	if sum == "" || u.s.p.Verify == deliver.VerifyReadback {
		same, err := u.readBack(ctx)
		if err == nil && !same {
			err = exists
		}
		return err == nil, err
	}
	return true, nil
}

func (u *upload) head(ctx context.Context) (minio.ObjectInfo, error) {
	u.watch.Touch()
	return u.core.StatObject(ctx, u.s.p.Bucket, u.o.Path, minio.StatObjectOptions{})
}

// metadata gives the SHA-256 that stands with an object, "" when none does.
func metadata(info minio.ObjectInfo) string {
	for key, value := range info.UserMetadata {
		if strings.EqualFold(key, metaSHA256) {
			return strings.ToLower(value)
		}
	}
	return ""
}

// md5 reads the object for its MD5 and SHA-256, which the server wants before the first
// byte.
func (u *upload) md5(ctx context.Context) (string, error) {
	sum := md5.New() // S3's Content-MD5; what proves the file is SHA-256
	silent := u.o
	silent.Sent = nil
	src := deliver.NewSource(ctx, silent, nil, u.watch)
	buf := make([]byte, 256<<10)
	if _, err := io.CopyBuffer(sum, src, buf); err != nil {
		return "", err
	}
	var err error
	if u.o.SHA256, err = src.Whole(); err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(sum.Sum(nil)), nil
}

// send makes the PUT, where the server knows the condition only if the name is free. The
// object is locked for so many days, 0 = not at all.
func (u *upload) send(ctx context.Context, md5Base64 string, lockDays int) (minio.UploadInfo, error) {
	sum := hex.EncodeToString(u.o.SHA256[:])
	o := minio.PutObjectOptions{
		ContentType:          contentType(u.o.Path),
		UserMetadata:         map[string]string{metaSHA256: sum},
		ServerSideEncryption: u.s.encryption(),
		DisableContentSha256: true, // no signatures between the chunks: the whole SHA-256 is signed instead
	}
	if lockDays > 0 {
		// Governance keeps it from everybody but those with a right of their own
		// (s3:BypassGovernanceRetention); a mistake in the days can be mended.
		o.Mode = minio.Governance
		o.RetainUntilDate = time.Now().UTC().AddDate(0, 0, lockDays).Truncate(time.Second)
	}
	u.s.mu.Lock()
	conditional := !u.s.unconditional
	u.s.mu.Unlock()
	if conditional {
		o.SetMatchETagExcept("*")
	}
	u.watch.Touch()
	b := &body{source: deliver.NewUnhashedSource(ctx, u.o, u.s.up, u.watch), left: u.o.Size, sent: func() { u.watch.Expect(u.s.env.Timeouts.Settle) }}
	info, err := u.core.PutObject(ctx, u.s.p.Bucket, u.o.Path, b, u.o.Size, md5Base64, sum, o)
	b.end()
	u.watch.Expect(u.s.env.Timeouts.Progress)
	if conditional && code(err) == "NotImplemented" {
		// The look before the PUT then has to do (an older Ceph, some gateways).
		u.s.mu.Lock()
		u.s.unconditional = true
		u.s.mu.Unlock()
		u.s.log.Warn("the server knows no conditional PUT: two writers of one name at the same moment would not be noticed")
		return u.send(ctx, md5Base64, lockDays)
	}
	return info, err
}

func contentType(key string) string {
	switch {
	case strings.HasSuffix(key, ".json"):
		return "application/json"
	case strings.HasSuffix(key, ".pcap"), strings.HasSuffix(key, ".pcapng"):
		return "application/vnd.tcpdump.pcap"
	}
	return "application/octet-stream"
}

func (s *Store) encryption() encrypt.ServerSide {
	switch {
	case s.p.SSE == "AES256":
		return encrypt.NewSSE()
	case strings.HasPrefix(s.p.SSE, "aws:kms"):
		key := strings.TrimPrefix(strings.TrimPrefix(s.p.SSE, "aws:kms"), ":")
		sse, err := encrypt.NewSSEKMS(key, nil)
		if err != nil { // only a context could make one
			return nil
		}
		return sse
	}
	return nil
}

// prove looks at what the server holds. Where a profile says by its probe that the
// bucket is for writing only, the server's own comparison of the MD5 has to do.
func (u *upload) prove(ctx context.Context) error {
	info, err := u.head(ctx)
	if denied(err) && u.s.p.Probe != deliver.ProbeFull && u.s.p.Verify == deliver.VerifyChecksum {
		return nil
	}
	if denied(err) {
		return deliver.Fail(deliver.ReasonPermission, nil, "%s was written but may not be looked at", u.url()).
			WithHint(`give the key the right s3:GetObject, or, if the bucket is for writing only, set probe = "write"`)
	}
	if err != nil {
		return err
	}
	if sum := metadata(info); info.Size != u.o.Size || sum != hex.EncodeToString(u.o.SHA256[:]) {
		return deliver.Fail(deliver.ReasonCorrupt, nil, "%s holds %d bytes with the SHA-256 %q in its metadata, %d with %x were sent", u.url(), info.Size, sum, u.o.Size, u.o.SHA256)
	}
	if u.s.p.Verify != deliver.VerifyReadback {
		return nil
	}
	same, err := u.readBack(ctx)
	if err == nil && !same {
		err = deliver.Fail(deliver.ReasonCorrupt, nil, "what %s holds is not what was sent", u.url()).
			WithHint("capd replaces nothing: look at it, delete it, and then: capctl retry")
	}
	return err
}

// readBack reads the object and tells whether it is ours.
func (u *upload) readBack(ctx context.Context) (bool, error) {
	u.watch.Touch()
	in, _, _, err := u.core.GetObject(ctx, u.s.p.Bucket, u.o.Path, minio.GetObjectOptions{})
	if err != nil {
		return false, err
	}
	defer in.Close()
	sink := deliver.NewSink(ctx, u.o, u.s.down, u.watch)
	if _, err := io.CopyBuffer(sink, onlyReader{in}, make([]byte, 256<<10)); err != nil && !errors.Is(err, deliver.ErrMore) {
		return false, err
	}
	return sink.Is(u.o), nil
}

type onlyReader struct{ io.Reader }

// body is a request's body. net/http may still be reading it when the answer has come:
// after end it gives nothing more, so that the file is no longer in use.
type body struct {
	sent func() // called when the last byte was taken

	mu     sync.Mutex
	source io.Reader
	left   int64
	ended  bool
}

var errEnded = errors.New("the request is over")

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return 0, errEnded
	}
	n, err := b.source.Read(p)
	if b.left -= int64(n); b.left == 0 && n > 0 {
		b.sent()
	}
	return n, err
}

func (b *body) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
}
