package sftp_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"capd/ctl/wire"
	"capd/daemon/deliver"
	"capd/daemon/deliver/sftp"
	"capd/daemon/deliver/storetest"
	"capd/testbed"
)

// open makes a store that ends with the test.
func open(t *testing.T, p deliver.Profile) deliver.Store {
	t.Helper()
	return storetest.Open(t, sftp.Open, p)
}

// write makes a file in a folder of the test's.
func write(t *testing.T, name, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// checked runs a check and wants it to end well, or at a step; it gives that step.
func checked(t *testing.T, p deliver.Profile, failing string) wire.CheckStep {
	t.Helper()
	steps := storetest.Checked(t, open(t, p), failing)
	for i, step := range []string{deliver.StepProfile, deliver.StepResolve, deliver.StepConnect, deliver.StepHostKey, deliver.StepAuthenticate} {
		if i >= len(steps) {
			break
		}
		if steps[i].Step != step {
			t.Fatalf("step %d is not told: want %q, got %+v", i, step, steps)
		}
	}
	return steps[len(steps)-1]
}

func fingerprint(t *testing.T, line string) string {
	t.Helper()
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	return ssh.FingerprintSHA256(key)
}

func otherKey(t *testing.T) string {
	t.Helper()
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

func TestHostKeysThatAreRight(t *testing.T) {
	server := testbed.NewSSHD(t)
	_, port, _ := net.SplitHostPort(server.Address)
	host := "[127.0.0.1]:" + port
	for name, set := range map[string]func(*deliver.Profile){
		"known_hosts": func(p *deliver.Profile) { p.HostKey, p.KnownHosts = "", server.KnownHosts },
		"known_hosts with one kind of key": func(p *deliver.Profile) {
			p.HostKey, p.KnownHosts = "", write(t, "kh", host+" "+server.ECDSAKey+"\n", 0o644)
		},
		"known_hosts beside other hosts": func(p *deliver.Profile) {
			p.HostKey, p.KnownHosts = "", write(t, "kh", "example.net "+otherKey(t)+"\n"+host+" "+server.HostKey+"\n", 0o644)
		},
		"known_hosts beside an authority": func(p *deliver.Profile) {
			p.HostKey, p.KnownHosts = "", write(t, "kh", "@cert-authority *.example.net "+otherKey(t)+"\n"+host+" "+server.HostKey+"\n", 0o644)
		},
		"pinned key":                         func(p *deliver.Profile) { p.HostKey = server.HostKey },
		"pinned key of another kind":         func(p *deliver.Profile) { p.HostKey = server.ECDSAKey },
		"pinned fingerprint":                 func(p *deliver.Profile) { p.HostKey = fingerprint(t, server.HostKey) },
		"pinned fingerprint of another kind": func(p *deliver.Profile) { p.HostKey = fingerprint(t, server.ECDSAKey) },
	} {
		t.Run(name, func(t *testing.T) {
			p := profile(server)
			set(&p)
			checked(t, p, "")
		})
	}
}

// Of several known keys the Ed25519 one is asked for, wherever it stands in the file.
func TestTheBestKnownKindIsAskedFor(t *testing.T) {
	server := testbed.NewSSHD(t)
	_, port, _ := net.SplitHostPort(server.Address)
	host := "[127.0.0.1]:" + port
	for _, lines := range [][]string{{server.ECDSAKey, server.HostKey}, {server.HostKey, server.ECDSAKey}} {
		p := profile(server)
		p.HostKey, p.KnownHosts = "", write(t, "kh", host+" "+lines[0]+"\n"+host+" "+lines[1]+"\n", 0o644)
		check := open(t, p).Check(t.Context())
		if !slices.ContainsFunc(check.Steps, func(s wire.CheckStep) bool {
			return s.Step == deliver.StepHostKey && strings.Contains(s.Detail, "ssh-ed25519 "+fingerprint(t, server.HostKey))
		}) {
			t.Errorf("got %+v", check.Steps)
		}
	}
}

func TestHostKeysThatAreWrong(t *testing.T) {
	server := testbed.NewSSHD(t)
	_, port, _ := net.SplitHostPort(server.Address)
	host := "[127.0.0.1]:" + port
	for name, test := range map[string]struct {
		set  func(*deliver.Profile)
		want []string // in message or hint
	}{
		"unknown": {func(p *deliver.Profile) { p.HostKey, p.KnownHosts = "", write(t, "kh", "", 0o644) }, []string{"not known", "add this line"}},
		"changed": {func(p *deliver.Profile) {
			p.HostKey, p.KnownHosts = "", write(t, "kh", "\n"+host+" "+otherKey(t)+"\n", 0o644)
		}, []string{"not the one that is known", "in line 2", "replace the line"}},
		"revoked": {func(p *deliver.Profile) {
			p.HostKey, p.KnownHosts = "", write(t, "kh", "@revoked * "+server.HostKey+"\n"+host+" "+server.HostKey+"\n", 0o644)
		}, []string{"revokes"}},
		"pinned key":         {func(p *deliver.Profile) { p.HostKey = otherKey(t) }, []string{"not the pinned one", "host_key ="}},
		"pinned fingerprint": {func(p *deliver.Profile) { p.HostKey = fingerprint(t, otherKey(t)) }, []string{"not the pinned one", "host_key ="}},
	} {
		t.Run(name, func(t *testing.T) {
			p := profile(server)
			test.set(&p)
			last := checked(t, p, deliver.StepHostKey)
			for _, want := range append(test.want, fingerprint(t, server.HostKey)) {
				if !strings.Contains(last.Detail+last.Hint, want) {
					t.Errorf("%q does not speak of %q", last.Detail+" / "+last.Hint, want)
				}
			}
			o, _ := storetest.Object("x/0001.pcapng", 10)
			_, err := open(t, p).Put(t.Context(), o)
			if failure := storetest.Failed(t, err, deliver.ReasonHostKey); !failure.Permanent || failure.Code != wire.CodeDestinationRefused {
				t.Errorf("got %+v", failure)
			}
		})
	}
	if got := testbed.Tree(t, server.Root); len(got) != 0 {
		t.Errorf("something was written to an unknown server: %v", got)
	}
}

func TestTheLineThatTheHintGivesIsTheMend(t *testing.T) {
	server := testbed.NewSSHD(t)
	p := profile(server)
	p.HostKey, p.KnownHosts = "", write(t, "kh", "", 0o644)
	_, line, found := strings.Cut(checked(t, p, deliver.StepHostKey).Hint, "add this line to "+p.KnownHosts+": ")
	if !found {
		t.Fatal("the hint has no line")
	}
	if err := os.WriteFile(p.KnownHosts, []byte(line+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	checked(t, p, "")
}

func TestKnownHostsThatIsNotThere(t *testing.T) {
	p := deliver.Profile{Name: "x", Type: deliver.TypeSFTP, Address: "127.0.0.1:2222", User: "u", PrivateKey: write(t, "key", newKey(t, ""), 0o600), KnownHosts: "/does/not/exist"}
	if hint := checked(t, p, deliver.StepProfile).Hint; !strings.Contains(hint, "ssh-keyscan -p 2222 127.0.0.1 > /does/not/exist") {
		t.Errorf("hint %q", hint)
	}
}

// newKey makes a private key in OpenSSH's form, locked if there is a passphrase.
func newKey(t *testing.T, passphrase string) string {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var block *pem.Block
	if passphrase == "" {
		block, err = ssh.MarshalPrivateKey(private, "")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(private, "", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(block))
}

func TestKeyFilesThatCannotBeUsed(t *testing.T) {
	server := testbed.NewSSHD(t)
	good, err := os.ReadFile(server.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		path, step, want string
	}{
		"others may read it": {write(t, "key", string(good), 0o644), deliver.StepProfile, "chmod 600 "},
		"the group may read": {write(t, "key", string(good), 0o640), deliver.StepProfile, "chmod 600 "},
		"locked":             {write(t, "key", newKey(t, "sesame"), 0o600), deliver.StepProfile, "passphrase"},
		"not a key":          {write(t, "key", "sesame sesame", 0o600), deliver.StepProfile, "not a private SSH key"},
		"not there":          {"/does/not/exist", deliver.StepProfile, "no file"},
		"somebody else's":    {write(t, "key", newKey(t, ""), 0o600), deliver.StepAuthenticate, "ssh-keygen -y -f "},
	} {
		t.Run(name, func(t *testing.T) {
			p := profile(server)
			p.PrivateKey = test.path
			last := checked(t, p, test.step)
			if text := last.Detail + " / " + last.Hint; !strings.Contains(text, test.want) || strings.Contains(text, "sesame") {
				t.Errorf("got %q", text)
			}
			o, _ := storetest.Object("x/0001.pcapng", 10)
			_, err := open(t, p).Put(t.Context(), o)
			if failure := storetest.Failed(t, err, deliver.ReasonSecretFile, deliver.ReasonCredentials); !failure.Permanent {
				t.Errorf("got %+v", failure)
			}
		})
	}
}

func TestAKeyThatWasExchangedCountsAtOnce(t *testing.T) {
	server := testbed.NewSSHD(t)
	good, err := os.ReadFile(server.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	p := profile(server)
	p.PrivateKey = write(t, "key", newKey(t, ""), 0o600)
	st := open(t, p)
	if check := st.Check(t.Context()); check.OK {
		t.Fatal("a stranger's key was accepted")
	}
	if err := os.WriteFile(p.PrivateKey, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if check := st.Check(t.Context()); !check.OK {
		t.Errorf("the new key does not count: %+v", check)
	}
}

func TestNamesThatDoNotResolve(t *testing.T) {
	server := testbed.NewSSHD(t)
	p := profile(server)
	p.Address = "no-such-host.invalid:22"
	last := checked(t, p, deliver.StepResolve)
	if !strings.Contains(last.Detail, "no-such-host.invalid") || last.Hint == "" {
		t.Errorf("got %+v", last)
	}
	o, _ := storetest.Object("x/0001.pcapng", 10)
	_, err := open(t, p).Put(t.Context(), o)
	if failure := storetest.Failed(t, err, deliver.ReasonResolve); failure.Permanent {
		t.Errorf("got %+v", failure)
	}
}

func TestSomethingElseListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(conn, "HTTP/1.1 400 Bad Request\r\n\r\n")
			conn.Close()
		}
	}()
	p := deliver.Profile{Name: "x", Type: deliver.TypeSFTP, Address: l.Addr().String(), User: "u", PrivateKey: write(t, "key", newKey(t, ""), 0o600), HostKey: otherKey(t)}
	if last := checked(t, p, deliver.StepConnect); !strings.Contains(last.Detail, "does not answer as an SSH server") {
		t.Errorf("got %+v", last)
	}
}
