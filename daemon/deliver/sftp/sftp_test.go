package sftp_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"capd/daemon/deliver"
	"capd/daemon/deliver/sftp"
	"capd/daemon/deliver/storetest"
	"capd/testbed"
)

func TestConformanceAgainstOpenSSH(t *testing.T) {
	server := testbed.NewSSHD(t)
	disk := testbed.NewDisk(t, server.Root, server.Stop, server.Start, nil)
	storetest.Run(t, storetest.Suite{Open: sftp.Open, New: func(t *testing.T) storetest.Place {
		p := place(t, server)
		p.Stop, p.Start, p.Fill = server.Stop, server.Start, disk.Fill
		return p
	}, Troubles: []storetest.Trouble{
		{Name: "another host key", Reason: deliver.ReasonHostKey, Permanent: true, Make: func(t *testing.T, p storetest.Place) (deliver.Profile, func() deliver.Profile) {
			bad := p.Profile
			bad.HostKey = testbed.NewSSHD(t).HostKey
			return bad, func() deliver.Profile { return p.Profile }
		}},
		{Name: "a key that it does not know", Reason: deliver.ReasonCredentials, Permanent: true, Make: func(t *testing.T, p storetest.Place) (deliver.Profile, func() deliver.Profile) {
			bad := p.Profile
			bad.PrivateKey = testbed.NewSSHD(t).PrivateKey
			return bad, func() deliver.Profile { return p.Profile }
		}},
	}})
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
		Profile: p, Address: s.Address, Prefix: prefix, Root: dir,
		Forbid: func() { immutable(t, dir, true) }, Permit: func() { immutable(t, dir, false) },
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
		Remove: func(path string) {
			if err := os.Remove(filepath.Join(s.Root, path)); err != nil {
				t.Fatal(err)
			}
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

// immutable says whether nothing may be made, changed or removed in folders: also not by
// root, as whom the servers of tests may run (FS_IMMUTABLE_FL, ioctl_iflags(2)).
func immutable(t testing.TB, root string, on bool) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
		if err != nil {
			return err
		}
		flags |= immutableFlag
		if !on {
			flags &^= immutableFlag
		}
		return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags)
	})
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) {
		testbed.Lacking(t, "a kernel whose tmpfs knows immutable folders (6.6)")
	}
	if err != nil {
		t.Error(err)
	}
}

// immutableFlag is FS_IMMUTABLE_FL of linux/fs.h.
const immutableFlag = 0x10
