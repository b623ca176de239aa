package sftp_test

import (
	"strings"
	"testing"

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
		"no limits":             "limits", // as OpenSSH before 8.5
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
	if !strings.Contains(last.Detail, "no SFTP") || !strings.Contains(last.Hint, "Subsystem sftp") || !strings.Contains(last.Hint, "ForceCommand internal-sftp") {
		t.Errorf("got %+v", last)
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
