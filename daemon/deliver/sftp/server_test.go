package sftp_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"capd/ctl/wire"
	"capd/daemon/deliver"
	"capd/daemon/deliver/storetest"
	"capd/testbed"
)

func TestLeftoversOfTheSameCaptureAreRemovedAndNoOthers(t *testing.T) {
	server := testbed.NewSSHD(t)
	p := place(t, server)
	o, data := storetest.Object(p.Prefix+"x/0001.pcapng", 1000)
	mine := p.Prefix + "x/.0007.pcapng.part-" + o.Tag + "-0123456789ab"
	others := p.Prefix + "x/.0001.pcapng.part-111122223333-0123456789ab"
	foreign := p.Prefix + "x/.0001.pcapng.swp"
	for _, path := range []string{mine, others, foreign} {
		p.Plant(path, []byte("half"))
	}
	storetest.Put(t, open(t, p.Profile), o)
	storetest.Holds(t, p, map[string][]byte{o.Path: data, others: []byte("half"), foreign: []byte("half")})
}

func TestLeftoversGoEvenIfTheFileIsThere(t *testing.T) {
	server := testbed.NewSSHD(t)
	p := place(t, server)
	o, data := storetest.Object(p.Prefix+"x/0001.pcapng", 1000)
	storetest.Put(t, open(t, p.Profile), o)
	p.Plant(p.Prefix+"x/.0001.pcapng.part-"+o.Tag+"-0123456789ab", data)
	if result := storetest.Put(t, open(t, p.Profile), o); !result.AlreadyThere {
		t.Errorf("got %+v", result)
	}
	storetest.Holds(t, p, map[string][]byte{o.Path: data})
}

func TestServersThatLackExtensions(t *testing.T) {
	for name, deny := range map[string]string{
		"no hard links":         "hardlink",
		"no fsync":              "fsync",
		"no listing":            "opendir,readdir",
		"no statvfs":            "statvfs",
		"neither link nor sync": "hardlink,fsync",
	} {
		t.Run(name, func(t *testing.T) {
			server := testbed.NewSSHD(t, "ForceCommand internal-sftp -d %ROOT% -P "+deny)
			p := place(t, server)
			o, data := storetest.Object(p.Prefix+"x/0001.pcapng", 300_000)
			st := open(t, p.Profile)
			storetest.Put(t, st, o)
			if result := storetest.Put(t, st, o); !result.AlreadyThere {
				t.Errorf("got %+v", result)
			}
			other, _ := storetest.Object(o.Path, 300_001)
			_, err := st.Put(t.Context(), other)
			storetest.Failed(t, err, deliver.ReasonExists)
			storetest.Holds(t, p, map[string][]byte{o.Path: data})
		})
	}
}

func TestAServerThatMayOnlyBeRead(t *testing.T) {
	server := testbed.NewSSHD(t, "ForceCommand internal-sftp -d %ROOT% -R")
	p := place(t, server)
	o, _ := storetest.Object(p.Prefix+"x/0001.pcapng", 1000)
	_, err := open(t, p.Profile).Put(t.Context(), o)
	if failure := storetest.Failed(t, err, deliver.ReasonPermission); !failure.Permanent || failure.Code != wire.CodeDestinationRefused || failure.Hint == "" {
		t.Errorf("got %+v", failure)
	}
	if last := checked(t, p.Profile, deliver.StepWrite); last.Hint == "" {
		t.Errorf("got %+v", last)
	}
	storetest.Holds(t, p, nil)
}

func TestAnAccountWithoutSFTP(t *testing.T) {
	server := testbed.NewSSHD(t, "ForceCommand /bin/false")
	last := checked(t, profile(server), deliver.StepAuthenticate)
	if !strings.Contains(last.Detail, "no SFTP") || !strings.Contains(last.Hint, "Subsystem sftp") {
		t.Errorf("got %+v", last)
	}
}

func TestAFullDisk(t *testing.T) {
	testbed.NeedRoot(t)
	server := testbed.NewSSHD(t)
	if err := unix.Mount("capd-test", server.Root, "tmpfs", 0, "size=1m"); err != nil {
		testbed.Lacking(t, "the right to mount")
	}
	t.Cleanup(func() {
		server.Stop()
		if err := unix.Unmount(server.Root, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	p := place(t, server)
	o, data := storetest.Object(p.Prefix+"x/0001.pcapng", 2<<20)
	st := open(t, p.Profile)
	_, err := st.Put(t.Context(), o)
	if failure := storetest.Failed(t, err, deliver.ReasonNoSpace); failure.Permanent || failure.Code != wire.CodeNoSpace {
		t.Errorf("got %+v", failure)
	}
	storetest.Holds(t, p, nil)
	if err := unix.Mount("capd-test", server.Root, "tmpfs", unix.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	storetest.Put(t, st, o)
	storetest.Holds(t, p, map[string][]byte{o.Path: data})
}

func TestAServerRestartedInTheMiddle(t *testing.T) {
	server := testbed.NewSSHD(t)
	p := place(t, server)
	p.Profile.Bandwidth = 16 << 20 // so that it falls in the middle
	o, data := storetest.Object(p.Prefix+"x/0001.pcapng", 8<<20)
	var sent int64
	var once sync.Once
	o.Sent = func(n int64) {
		if sent += n; sent > 4<<20 {
			once.Do(server.Stop)
		}
	}
	st := open(t, p.Profile)
	_, err := st.Put(t.Context(), o)
	if failure := storetest.Failed(t, err, deliver.ReasonCut); failure.Permanent {
		t.Errorf("got %+v", failure)
	}
	_, err = st.Put(t.Context(), o)
	storetest.Failed(t, err, deliver.ReasonConnect)
	if _, there := p.Files()[o.Path]; there {
		t.Error("half a file is visible")
	}
	server.Start()
	storetest.Put(t, st, o)
	storetest.Holds(t, p, map[string][]byte{o.Path: data})
}

func TestBytesChangedAtRestAreFoundBeforeTheFileHasItsName(t *testing.T) {
	server := testbed.NewSSHD(t)
	p := place(t, server)
	// Slow enough that the end of the file is read back after it was changed.
	p.Profile.Bandwidth = 8 << 20
	o, data := storetest.Object(p.Prefix+"x/0001.pcapng", 8<<20)
	done := make(chan error, 1)
	go func() { done <- flip(filepath.Join(server.Root, p.Prefix, "x"), o.Size) }()
	st := open(t, p.Profile)
	_, err := st.Put(t.Context(), o)
	if flipErr := <-done; flipErr != nil {
		t.Fatal(flipErr)
	}
	if failure := storetest.Failed(t, err, deliver.ReasonCorrupt); failure.Permanent {
		t.Errorf("got %+v", failure)
	}
	storetest.Holds(t, p, nil)
	storetest.Put(t, st, o)
	storetest.Holds(t, p, map[string][]byte{o.Path: data})
}

// flip changes the last byte of the first file in a folder that has grown to a size.
func flip(dir string, size int64) error {
	for {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil || info.Size() != size {
				continue
			}
			f, err := os.OpenFile(filepath.Join(dir, e.Name()), os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			last := make([]byte, 1)
			if _, err := f.ReadAt(last, size-1); err != nil {
				return err
			}
			last[0] ^= 1
			_, err = f.WriteAt(last, size-1)
			return err
		}
	}
}

func TestChecksumsThatTheServerDoesNotHave(t *testing.T) {
	server := testbed.NewSSHD(t)
	p := profile(server)
	p.Verify = deliver.VerifyChecksum
	if last := checked(t, p, deliver.StepVerify); !strings.Contains(last.Hint, "readback") {
		t.Errorf("got %+v", last)
	}
	o, _ := storetest.Object("x/0001.pcapng", 10)
	_, err := open(t, p).Put(t.Context(), o)
	storetest.Failed(t, err, deliver.ReasonUnsupported)
}

func TestAFolderThatIsAFile(t *testing.T) {
	server := testbed.NewSSHD(t)
	p := place(t, server)
	p.Plant(p.Prefix+"x", []byte("a file"))
	o, _ := storetest.Object(p.Prefix+"x/y/0001.pcapng", 10)
	_, err := open(t, p.Profile).Put(t.Context(), o)
	if failure := storetest.Failed(t, err, deliver.ReasonRefused, deliver.ReasonUnknown, deliver.ReasonPermission); failure.Reason == deliver.ReasonNoSpace {
		t.Errorf("got %+v", failure)
	}
	storetest.Holds(t, p, map[string][]byte{p.Prefix + "x": []byte("a file")})
}

func TestABitTurnedOnTheWayNeverArrives(t *testing.T) {
	server := testbed.NewSSHD(t)
	p := place(t, server)
	proxy := storetest.NewProxy(t, server.Address)
	o, data := storetest.Object(p.Prefix+"x/0001.pcapng", 300_000)
	st := open(t, p.Via(proxy.Address))
	proxy.Set(storetest.Fault{Kind: storetest.Flip, Direction: storetest.Up, At: 150_000})
	_, err := st.Put(t.Context(), o)
	if err == nil || !proxy.Struck() {
		t.Fatalf("struck %v, got %v", proxy.Struck(), err)
	}
	if _, there := p.Files()[o.Path]; there {
		t.Error("it is visible")
	}
	storetest.Put(t, st, o)
	if got := p.Files()[o.Path]; !bytes.Equal(got, data) {
		t.Errorf("%d bytes arrived", len(got))
	}
}
