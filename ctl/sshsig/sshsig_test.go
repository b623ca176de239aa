package sshsig

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"capd/testbed"
)

// sign makes a key of a type and signs message with it by ssh-keygen.
func sign(t *testing.T, kind, namespace, message string, options ...string) (public, signature []byte) {
	t.Helper()
	testbed.NeedCommand(t, "ssh-keygen")
	dir := t.TempDir()
	key, file := filepath.Join(dir, "key"), filepath.Join(dir, "message")
	if err := os.WriteFile(file, []byte(message), 0o600); err != nil {
		t.Fatal(err)
	}
	testbed.Run(t, "ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "capd@edge-1", "-f", key)
	args := []string{"-Y", "sign", "-f", key, "-n", namespace}
	for _, o := range options {
		args = append(args, "-O", o)
	}
	if out, err := exec.Command("ssh-keygen", append(args, file)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, f := range []struct {
		path string
		to   *[]byte
	}{{key + ".pub", &public}, {file + ".sig", &signature}} {
		data, err := os.ReadFile(f.path)
		if err != nil {
			t.Fatal(err)
		}
		*f.to = data
	}
	return public, signature
}

func TestCheckWhatSSHKeygenSigns(t *testing.T) {
	for _, test := range []struct {
		kind    string
		options []string
	}{{"ed25519", nil}, {"ecdsa", []string{"hashalg=sha256"}}, {"rsa", nil}} {
		t.Run(test.kind, func(t *testing.T) {
			public, signature := sign(t, test.kind, "capd-manifest", "hello", test.options...)
			key, err := Check([]byte("hello"), signature, "capd-manifest")
			if err != nil {
				t.Fatal(err)
			}
			signers, err := ParseSigners(public)
			if err != nil {
				t.Fatal(err)
			}
			if name, ok, _ := signers.Find(key, "edge-1", "capd-manifest", time.Now()); !ok || name != "capd@edge-1" {
				t.Errorf("%q %t", name, ok)
			}
			if _, err := Check([]byte("hello!"), signature, "capd-manifest"); !errors.Is(err, ErrInvalid) {
				t.Errorf("other bytes: %v", err)
			}
			if _, err := Check([]byte("hello"), signature, "file"); !errors.Is(err, ErrInvalid) {
				t.Errorf("another namespace: %v", err)
			}
			if _, err := Check([]byte("hello"), public, "capd-manifest"); err == nil {
				t.Error("a key was taken for a signature")
			}
		})
	}
}

func TestSigners(t *testing.T) {
	public, signature := sign(t, "ed25519", "capd-manifest", "x")
	key, err := Check([]byte("x"), signature, "capd-manifest")
	if err != nil {
		t.Fatal(err)
	}
	k := strings.TrimSpace(string(public))
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		text, name string
		ok         bool
	}{
		{"# comment\n\nedge-1,edge-2 " + k, "edge-1,edge-2", true},
		{"\"edge one\" " + k, "edge one", true},
		{`e namespaces="git,capd-*" ` + k, "e", true},
		{`e namespaces="git" ` + k, "", false},
		{`e valid-after="20260101",valid-before="20270101Z" ` + k, "e", true},
		{`e valid-before="20260101" ` + k, "", false},
		{`e valid-after="202612312359" ` + k, "", false},
		{`e namespaces="git" ` + k + "\nf " + k, "f", true},
		{"* cert-authority " + k + "\nf " + k, "f", true},
	} {
		s, err := ParseSigners([]byte(test.text))
		if err != nil {
			t.Errorf("%q: %v", test.text, err)
			continue
		}
		if name, ok, _ := s.Find(key, "e", "capd-manifest", now); ok != test.ok || name != test.name {
			t.Errorf("%q: %q %t", test.text, name, ok)
		}
	}
	for _, text := range []string{"", "edge-1", "edge-1 ssh-ed25519 AAAA", `e valid-before="soon" ` + k, `e shiny="1" ` + k, "* cert-authority " + k} {
		if s, err := ParseSigners([]byte(text)); err == nil {
			t.Errorf("%q is taken for %+v", text, s)
		}
	}
}

// A key may sign only in the names that stand before it, as ssh-keygen -Y verify -I has it.
func TestPrincipals(t *testing.T) {
	for _, test := range []struct {
		list string
		own  bool
	}{
		{"edge-1", true}, {"edge-2", false}, {"edge", false}, {"edge-10", false}, {"edge-2,edge-1", true}, {"edge-*", true}, {"*", true}, {"*-1", true},
		{"e*e-?", true}, {"edge-??", false}, {"!edge-1,*", false}, {"*,!edge-1", false}, {"!edge-2,edge-*", true}, {"!edge-2", false}, {"", false}, {"e*2*", false}, {"[e]dge-1", false},
	} {
		if own := matchList("edge-1", test.list); own != test.own {
			t.Errorf("%q: %t", test.list, own)
		}
	}
}

func FuzzCheck(f *testing.F) {
	f.Add([]byte("-----BEGIN SSH SIGNATURE-----\nU1NIU0lHAAAAAQ==\n-----END SSH SIGNATURE-----\n"))
	f.Fuzz(func(t *testing.T, armored []byte) {
		if key, err := Check([]byte("message"), armored, "capd-manifest"); err == nil {
			t.Errorf("made up a signature by %s", Fingerprint(key))
		}
	})
}

func FuzzParseSigners(f *testing.F) {
	f.Add([]byte(`edge-1 namespaces="capd-*" ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJqT4jTc0qNyUB6PJoWB7pXcgvNs2LyFbbwQIpHrBkA7 x`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if s, err := ParseSigners(text); err == nil && len(s.entries) == 0 {
			t.Error("no key and no error")
		}
	})
}
