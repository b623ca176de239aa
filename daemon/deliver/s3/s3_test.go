package s3_test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"capd/daemon/deliver"
	"capd/daemon/deliver/s3"
	"capd/daemon/deliver/storetest"
	"capd/testbed"
)

// makeTrouble is how a Trouble comes about.
type makeTrouble = func(*testing.T, storetest.Place) (deliver.Profile, func() deliver.Profile)

func TestConformanceAgainstVersitygw(t *testing.T) {
	server := testbed.NewS3(t, testbed.S3Options{})
	// by is a server of which something stands in between, until the mend.
	by := func(answer func(w http.ResponseWriter, r *http.Request) bool) makeTrouble {
		return func(t *testing.T, p storetest.Place) (deliver.Profile, func() deliver.Profile) {
			var mended atomic.Bool
			bad := p.Profile
			bad.Endpoint = between(t, server, func(w http.ResponseWriter, r *http.Request) bool { return !mended.Load() && answer(w, r) })
			return bad, func() deliver.Profile { mended.Store(true); return bad }
		}
	}
	says := func(status int, code string) makeTrouble {
		return by(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPut {
				s3Error(w, r, status, code)
			}
			return r.Method == http.MethodPut
		})
	}
	storetest.Run(t, suite(t, server,
		// The server itself finds the request's date an hour old.
		storetest.Trouble{Name: "clocks an hour apart", Reason: deliver.ReasonClock, Make: by(func(_ http.ResponseWriter, r *http.Request) bool {
			r.Header.Set("X-Amz-Date", time.Now().Add(-time.Hour).UTC().Format("20060102T150405Z"))
			return false
		})},
		storetest.Trouble{Name: "another secret", Reason: deliver.ReasonCredentials, Permanent: true, Make: func(t *testing.T, p storetest.Place) (deliver.Profile, func() deliver.Profile) {
			bad := p.Profile
			bad.SecretAccessKeyFile = filepath.Join(t.TempDir(), "secret")
			if err := os.WriteFile(bad.SecretAccessKeyFile, []byte("another"), 0o600); err != nil {
				t.Fatal(err)
			}
			return bad, func() deliver.Profile { return p.Profile }
		}},
		storetest.Trouble{Name: "500 InternalError", Reason: deliver.ReasonBusy, Make: says(500, "InternalError")},
		storetest.Trouble{Name: "500 without a word", Reason: deliver.ReasonBusy, Make: says(500, "")},
		storetest.Trouble{Name: "503 SlowDown", Reason: deliver.ReasonBusy, Make: says(503, "SlowDown")},
		storetest.Trouble{Name: "403 AccessDenied", Reason: deliver.ReasonPermission, Permanent: true, Make: says(403, "AccessDenied")},
	))
}

func TestConformanceOverTLS(t *testing.T) {
	storetest.Run(t, suite(t, testbed.NewS3(t, testbed.S3Options{TLS: true}),
		storetest.Trouble{Name: "a certificate that has run out", Reason: deliver.ReasonClock, Make: func(t *testing.T, p storetest.Place) (deliver.Profile, func() deliver.Profile) {
			return profile(testbed.NewS3(t, testbed.S3Options{TLS: true, Expired: true})), func() deliver.Profile { return p.Profile }
		}},
		storetest.Trouble{Name: "a certificate that nobody here trusts", Reason: deliver.ReasonCertificate, Permanent: true, Make: func(t *testing.T, p storetest.Place) (deliver.Profile, func() deliver.Profile) {
			bad := p.Profile
			bad.CAFile = ""
			return bad, func() deliver.Profile { return p.Profile }
		}},
	))
}

// suite is the conformance suite against a server, whose folder gets a disk of its own.
func suite(t *testing.T, server *testbed.S3, troubles ...storetest.Trouble) storetest.Suite {
	t.Helper()
	disk := testbed.NewDisk(t, server.Root, server.Stop, server.Start, func() {
		if err := os.Mkdir(filepath.Join(server.Root, server.Bucket), 0o755); err != nil {
			t.Fatal(err)
		}
	})
	user, secret := server.NewUser("deliverer")
	allow := func(allowed bool) func() {
		return func() {
			if err := server.Allow(user, allowed); err != nil {
				t.Error(err)
			}
		}
	}
	allow(true)()
	return storetest.Suite{Open: s3.Open, Troubles: troubles, New: func(t *testing.T) storetest.Place {
		p := placeOf(t, server, user, secret)
		p.Stop, p.Start, p.Fill = server.Stop, server.Start, disk.Fill
		p.Forbid, p.Permit = allow(false), allow(true)
		return p
	}}
}

// profile leads to a server.
func profile(s *testbed.S3) deliver.Profile {
	return deliver.Profile{Name: "test", Type: deliver.TypeS3, Endpoint: s.Endpoint, Region: s.Region, Bucket: s.Bucket,
		CAFile: s.CAFile, AccessKeyID: s.AccessKeyID, SecretAccessKeyFile: s.SecretFile}
}

var places atomic.Int32

// place makes a prefix in a server's bucket.
func place(t *testing.T, s *testbed.S3) storetest.Place {
	t.Helper()
	return placeOf(t, s, s.AccessKeyID, s.SecretFile)
}

// placeOf is place for another account.
func placeOf(t *testing.T, s *testbed.S3, accessKeyID, secretFile string) storetest.Place {
	t.Helper()
	prefix := fmt.Sprintf("place%03d/", places.Add(1))
	p := profile(s)
	p.AccessKeyID, p.SecretAccessKeyFile = accessKeyID, secretFile
	p.Path = prefix + "{date}/{file}"
	return storetest.Place{
		Profile: p, Address: s.Address, Prefix: prefix, Root: filepath.Join(s.Root, s.Bucket, prefix),
		Via: func(address string) deliver.Profile {
			p := p
			p.Endpoint = strings.Replace(p.Endpoint, s.Address, address, 1)
			return p
		},
		Files: func() map[string][]byte {
			found := map[string][]byte{}
			for name, data := range testbed.Tree(t, filepath.Join(s.Root, s.Bucket, prefix)) {
				found[prefix+name] = data
			}
			return found
		},
		Remove: func(path string) {
			if err := s.Client().RemoveObject(t.Context(), s.Bucket, path, minio.RemoveObjectOptions{}); err != nil {
				t.Fatal(err)
			}
		},
		Plant: func(path string, data []byte) {
			if _, err := s.Client().PutObject(t.Context(), s.Bucket, path, bytes.NewReader(data), int64(len(data)), minio.PutObjectOptions{}); err != nil {
				t.Fatal(err)
			}
		},
	}
}
