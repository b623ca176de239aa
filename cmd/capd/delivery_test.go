package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"capd/ctl/wire"
	"capd/testbed"
)

// destination is a server with the folder where its files lie.
type destination struct {
	name, profile, root string
	verified            string
	start, stop         func()
	identity            age.Identity // opens what is sealed
}

func destinations(t *testing.T) []destination {
	sshd := testbed.NewSSHD(t)
	s3 := testbed.NewS3(t, testbed.S3Options{TLS: true})
	return []destination{
		{"soc", fmt.Sprintf("type = \"sftp\"\naddress = %q\nuser = %q\nprivate_key = %q\nknown_hosts = %q\npath = \"in/{host}/{id}/{file}\"\n",
			sshd.Address, sshd.User, sshd.PrivateKey, sshd.KnownHosts), sshd.Root, "readback", sshd.Start, sshd.Stop, nil},
		{"evidence", fmt.Sprintf("type = \"s3\"\nendpoint = %q\nregion = %q\nbucket = %q\npath_style = true\nca_file = %q\naccess_key_id = %q\nsecret_access_key_file = %q\n",
			s3.Endpoint, s3.Region, s3.Bucket, s3.CAFile, s3.AccessKeyID, s3.SecretFile), filepath.Join(s3.Root, s3.Bucket), "checksum", s3.Start, s3.Stop, nil},
	}
}

// found maps the base names of the files below a folder to their paths.
func found(t *testing.T, root string) map[string]string {
	t.Helper()
	return testbed.FilesBelow(t, root)
}

func isComplete(c wire.Capture) bool { return c.Status == wire.StatusComplete }

func profiles(list []destination, extra string) string {
	var b strings.Builder
	for _, d := range list {
		fmt.Fprintf(&b, "[destination.%s]\n%s%s\n", d.name, d.profile, extra)
	}
	return b.String()
}

// checkDelivered holds what lies at a destination against the record and the manifest.
func checkDelivered(t *testing.T, d *testbed.Daemon, c wire.Capture, to destination) {
	t.Helper()
	checkCounts(t, c)
	there := found(t, to.root)
	if len(there) != len(c.Files)+2 {
		t.Errorf("at the destination: %v", there)
	}
	var delivered uint64
	for _, f := range c.Files {
		data, err := os.ReadFile(there[f.Name])
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(data)
		if f.Status != wire.FileDelivered || f.SHA256 != hex.EncodeToString(sum[:]) || f.Bytes != uint64(len(data)) || f.Verified != to.verified || f.Attempts < 1 || !strings.Contains(f.URL, c.ID) {
			t.Errorf("%d bytes with SHA-256 %x are there, the record says %+v", len(data), sum, f)
		}
		delivered += f.Bytes
	}
	if c.Bytes.Delivered != delivered {
		t.Errorf("delivered %d bytes, the record says %d", delivered, c.Bytes.Delivered)
	}
	name := wire.ManifestName
	if to.identity != nil {
		name = wire.SealedManifestName
	}
	text, err := os.ReadFile(there[name])
	if err != nil {
		t.Fatal(err)
	}
	signed := text
	if to.identity != nil {
		opened, err := age.Decrypt(bytes.NewReader(text), to.identity)
		if err != nil {
			t.Fatal(err)
		}
		if text, err = io.ReadAll(opened); err != nil {
			t.Fatal(err)
		}
	}
	var m struct {
		Capd, Kernel, Ruleset string
		Capture               wire.Capture
	}
	if err := json.Unmarshal(text, &m); err != nil {
		t.Fatal(err)
	}
	if m.Capture.ID != c.ID || *m.Capture.Packets.Matched != *c.Packets.Matched || len(m.Capture.Files) != len(c.Files) || !strings.Contains(m.Ruleset, c.ID[:8]) || m.Kernel == "" || m.Capd == "" {
		t.Errorf("manifest: %s", text)
	}
	allowed := filepath.Join(t.TempDir(), "allowed")
	public, err := os.ReadFile(filepath.Join(d.StateDir(), "signing_key.pub"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(allowed, append([]byte("box "), public...), 0o600); err != nil {
		t.Fatal(err)
	}
	verify := exec.Command("ssh-keygen", "-Y", "verify", "-f", allowed, "-I", "box", "-n", "capd-manifest", "-s", there["manifest.json.sig"])
	verify.Stdin = bytes.NewReader(signed)
	if out, err := verify.CombinedOutput(); err != nil {
		t.Errorf("ssh-keygen -Y verify: %v: %s", err, out)
	}
	if _, err := os.Stat(filepath.Join(d.StateDir(), "spool", c.ID)); !os.IsNotExist(err) {
		t.Errorf("files of a delivered capture are still here: %v", err)
	}
}

func TestDeliveredFilesAreProven(t *testing.T) {
	list := destinations(t)
	d := testbed.StartDaemon(t, "", profiles(list, ""))
	for _, to := range list {
		t.Run(to.name, func(t *testing.T) {
			if out := d.Must("destination", "check", to.name); strings.Contains(out, "✗") {
				t.Errorf("check: %s", out)
			}
			id := d.Must("start", "-d", to.name, "--segment-size", "64KiB", "--label", "ticket=NET-1", "-f", writeRequest(t))
			sent := talkTo(t, 300)
			d.Must("stop", id)
			c := d.Await(id, "complete", func(c wire.Capture) bool {
				noInternetSockets(t, d)
				return isComplete(c)
			})
			checkDelivered(t, d, c, to)
			if len(c.Files) < 4 {
				t.Errorf("%d segments of 64 KiB hold 300 packets of 700 bytes", len(c.Files))
			}
			var packets []testbed.Packet
			there := found(t, to.root)
			for _, f := range c.Files {
				judgeFile(t, there[f.Name], f.Packets)
				packets = append(packets, testbed.TsharkPackets(t, there[f.Name], "")...)
			}
			testbed.WantPackets(t, packets, sent, 1)
		})
	}
}

const talkPort = 47113

func writeRequest(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "request.json")
	text := fmt.Sprintf(`{"filter_v1": {"destination_address": "127.0.0.1", "destination_port": %d, "protocol": "udp"}}`, talkPort)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// talkTo sends datagrams over loopback to talkPort.
func talkTo(t *testing.T, count int) []testbed.Message {
	t.Helper()
	return testbed.TalkToLoopback(t, talkPort, "delivery", count, 700)
}

// noInternetSockets looks at what the privileged process has open: the network is the
// delivery process's alone.
func noInternetSockets(t *testing.T, d *testbed.Daemon) {
	t.Helper()
	internet := map[string]string{}
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6", "raw", "raw6"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", d.PID(), table))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if fields := strings.Fields(line); len(fields) > 9 {
				internet[fields[9]] = table + " " + fields[1] // the inode, proc_net_tcp(5)
			}
		}
	}
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", d.PID()))
	if err != nil || len(fds) < 5 {
		t.Fatalf("capd's descriptors: %v %v", fds, err)
	}
	for _, fd := range fds {
		link, err := os.Readlink(fd)
		if err != nil {
			continue // closed meanwhile
		}
		inode := strings.TrimSuffix(strings.TrimPrefix(link, "socket:["), "]")
		if what, ok := internet[inode]; ok {
			t.Errorf("capd itself has an internet socket: %s", what)
		}
	}
}

// A destination that is away is tried again; a restart of capd in between changes
// nothing.
func TestDeliveryIsTriedAgain(t *testing.T) {
	for _, to := range destinations(t) {
		t.Run(to.name, func(t *testing.T) {
			d := testbed.StartDaemon(t, "", profiles([]destination{to}, ""))
			id := d.Must("start", "-d", to.name, "-f", writeRequest(t))
			talkTo(t, 50)
			to.stop()
			d.Must("stop", id)
			c := d.Await(id, "tried", func(c wire.Capture) bool {
				return len(c.Files) == 1 && c.Files[0].Attempts > 0 && c.Files[0].Error != ""
			})
			if c.Status != wire.StatusDelivering || c.Files[0].NextAttempt == nil {
				t.Errorf("while the destination is away: %+v", c)
			}
			if r := d.Capctl("rm", id); r.Code == 0 || !strings.Contains(r.Stderr, "--force") {
				t.Errorf("rm of undelivered data: %+v", r)
			}
			if r := d.Capctl("start", "-d", to.name, "-f", writeRequest(t)); r.Code != 7 {
				t.Errorf("start to a destination that is away: exit code %d: %s", r.Code, r.Stderr)
			}
			if out := d.Must("show", id); !strings.Contains(out, c.Files[0].Error[:20]) {
				t.Errorf("show does not tell the failed try: %s", out)
			}
			if log := d.Log.String(); !strings.Contains(log, "not delivered yet") || !strings.Contains(log, c.Files[0].Error[:20]) {
				t.Error("the journal does not tell the failed try")
			}
			d.Stop()
			to.start()
			d.Start()
			if !strings.Contains(d.Log.String(), "files of earlier captures are not delivered yet") {
				t.Error("the journal of the next start does not tell what is left to do")
			}
			d.Capctl("retry", id)
			checkDelivered(t, d, d.Await(id, "complete", isComplete), to)
		})
	}
}

// A name that is taken by other contents ends a delivery with its own code and mend, also
// after a restart; when it is free, capctl retry delivers.
func TestATakenNameSaysItsMend(t *testing.T) {
	for _, to := range destinations(t) {
		t.Run(to.name, func(t *testing.T) {
			d := testbed.StartDaemon(t, "", strings.ReplaceAll(profiles([]destination{to}, ""), "in/{host}", "{date}/{host}"))
			id := d.Must("start", "-d", to.name, "-f", writeRequest(t))
			running := d.Show(id)
			taken := filepath.Join(to.root, running.Submitted.Format("2006-01-02"), running.Host, id, "0001.pcapng")
			if err := os.MkdirAll(filepath.Dir(taken), 0o777); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(taken, []byte("somebody else's"), 0o600); err != nil {
				t.Fatal(err)
			}
			talkTo(t, 50)
			d.Must("stop", id)
			refused := func(c wire.Capture) bool { return c.Status == wire.StatusFailed }
			check := func(c wire.Capture) {
				t.Helper()
				if c.Error == nil || c.Error.Code != wire.CodeDestinationExists || !strings.Contains(c.Error.Message, "0001.pcapng is not delivered: ") ||
					!strings.Contains(c.Error.Hint, "move that one away") || !strings.Contains(c.Error.Hint, "capctl retry "+id[:8]) {
					t.Errorf("%+v", c.Error)
				}
			}
			check(d.Await(id, "refused", refused))
			d.Stop()
			d.Start()
			check(d.Await(id, "refused still", refused))
			d.Must("retry", id)
			check(d.Await(id, "refused again", refused))
			if err := os.Remove(taken); err != nil {
				t.Fatal(err)
			}
			d.Must("retry", id)
			checkDelivered(t, d, d.Await(id, "complete", isComplete), to)
		})
	}
}

// What waits for a destination that is away is said in the status and waits alone.
func TestADeadDestinationHoldsUpNoOther(t *testing.T) {
	list := destinations(t)
	dead, alive := list[0], list[1]
	d := testbed.StartDaemon(t, "", profiles(list, ""))
	dead.stop()
	var waiting []string
	for range 3 { // more than go to one destination at once
		id := d.Must("start", "--no-check", "-d", dead.name, "-f", writeRequest(t))
		talkTo(t, 10)
		d.Must("stop", id)
		waiting = append(waiting, id)
	}
	d.Await(waiting[0], "tried", func(c wire.Capture) bool { return c.Files[0].Error != "" })
	id := d.Must("start", "-d", alive.name, "-f", writeRequest(t))
	talkTo(t, 10)
	d.Must("stop", id)
	checkDelivered(t, d, d.Await(id, "complete", isComplete), alive)
	var st wire.Status
	if _, body := d.Call("GET", wire.PathStatus, ""); json.Unmarshal([]byte(body), &st) != nil || st.Captures.Delivering != 3 || st.Undelivered.Files != 3 || st.Undelivered.Bytes == 0 {
		t.Errorf("status: %s", body)
	}
	dead.start()
	for _, id := range waiting {
		d.Must("retry", id)
		d.Await(id, "complete", isComplete)
	}
}

// Sealed and compressed segments: no plain byte of a packet reaches the box's disk, and
// whoever holds the key reads every packet.
func TestSealedSegments(t *testing.T) {
	list := destinations(t)[:1]
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	list[0].identity = key
	d := testbed.StartDaemon(t, "", profiles(list, fmt.Sprintf("compression = \"zstd\"\nencrypt_to = [%q]\n", key.Recipient())))
	id := d.Must("start", "-d", "soc", "-f", writeRequest(t))
	sent := talkTo(t, 200)
	// Everything capd has written so far, while the capture runs.
	for path, data := range testbed.Tree(t, d.StateDir()) {
		if bytes.Contains(data, []byte("capd delivery")) {
			t.Errorf("%s holds plain packets", path)
		}
	}
	d.Must("stop", id)
	c := d.Await(id, "complete", isComplete)
	checkDelivered(t, d, c, list[0])
	sealed, err := os.ReadFile(found(t, list[0].root)[c.Files[0].Name])
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(c.Files[0].Name, ".pcapng.zst.age") || bytes.Contains(sealed, []byte("capd delivery")) {
		t.Errorf("file %s is not sealed", c.Files[0].Name)
	}
	opened, err := age.Decrypt(bytes.NewReader(sealed), key)
	if err != nil {
		t.Fatal(err)
	}
	plain := filepath.Join(t.TempDir(), "plain.pcapng")
	zstd := exec.CommandContext(context.Background(), "zstd", "-d", "-q", "-o", plain)
	zstd.Stdin = opened
	if out, err := zstd.CombinedOutput(); err != nil {
		t.Fatalf("zstd: %v: %s", err, out)
	}
	data, err := os.ReadFile(plain)
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != c.Files[0].SHA256Plain {
		t.Errorf("sha256_plain is %s, the plain file has %x", c.Files[0].SHA256Plain, sum)
	}
	testbed.WantPackets(t, testbed.TsharkPackets(t, plain, ""), sent, 1)
}
