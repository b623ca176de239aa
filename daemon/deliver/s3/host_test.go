package s3

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"capd/daemon/deliver"
	"capd/daemon/deliver/storetest"
	"capd/testbed"
)

// The bucket's name in the host's name needs DNS that a test does not have: the names
// are connected to the server by hand, everything else is real.
func TestTheBucketInTheHostsName(t *testing.T) {
	server := testbed.NewS3(t, testbed.S3Options{VirtualDomain: "s3.example.test"})
	_, port, _ := net.SplitHostPort(server.Address)
	for _, pathStyle := range []bool{false, true} {
		p := deliver.Profile{Name: "x", Type: deliver.TypeS3, Endpoint: "http://s3.example.test:" + port, Bucket: server.Bucket,
			AccessKeyID: server.AccessKeyID, SecretAccessKeyFile: server.SecretFile, PathStyle: &pathStyle}.WithDefaults()
		st, err := Open(p, storetest.Env(t, p))
		if err != nil {
			t.Fatal(err)
		}
		var asked string
		st.(*Store).transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			asked = address
			return net.Dial("tcp", server.Address)
		}
		o, data := storetest.Object(fmt.Sprintf("path-style-%v/0001.pcapng", pathStyle), 1000)
		storetest.Put(t, st, o)
		if err := st.Close(); err != nil {
			t.Error(err)
		}
		want := map[bool]string{false: server.Bucket + ".s3.example.test:" + port, true: "s3.example.test:" + port}[pathStyle]
		if asked != want {
			t.Errorf("connected to %s, want %s", asked, want)
		}
		got, err := os.ReadFile(filepath.Join(server.Root, server.Bucket, o.Path))
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	}
}
