package ctl

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"capd/ctl/wire"
	"capd/testbed"
)

// signedCapture is a folder with one plain file of edge-1, its manifest and signature, and
// the public key.
func signedCapture(t *testing.T) (dir, public string) {
	t.Helper()
	testbed.NeedCommand(t, "ssh-keygen")
	dir = t.TempDir()
	data := someCapture(3)
	sum := sha256.Sum256(data)
	put(t, filepath.Join(dir, "0001.pcapng"), data)
	text, err := json.Marshal(wire.Manifest{Capture: wire.Capture{ID: runningID, Host: "edge-1", Files: []wire.File{{Name: "0001.pcapng",
		Status: wire.FileDelivered, Packets: 3, Bytes: uint64(len(data)), SHA256: hex.EncodeToString(sum[:])}}}})
	if err != nil {
		t.Fatal(err)
	}
	manifest, key := filepath.Join(dir, wire.ManifestName), filepath.Join(t.TempDir(), "box")
	put(t, manifest, text)
	testbed.Run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "capd@edge-1", "-f", key)
	testbed.Run(t, "ssh-keygen", "-Y", "sign", "-f", key, "-n", wire.SignatureNamespace, manifest)
	line, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	return dir, string(line)
}

// verifyHere runs capctl verify.
func verifyHere(ctx context.Context, args ...string) (exit int, stdout, stderr string) {
	var out, errs strings.Builder
	a := newTestApp()
	a.stdout, a.stderr, a.now = &out, &errs, time.Now
	exit = a.run(ctx, append([]string{"verify"}, args...))
	return exit, out.String(), errs.String()
}

// A trusted box may not sign in the name of another, as with ssh-keygen -Y verify -I.
func TestVerifyKnowsWhoMaySign(t *testing.T) {
	dir, public := signedCapture(t)
	signers := filepath.Join(t.TempDir(), "signers")
	for _, test := range []struct {
		lines string
		exit  int
		want  string
	}{
		{public, 0, "signed by capd@edge-1 (SHA256:"},
		{"edge-1 " + public, 0, "signed by edge-1 (SHA256:"},
		{"edge-*,!edge-2 " + public, 0, "signed by edge-*,!edge-2 (SHA256:"},
		{"edge-2 " + public, 1, "may not sign for this host"},
		{"edge-2 " + public + "edge-1 " + public, 0, "signed by edge-1 (SHA256:"},
		{"edge-1 namespaces=\"git\" " + public, 1, "not among the trusted"},
	} {
		put(t, signers, []byte(test.lines))
		if exit, stdout, stderr := verifyHere(t.Context(), "--signers", signers, dir); exit != test.exit || !strings.Contains(stdout, test.want) {
			t.Errorf("%s: exit code %d: %s%s", test.lines, exit, stdout, stderr)
		}
	}
	put(t, signers, []byte("edge-2 "+public))
	if _, stdout, _ := verifyHere(t.Context(), "--json", "--signers", signers, dir); !strings.Contains(stdout, `"status":"`+signedByOther+`"`) {
		t.Errorf("%s", stdout)
	}
}

// A pipe in a file's place is told, and not waited for; Ctrl-C ends a verification.
func TestVerifyWaitsForNothing(t *testing.T) {
	dir, _ := signedCapture(t)
	if exit, _, stderr := verifyHere(t.Context(), dir); exit != 0 {
		t.Fatalf("as delivered: %d: %s", exit, stderr)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if exit, stdout, stderr := verifyHere(ended, dir); exit != 1 || stdout != "" || !strings.Contains(stderr, "interrupted") {
		t.Errorf("interrupted: %d: %s%s", exit, stdout, stderr)
	}
	for name, want := range map[string]string{"0001.pcapng": "1 file unreadable", "manifest.json.sig": "1 manifest without a good signature", wire.ManifestName: "1 manifest unreadable"} {
		path := filepath.Join(dir, name)
		if err := os.Rename(path, path+".kept"); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		if exit, stdout, stderr := verifyHere(t.Context(), dir); exit != 1 || !strings.Contains(stdout, "is not a file") || !strings.Contains(stderr, want) {
			t.Errorf("%s: %d: %s%s", name, exit, stdout, stderr)
		}
		if err := os.Rename(path+".kept", path); err != nil {
			t.Fatal(err)
		}
	}
}

// Ctrl-C ends a merge that would go on for long, and leaves nothing behind.
func TestInterruptedMergeLeavesNothing(t *testing.T) {
	dir, in := t.TempDir(), filepath.Join(t.TempDir(), "0001.pcapng")
	put(t, in, someCapture(5000))
	ctx, interrupt := context.WithCancel(t.Context())
	err := writeNew(filepath.Join(dir, "all.pcapng"), false, func(w io.Writer) error {
		w = untilEnd{ctx, w}
		if _, err := w.Write([]byte("begun")); err != nil {
			t.Errorf("before: %v", err)
		}
		interrupt()
		_, err := w.Write([]byte("more"))
		return err
	})
	if err == nil {
		t.Error("it was written to the end")
	}
	var stderr strings.Builder
	a := newTestApp()
	a.stderr = &stderr
	if exit := a.run(ctx, []string{"merge", "-o", filepath.Join(dir, "all.pcapng"), in}); exit != 1 || !strings.Contains(stderr.String(), "capctl: interrupted") {
		t.Errorf("exit code %d: %s", exit, &stderr)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
