package sftp_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"capd/daemon/deliver"
	"capd/daemon/deliver/sftp"
	"capd/daemon/deliver/storetest"
	"capd/testbed"
)

func TestConformanceAgainstOpenSSH(t *testing.T) {
	server := testbed.NewSSHD(t)
	storetest.Run(t, storetest.Suite{Open: sftp.Open, New: func(t *testing.T) storetest.Place { return place(t, server) }})
}

// profile leads to a server.
func profile(s *testbed.SSHD) deliver.Profile {
	return deliver.Profile{Name: "test", Type: deliver.TypeSFTP, Address: s.Address, User: s.User, PrivateKey: s.PrivateKey, HostKey: s.HostKey}
}

// place makes a folder on a server.
func place(t *testing.T, s *testbed.SSHD) storetest.Place {
	t.Helper()
	dir, err := os.MkdirTemp(s.Root, "place")
	if err != nil {
		t.Fatal(err)
	}
	prefix := filepath.Base(dir) + "/"
	p := profile(s)
	p.Path = prefix + "{date}/{file}"
	return storetest.Place{
		Profile: p, Address: s.Address, Prefix: prefix,
		Via: func(address string) deliver.Profile {
			p := p
			p.Address = address
			return p
		},
		Files: func() map[string][]byte {
			found := map[string][]byte{}
			for name, data := range testbed.Tree(t, dir) {
				found[prefix+name] = data
			}
			return found
		},
		Plant: func(path string, data []byte) {
			path = filepath.Join(dir, strings.TrimPrefix(path, prefix))
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, data, 0o644); err != nil {
				t.Fatal(err)
			}
		},
	}
}
