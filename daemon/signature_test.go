package daemon

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"capd/ctl/wire"
	"capd/testbed"
)

// OpenSSH itself is the judge of our signatures.
func TestSignatureSatisfiesSSHKeygen(t *testing.T) {
	testbed.NeedCommand(t, "ssh-keygen")
	dir := t.TempDir()
	first, err := openSigner(dir, "edge-1")
	if err != nil {
		t.Fatal(err)
	}
	again, err := openSigner(dir, "edge-1")
	if err != nil {
		t.Fatal(err)
	}
	data := []byte("{\"capd\": \"test\"}\n")
	sig, err := again.sign(data)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.key.PublicKey().Marshal(), again.key.PublicKey().Marshal()) {
		t.Error("the second start made another key")
	}
	public, err := os.ReadFile(filepath.Join(dir, "signing_key.pub"))
	if err != nil {
		t.Fatal(err)
	}
	allowed, sigFile := filepath.Join(dir, "allowed"), filepath.Join(dir, "sig")
	for path, text := range map[string][]byte{allowed: append([]byte("edge-1 "), public...), sigFile: sig} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	verify := func(data []byte) error {
		cmd := exec.Command("ssh-keygen", "-Y", "verify", "-f", allowed, "-I", "edge-1", "-n", wire.SignatureNamespace, "-s", sigFile)
		cmd.Stdin = bytes.NewReader(data)
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		return err
	}
	if err := verify(data); err != nil {
		t.Errorf("ssh-keygen refuses the signature: %v", err)
	}
	if err := verify(append(data, ' ')); err == nil {
		t.Error("ssh-keygen accepts the signature for other data")
	}
	info, err := os.Stat(filepath.Join(dir, "signing_key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("signing_key: %v %v", info.Mode(), err)
	}
}
