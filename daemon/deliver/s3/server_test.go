package s3_test

import (
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"capd/ctl/wire"
	"capd/daemon/deliver"
	"capd/daemon/deliver/s3"
	"capd/daemon/deliver/storetest"
	"capd/testbed"
)

// open makes a store that ends with the test.
func open(t *testing.T, p deliver.Profile) deliver.Store {
	t.Helper()
	return storetest.Open(t, s3.Open, p)
}

// checked runs a check and wants it to end well, or at a step; it gives that step.
func checked(t *testing.T, p deliver.Profile, failing string) wire.CheckStep {
	t.Helper()
	steps := storetest.Checked(t, open(t, p), failing)
	return steps[len(steps)-1]
}

// between is a reverse proxy before a server that a test may answer in place of.
func between(t *testing.T, server *testbed.S3, answer func(w http.ResponseWriter, r *http.Request) bool) string {
	t.Helper()
	target, err := url.Parse(server.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host // it is signed
	}}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !answer(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(front.Close)
	return front.URL
}

// s3Error answers as S3 does.
func s3Error(w http.ResponseWriter, r *http.Request, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		fmt.Fprintf(w, "<?xml version=\"1.0\"?><Error><Code>%s</Code><Message>The message of %s.</Message></Error>", code, code)
	}
}

func TestTLSWithAnAuthorityOfOnesOwn(t *testing.T) {
	server := testbed.NewS3(t, testbed.S3Options{TLS: true})
	p := place(t, server)
	o, data := storetest.Object(p.Prefix+"x/0001.pcapng", 300_000)
	storetest.Put(t, open(t, p.Profile), o)
	storetest.Holds(t, p, map[string][]byte{o.Path: data})
	checked(t, p.Profile, "")

	unknown := p.Profile
	unknown.CAFile = ""
	if last := checked(t, unknown, deliver.StepCertificate); !strings.Contains(last.Hint, "ca_file") {
		t.Errorf("got %+v", last)
	}
	_, err := open(t, unknown).Put(t.Context(), o)
	if failure := storetest.Failed(t, err, deliver.ReasonCertificate); !failure.Permanent || failure.Code != wire.CodeDestinationRefused {
		t.Errorf("got %+v", failure)
	}
	plain := p.Profile
	plain.CAFile, plain.Endpoint = "", strings.Replace(p.Profile.Endpoint, "https", "http", 1)
	_, err = open(t, plain).Put(t.Context(), o)
	if err == nil {
		t.Error("a TLS server was spoken to in the clear")
	}
	other := testbed.NewS3(t, testbed.S3Options{})
	tls := profile(other)
	tls.Endpoint = strings.Replace(tls.Endpoint, "http", "https", 1)
	_, err = open(t, tls).Put(t.Context(), o)
	storetest.Failed(t, err, deliver.ReasonCertificate)
	checked(t, tls, deliver.StepCertificate)
}

func TestACertificateThatHasRunOut(t *testing.T) {
	server := testbed.NewS3(t, testbed.S3Options{TLS: true, Expired: true})
	p := place(t, server)
	if last := checked(t, p.Profile, deliver.StepCertificate); !strings.Contains(last.Hint, "renew") {
		t.Errorf("got %+v", last)
	}
	o, _ := storetest.Object(p.Prefix+"x/0001.pcapng", 10)
	_, err := open(t, p.Profile).Put(t.Context(), o)
	if failure := storetest.Failed(t, err, deliver.ReasonClock); failure.Permanent {
		t.Errorf("a new certificate mends it without anybody here: %+v", failure)
	}
}

func TestVerifyByReadingBack(t *testing.T) {
	server := testbed.NewS3(t, testbed.S3Options{})
	p := place(t, server)
	p.Profile.Verify = deliver.VerifyReadback
	o, data := storetest.Object(p.Prefix+"x/0001.pcapng", 300_000)
	st := open(t, p.Profile)
	for range 2 {
		if result := storetest.Put(t, st, o); result.Verified != wire.VerifiedReadback {
			t.Errorf("got %+v", result)
		}
	}
	storetest.Holds(t, p, map[string][]byte{o.Path: data})
	// What is wrong at the server, under metadata that is right, is found.
	data[0] ^= 1
	if err := os.WriteFile(filepath.Join(server.Root, server.Bucket, o.Path), data, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := st.Put(t.Context(), storetest.Of(o.Path, flipped(data)))
	storetest.Failed(t, err, deliver.ReasonExists)
}

func flipped(data []byte) []byte {
	data = bytes.Clone(data)
	data[0] ^= 1
	return data
}

func TestEveryPutIsSignedWithItsMD5AndSHA256(t *testing.T) {
	server := testbed.NewS3(t, testbed.S3Options{})
	p := place(t, server)
	var mu sync.Mutex
	var puts []http.Header
	endpoint := between(t, server, func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if r.Method == http.MethodPut {
			puts = append(puts, r.Header.Clone())
		}
		if strings.Contains(r.URL.RawQuery, "uploads") {
			t.Errorf("a multipart upload: %s", r.URL)
		}
		return false
	})
	prof := p.Profile
	prof.Endpoint = endpoint
	o, data := storetest.Object(p.Prefix+"x/0001.pcapng", 40<<20) // more than minio-go's usual part
	storetest.Put(t, open(t, prof), o)
	storetest.Holds(t, p, map[string][]byte{o.Path: data})
	if len(puts) != 1 {
		t.Fatalf("%d PUTs", len(puts))
	}
	sum := md5.Sum(data)
	for key, want := range map[string]string{
		"Content-Md5":            base64.StdEncoding.EncodeToString(sum[:]),
		"X-Amz-Content-Sha256":   fmt.Sprintf("%x", o.SHA256),
		"X-Amz-Meta-Capd-Sha256": fmt.Sprintf("%x", o.SHA256),
		"If-None-Match":          "*",
	} {
		if got := puts[0].Get(key); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
		if !strings.Contains(puts[0].Get("Authorization"), strings.ToLower(key)) {
			t.Errorf("%s is not signed: %s", key, puts[0].Get("Authorization"))
		}
	}
}

func TestABitTurnedOnTheWayIsRefusedByTheServer(t *testing.T) {
	server := testbed.NewS3(t, testbed.S3Options{})
	p := place(t, server)
	proxy := storetest.NewProxy(t, server.Address)
	o, data := storetest.Object(p.Prefix+"x/0001.pcapng", 300_000)
	st := open(t, p.Via(proxy.Address))
	proxy.Set(storetest.Fault{Kind: storetest.Flip, Direction: storetest.Up, At: 150_000})
	_, err := st.Put(t.Context(), o)
	if failure := storetest.Failed(t, err, deliver.ReasonCorrupt); failure.Permanent || !proxy.Struck() {
		t.Errorf("got %+v", failure)
	}
	storetest.Holds(t, p, nil)
	storetest.Put(t, st, o)
	storetest.Holds(t, p, map[string][]byte{o.Path: data})
}

func TestServersThatSayNo(t *testing.T) {
	server := testbed.NewS3(t, testbed.S3Options{})
	for _, test := range []struct {
		status    int
		code      string
		reason    deliver.Reason
		wireCode  string
		permanent bool
	}{
		{503, "SlowDown", deliver.ReasonBusy, wire.CodeDestinationUnreachable, false},
		{500, "InternalError", deliver.ReasonBusy, wire.CodeDestinationUnreachable, false},
		{502, "", deliver.ReasonBusy, wire.CodeDestinationUnreachable, false},
		{429, "TooManyRequests", deliver.ReasonBusy, wire.CodeDestinationUnreachable, false},
		{409, "ConditionalRequestConflict", deliver.ReasonBusy, wire.CodeDestinationUnreachable, false},
		{403, "RequestTimeTooSkewed", deliver.ReasonClock, wire.CodeDestinationRefused, false},
		{403, "AccessDenied", deliver.ReasonPermission, wire.CodeDestinationRefused, true},
		{403, "InvalidAccessKeyId", deliver.ReasonCredentials, wire.CodeDestinationRefused, true},
		{403, "SignatureDoesNotMatch", deliver.ReasonCredentials, wire.CodeDestinationRefused, true},
		{404, "NoSuchBucket", deliver.ReasonMissing, wire.CodeDestinationRefused, true},
		{400, "AuthorizationHeaderMalformed", deliver.ReasonRefused, wire.CodeDestinationRefused, true},
		{400, "BadDigest", deliver.ReasonCorrupt, wire.CodeDestinationRefused, false},
		{400, "EntityTooLarge", deliver.ReasonTooLarge, wire.CodeInternal, true},
		{507, "XMinioStorageFull", deliver.ReasonNoSpace, wire.CodeNoSpace, false},
		{403, "QuotaExceeded", deliver.ReasonNoSpace, wire.CodeNoSpace, false},
		{301, "PermanentRedirect", deliver.ReasonRefused, wire.CodeDestinationRefused, true},
	} {
		t.Run(fmt.Sprint(test.status, test.code), func(t *testing.T) {
			p := place(t, server)
			no := true
			prof := p.Profile
			var mu sync.Mutex
			prof.Endpoint = between(t, server, func(w http.ResponseWriter, r *http.Request) bool {
				mu.Lock()
				defer mu.Unlock()
				if r.Method != http.MethodPut || !no {
					return false
				}
				s3Error(w, r, test.status, test.code)
				return true
			})
			st := open(t, prof)
			o, data := storetest.Object(p.Prefix+"x/0001.pcapng", 1000)
			_, err := st.Put(t.Context(), o)
			failure := storetest.Failed(t, err, test.reason)
			if failure.Permanent != test.permanent || failure.Code != test.wireCode || !strings.Contains(failure.Message, test.code) {
				t.Errorf("got %+v", failure)
			}
			storetest.Holds(t, p, nil)
			mu.Lock()
			no = false
			mu.Unlock()
			storetest.Put(t, st, o)
			storetest.Holds(t, p, map[string][]byte{o.Path: data})
		})
	}
}

func TestABucketForWritingOnly(t *testing.T) {
	server := testbed.NewS3(t, testbed.S3Options{})
	p := place(t, server)
	prof := p.Profile
	prof.Endpoint = between(t, server, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut {
			return false
		}
		s3Error(w, r, http.StatusForbidden, "AccessDenied")
		return true
	})
	o, data := storetest.Object(p.Prefix+"x/0001.pcapng", 1000)
	_, err := open(t, prof).Put(t.Context(), o)
	if failure := storetest.Failed(t, err, deliver.ReasonPermission); !strings.Contains(failure.Hint, `probe = "write"`) {
		t.Errorf("got %+v", failure)
	}
	if last := checked(t, prof, deliver.StepReadBack); last.Hint == "" {
		t.Errorf("got %+v", last)
	}
	prof.Probe = deliver.ProbeWrite
	if last := checked(t, prof, ""); !strings.Contains(last.Detail, "stays") {
		t.Errorf("got %+v", last)
	}
	o.Path = p.Prefix + "x/0002.pcapng"
	if result := storetest.Put(t, open(t, prof), o); result.Verified != wire.VerifiedChecksum {
		t.Errorf("got %+v", result)
	}
	if got := p.Files()[o.Path]; !bytes.Equal(got, data) {
		t.Errorf("%d bytes arrived", len(got))
	}
	// The same again cannot be looked at: that is said, and nothing is guessed.
	_, err = open(t, prof).Put(t.Context(), o)
	storetest.Failed(t, err, deliver.ReasonExists)
}

func TestAServerWithoutConditionalPUT(t *testing.T) {
	server := testbed.NewS3(t, testbed.S3Options{})
	p := place(t, server)
	prof := p.Profile
	prof.Endpoint = between(t, server, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut || r.Header.Get("If-None-Match") == "" {
			return false
		}
		s3Error(w, r, http.StatusNotImplemented, "NotImplemented")
		return true
	})
	st := open(t, prof)
	o, data := storetest.Object(p.Prefix+"x/0001.pcapng", 1000)
	storetest.Put(t, st, o)
	other, _ := storetest.Object(o.Path, 1001)
	_, err := st.Put(t.Context(), other)
	storetest.Failed(t, err, deliver.ReasonExists)
	storetest.Holds(t, p, map[string][]byte{o.Path: data})
}

func TestEncryptionAndRetentionAreAskedFor(t *testing.T) {
	server := testbed.NewS3(t, testbed.S3Options{})
	for sse, want := range map[string]map[string]string{
		"AES256":         {"X-Amz-Server-Side-Encryption": "AES256"},
		"aws:kms":        {"X-Amz-Server-Side-Encryption": "aws:kms"},
		"aws:kms:my-key": {"X-Amz-Server-Side-Encryption": "aws:kms", "X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id": "my-key"},
	} {
		t.Run(sse, func(t *testing.T) {
			p := place(t, server)
			prof := p.Profile
			prof.SSE, prof.ObjectLockDays = sse, 30
			var header http.Header
			prof.Endpoint = between(t, server, func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodPut {
					header = r.Header.Clone()
					s3Error(w, r, http.StatusServiceUnavailable, "SlowDown")
					return true
				}
				return false
			})
			o, _ := storetest.Object(p.Prefix+"x/0001.pcapng", 1000)
			_, err := open(t, prof).Put(t.Context(), o)
			storetest.Failed(t, err, deliver.ReasonBusy)
			want["X-Amz-Object-Lock-Mode"] = "GOVERNANCE"
			for key, value := range want {
				if got := header.Get(key); got != value {
					t.Errorf("%s is %q, want %q", key, got, value)
				}
			}
			until, err := time.Parse(time.RFC3339, header.Get("X-Amz-Object-Lock-Retain-Until-Date"))
			if err != nil || until.Before(time.Now().AddDate(0, 0, 29)) || until.After(time.Now().AddDate(0, 0, 31)) {
				t.Errorf("retained until %v (%v)", until, err)
			}
		})
	}
}

func TestABucketWithObjectLock(t *testing.T) {
	server := testbed.NewS3(t, testbed.S3Options{})
	p := profile(server)
	p.ObjectLockDays = 1
	if last := checked(t, p, deliver.StepObjectLock); last.Hint == "" {
		t.Errorf("got %+v", last)
	}
	p.Bucket = "locked"
	if err := server.Client().MakeBucket(t.Context(), p.Bucket, minio.MakeBucketOptions{ObjectLocking: true}); err != nil {
		t.Fatal(err)
	}
	checked(t, p, "")
	o, data := storetest.Object("x/0001.pcapng", 1000)
	storetest.Put(t, open(t, p), o)
	got, err := os.ReadFile(filepath.Join(server.Root, p.Bucket, o.Path))
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes arrived (%v)", len(got), err)
	}
	if err := server.Client().RemoveObject(t.Context(), p.Bucket, o.Path, minio.RemoveObjectOptions{}); err == nil {
		t.Error("it could be deleted")
	}
}

// A server that answers without end is not listened to for ever.
func TestAnAnswerWithoutEnd(t *testing.T) {
	server := testbed.NewS3(t, testbed.S3Options{})
	p := place(t, server)
	const far = 1 << 30 // so that a test that fails ends, too
	said := make(chan int, 1)
	p.Profile.Endpoint = between(t, server, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut {
			return false
		}
		w.WriteHeader(http.StatusInternalServerError)
		n, piece := 0, bytes.Repeat([]byte("x"), 64<<10)
		for n < far {
			if _, err := w.Write(piece); err != nil {
				break
			}
			n += len(piece)
		}
		said <- n
		return true
	})
	o, _ := storetest.Object(p.Prefix+"x/0001.pcapng", 1000)
	_, err := open(t, p.Profile).Put(t.Context(), o)
	if failure := storetest.Failed(t, err, deliver.ReasonBusy, deliver.ReasonUnknown); failure.Permanent {
		t.Errorf("got %+v", failure)
	}
	if n := <-said; n > 64<<20 { // what the kernel holds on its way
		t.Errorf("%d bytes of an answer were taken", n)
	}
}
