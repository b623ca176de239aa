package ctl

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"

	"capd/ctl/wire"
	"capd/ring/pcapng"
	"capd/testbed"
)

// deliverFor makes captures of traffic on loopback and delivers them to a real sshd and a
// real S3 server. It gives the daemon and the two folders that the servers serve. What
// goes to S3 is compressed and sealed to the key.
func deliverFor(t *testing.T, key *age.X25519Identity) (d *testbed.Daemon, sftp, s3 string) {
	t.Helper()
	sshd := testbed.NewSSHD(t)
	gw := testbed.NewS3(t, testbed.S3Options{TLS: true})
	d = testbed.StartDaemon(t, "", fmt.Sprintf(`
[daemon]
host = "edge-1"
[destination.soc]
type = "sftp"
address = %q
user = %q
private_key = %q
known_hosts = %q
[destination.evidence]
type = "s3"
endpoint = %q
region = %q
bucket = %q
path_style = true
ca_file = %q
access_key_id = %q
secret_access_key_file = %q
path = "{id}-{file}"
compression = "zstd"
encrypt_to = [%q]
`, sshd.Address, sshd.User, sshd.PrivateKey, sshd.KnownHosts,
		gw.Endpoint, gw.Region, gw.Bucket, gw.CAFile, gw.AccessKeyID, gw.SecretFile, key.Recipient()))
	for _, to := range []string{"soc", "evidence"} {
		id := d.Must("-q", "start", "-d", to, "-n", to, "--segment-size", "64KiB", "-f", talkRequest(t, 40711))
		talk(t, 40711, 300)
		d.Must("stop", id)
		d.Await(id, "complete", func(c wire.Capture) bool { return c.Status == wire.StatusComplete })
	}
	return d, sshd.Root, filepath.Join(gw.Root, gw.Bucket)
}

// talkRequest writes a request for what talk sends.
func talkRequest(t *testing.T, port int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "request.json")
	put(t, path, fmt.Appendf(nil, `{"filter_v1": {"destination_address": "127.0.0.1", "destination_port": %d, "protocol": 17}}`, port))
	return path
}

// talk sends datagrams of 700 bytes to a port on loopback.
func talk(t *testing.T, port, n int) {
	t.Helper()
	testbed.TalkToLoopback(t, port, "ctl", n, 700)
}

// filesBelow maps names to paths.
func filesBelow(t *testing.T, root string) map[string]string {
	t.Helper()
	return testbed.FilesBelow(t, root)
}

// What is delivered verifies; a byte changed, a file missing, a file too many, another
// signer and no signature do not. ssh-keygen agrees.
func TestVerifyDelivered(t *testing.T) {
	testbed.NeedRoot(t)
	testbed.NeedCommand(t, "ssh-keygen")
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	d, sftp, s3 := deliverFor(t, key)
	dir := t.TempDir()
	identity := filepath.Join(dir, "key.txt")
	public := filepath.Join(d.StateDir(), "signing_key.pub")
	text, err := os.ReadFile(public)
	if err != nil {
		t.Fatal(err)
	}
	allowed := filepath.Join(dir, "allowed_signers")
	for path, text := range map[string]string{identity: key.String() + "\n", allowed: "# who signs\nedge-1 namespaces=\"capd-*\" " + string(text)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	verify := func(exit int, args ...string) verified {
		t.Helper()
		r := d.Capctl(append([]string{"verify", "--json"}, args...)...)
		var got verified
		if err := json.Unmarshal([]byte(r.Stdout), &got); err != nil || r.Code != exit || got.OK != (exit == 0) {
			t.Fatalf("verify %v: %d, %v\n%s%s", args, r.Code, err, r.Stdout, r.Stderr)
		}
		return got
	}

	soc := verify(0, sftp)
	if c := soc.Captures[0]; len(soc.Captures) != 1 || len(c.Files) < 3 || c.Signature.Status != signedUnknown || !strings.HasPrefix(c.Signature.Key, "SHA256:") || c.Name != "soc" {
		t.Errorf("%+v", soc)
	}
	total := uint64(0)
	for _, f := range soc.Captures[0].Files {
		total += *f.Packets
	}
	if total != 300 {
		t.Errorf("%d packets were counted", total)
	}
	if c := verify(0, "--signers", allowed, sftp).Captures[0]; c.Signature.Status != signedTrusted || c.Signature.Signer != "edge-1" {
		t.Errorf("%+v", c.Signature)
	}
	verify(0, "--signers", public, sftp)
	// Sealed, and side by side in one folder under names of their own.
	if r := verify(1, "--signers", allowed, s3); len(r.Extra) > 0 || !strings.Contains(r.Captures[0].Error, "--identity") || r.Captures[0].Signature.Status != signedTrusted {
		t.Errorf("a sealed capture without its key: %+v", r)
	}
	sealed := verify(0, "--identity", identity, s3).Captures[0]
	total = 0
	for _, f := range sealed.Files {
		total += *f.Packets
	}
	if total != 300 || !strings.HasSuffix(sealed.Files[0].Name, ".pcapng.zst.age") {
		t.Errorf("%d packets were counted in %+v", total, sealed)
	}
	out := d.Capctl("verify", "--signers", allowed, "--identity", identity, s3, sftp)
	for _, want := range []string{"signed by edge-1 (SHA256:", "as delivered: ", "600 packets counted"} {
		if out.Code != 0 || !strings.Contains(out.Stdout, want) {
			t.Errorf("no %q: %+v", want, out)
		}
	}
	// Without --signers it says that nobody's key was asked for.
	out = d.Capctl("verify", sftp)
	if want := "packets counted; who signed it was not checked\n"; out.Code != 0 || !strings.HasSuffix(out.Stdout, want) || strings.Contains(out.Stdout, "as delivered") {
		t.Errorf("want a last line %q: %+v", want, out)
	}

	// ssh-keygen and sha256sum, as the documentation shows.
	manifest := filesBelow(t, sftp)[wire.ManifestName]
	here := filepath.Dir(manifest)
	byHand := exec.Command("sh", "-ec", `ssh-keygen -Y verify -f "$1" -I edge-1 -n capd-manifest -s manifest.json.sig < manifest.json
jq -r '.capture.files[] | "\(.sha256)  \(.name)"' manifest.json | sha256sum -c`, "sh", allowed)
	byHand.Dir = here
	if out, err := byHand.CombinedOutput(); err != nil || !strings.Contains(string(out), "Good") {
		t.Errorf("by hand: %v: %s", err, out)
	}

	// One byte.
	first := filepath.Join(here, "0001.pcapng")
	data, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	put(t, first, data)
	if f := verify(1, sftp).Captures[0].Files[0]; f.Status != fileChanged || f.Name != "0001.pcapng" {
		t.Errorf("%+v", f)
	}
	verify(1, first)
	verify(0, filepath.Join(here, "0002.pcapng"))
	if out := d.Capctl("verify", sftp); out.Code != 1 || !strings.Contains(out.Stdout, "0001.pcapng  changed") || !strings.Contains(out.Stderr, "capctl: not as delivered: 1 file changed") {
		t.Errorf("%+v", out)
	}
	if err := os.Remove(first); err != nil {
		t.Fatal(err)
	}
	if f := verify(1, sftp).Captures[0].Files[0]; f.Status != fileMissing {
		t.Errorf("%+v", f)
	}
	data[len(data)/2] ^= 1
	put(t, first, data)
	verify(0, sftp)
	stranger := filepath.Join(here, "0099.pcapng")
	put(t, stranger, data)
	if got := verify(1, sftp); len(got.Extra) != 1 || got.Extra[0] != stranger {
		t.Errorf("%+v", got.Extra)
	}
	verify(1, stranger)
	if err := os.Remove(stranger); err != nil {
		t.Fatal(err)
	}

	// The signature.
	other := filepath.Join(dir, "other")
	testbed.Run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", other)
	if c := verify(1, "--signers", other+".pub", sftp).Captures[0]; c.Signature.Status != signedUntrusted {
		t.Errorf("%+v", c.Signature)
	}
	signature, err := os.ReadFile(manifest + ".sig")
	if err != nil {
		t.Fatal(err)
	}
	text, err = os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	put(t, manifest, bytes.Replace(text, []byte(`"packets"`), []byte(`"packets" `), 1))
	if c := verify(1, sftp).Captures[0]; c.Signature.Status != signedBad {
		t.Errorf("%+v", c.Signature)
	}
	put(t, manifest, text)
	if err := os.Remove(manifest + ".sig"); err != nil {
		t.Fatal(err)
	}
	if c := verify(1, sftp).Captures[0]; c.Signature.Status != signedMissing {
		t.Errorf("%+v", c.Signature)
	}
	// Forged and signed anew: only --signers tells.
	put(t, manifest, bytes.Replace(text, []byte(`"name": "soc"`), []byte(`"name": "sox"`), 1))
	testbed.Run(t, "ssh-keygen", "-Y", "sign", "-f", other, "-n", wire.SignatureNamespace, manifest)
	out = d.Capctl("verify", sftp)
	if out.Code != 0 || !regexp.MustCompile(`(?m)^(!|warn) manifest\.json  .* \(SHA256:.*--signers FILE`).MatchString(out.Stdout) || !strings.HasSuffix(out.Stdout, "not checked\n") {
		t.Errorf("forged, without --signers: %+v", out)
	}
	if c := verify(1, "--signers", public, sftp).Captures[0]; c.Name != "sox" || c.Signature.Status != signedUntrusted {
		t.Errorf("forged: %+v", c)
	}
	put(t, manifest+".sig", signature)
	put(t, manifest, []byte("{}"))
	if c := verify(1, sftp).Captures[0]; c.Error == "" {
		t.Errorf("%+v", c)
	}
}

func put(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// someCapture is a pcapng file with packets of 1000 bytes that do not compress well.
func someCapture(packets int) []byte {
	s := pcapng.Section{Application: "capd"}
	i := pcapng.Interface{LinkType: 1, Name: "eth0"}
	b := i.Append(s.Append(nil))
	for n := range packets {
		p := pcapng.Packet{Time: int64(1e18) + int64(n)*1e6, Body: testbed.Payload("some", n, 1000), Original: 1000}
		for k := range p.Body[16:] {
			p.Body[16+k] = byte((n*7919 + k*k*31) >> (k % 5))
		}
		b = p.Append(b)
	}
	return b
}

// A sealed file that a kill has cut is told to open up to its last whole chunk, signed
// here by ssh-keygen itself.
func TestVerifyCut(t *testing.T) {
	testbed.NeedCommand(t, "ssh-keygen")
	dir, keys := t.TempDir(), t.TempDir()
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(keys, "id"), []byte(key.String()))
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, key.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	compress, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := compress.Write(someCapture(2000)); err != nil {
		t.Fatal(err)
	}
	compress.Close()
	w.Close()
	if sealed.Len() < 300_000 {
		t.Fatalf("only %d bytes", sealed.Len())
	}
	cut := sealed.Bytes()[:250_000]
	put(t, filepath.Join(dir, "0001.pcapng.zst.age"), cut)
	sum := sha256.Sum256(cut)
	m := wire.Manifest{Capture: wire.Capture{ID: runningID, Host: "edge-1", Files: []wire.File{{Name: "0001.pcapng.zst.age",
		Status: wire.FileDelivered, Bytes: uint64(len(cut)), SHA256: hex.EncodeToString(sum[:]), Interrupted: true, Cut: true}}}}
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	manifest := filepath.Join(dir, wire.ManifestName)
	put(t, manifest, text)
	testbed.Run(t, "ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-C", "capd@edge-1", "-f", filepath.Join(keys, "box"))
	testbed.Run(t, "ssh-keygen", "-Y", "sign", "-f", filepath.Join(keys, "box"), "-n", wire.SignatureNamespace, manifest)

	var out, stderr strings.Builder
	a := newTestApp()
	a.stdout, a.stderr, a.now = &out, &stderr, time.Now
	if exit := a.run(t.Context(), []string{"verify", "--identity", filepath.Join(keys, "id"), "--signers", filepath.Join(keys, "box.pub"), dir}); exit != 0 {
		t.Fatalf("exit code %d: %s%s", exit, &out, &stderr)
	}
	if want := "it opens up to byte 196,608, the last whole chunk of 64 KiB"; !strings.Contains(out.String(), want) { // 3 chunks
		t.Errorf("no %q: %s", want, &out)
	}
	if !strings.Contains(out.String(), "signed by capd@edge-1 (SHA256:") {
		t.Errorf("%s", &out)
	}
	// age's own program opens it so far too, with an error at the cut; here the library.
	r, err := age.Decrypt(bytes.NewReader(cut), key)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, r); n != 196_608 || err == nil {
		t.Errorf("age opens %d bytes: %v", n, err)
	}
}
