package s3_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/minio/minio-go/v7"

	"capd/daemon/deliver"
	"capd/daemon/deliver/s3"
	"capd/daemon/deliver/storetest"
	"capd/testbed"
)

func TestConformanceAgainstVersitygw(t *testing.T) {
	server := testbed.NewS3(t, testbed.S3Options{})
	storetest.Run(t, storetest.Suite{Open: s3.Open, New: func(t *testing.T) storetest.Place { return place(t, server) }})
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
	prefix := fmt.Sprintf("place%03d/", places.Add(1))
	p := profile(s)
	p.Path = prefix + "{date}/{file}"
	return storetest.Place{
		Profile: p, Address: s.Address, Prefix: prefix,
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
		Plant: func(path string, data []byte) {
			if _, err := s.Client().PutObject(t.Context(), s.Bucket, path, bytes.NewReader(data), int64(len(data)), minio.PutObjectOptions{}); err != nil {
				t.Fatal(err)
			}
		},
	}
}
