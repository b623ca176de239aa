package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"capd/ctl/wire"
	"capd/testbed"
)

// talkNoise is talkTo with payloads that do not compress.
func talkNoise(t *testing.T, count int) []testbed.Message {
	t.Helper()
	rnd := rand.New(rand.NewPCG(7, uint64(count)))
	payloads := make([][]byte, count)
	for i := range payloads {
		payloads[i] = fmt.Appendf(nil, "%06d", i)
		for len(payloads[i]) < 1000 {
			payloads[i] = append(payloads[i], byte(rnd.Uint32()))
		}
	}
	return testbed.SendToLoopback(t, talkPort, payloads)
}

// A compressed segment that a kill has cut is read by tshark as it is, and a sealed one
// with the commands of docs/spool.md: up to the last whole piece.
func TestCutSegmentsAreRead(t *testing.T) {
	testbed.NeedCommand(t, "age", "zstd", "tshark")
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	identity := filepath.Join(dir, "key.txt")
	if err := os.WriteFile(identity, []byte(key.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	to := destinations(t)[0]
	toml := ""
	for name, extra := range map[string]string{
		"compressed": "compression = \"zstd\"\n",
		"sealed":     fmt.Sprintf("encrypt_to = [%q]\n", key.Recipient()),
		"both":       fmt.Sprintf("compression = \"zstd\"\nencrypt_to = [%q]\n", key.Recipient()),
	} {
		toml += fmt.Sprintf("[destination.%s]\n%s%s", name, to.profile, extra)
	}
	d := testbed.StartDaemon(t, "", toml)
	open := map[string]string{
		"compressed": "cat FILE > OUT.pcapng.zst; echo OUT.pcapng.zst",
		"sealed":     "age -d -i KEY FILE > OUT.pcapng 2>OUT.log || true; echo OUT.pcapng",
		"both":       "age -d -i KEY FILE 2>OUT.log > OUT.pcapng.zst || true; echo OUT.pcapng.zst",
	}
	ids := map[string]string{}
	for name := range open {
		ids[name] = d.Must("start", "-d", name, "-f", writeRequest(t))
	}
	sent := talkNoise(t, 800)
	for _, id := range ids { // what is older than the flush interval is on the disk
		deadline := time.Now().Add(time.Minute)
		for _, bytes := spooled(t, d, id); bytes < 600_000; _, bytes = spooled(t, d, id) {
			if time.Now().After(deadline) {
				t.Fatalf("only %d bytes reach the disk", bytes)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	d.Kill()
	d.Start()
	for name, command := range open {
		t.Run(name, func(t *testing.T) {
			c := d.Await(ids[name], "complete", isComplete)
			if len(c.Files) != 1 || !c.Files[0].Cut || !c.Files[0].Interrupted || c.Files[0].SHA256Plain != "" || c.StopReason != wire.StopInterrupted {
				t.Fatalf("after the kill: %s %+v", c.StopReason, c.Files)
			}
			there := found(t, filepath.Join(to.root, "in", c.Host, c.ID))
			if name == "compressed" { // the others' manifests are sealed
				manifest, err := os.ReadFile(there[wire.ManifestName])
				if err != nil || !strings.Contains(string(manifest), `"lost": null`) || !strings.Contains(string(manifest), `"matched": null`) {
					t.Errorf("the manifest says what was lost: %v %s", err, manifest)
				}
			}
			file := there[c.Files[0].Name]
			command = strings.NewReplacer("FILE", file, "KEY", identity, "OUT", filepath.Join(dir, name)).Replace(command)
			readable := strings.TrimSpace(testbed.Run(t, "sh", "-c", command))
			// tshark tells the packets, and in the end that the file is cut.
			out, _ := exec.Command("tshark", "-n", "-r", readable, "-T", "fields", "-e", "udp.payload").Output()
			packets := strings.Fields(string(out))
			if len(packets) < len(sent)/2 || len(packets) > len(sent) {
				t.Errorf("%d of %d packets can be read", len(packets), len(sent))
			}
			wanted := map[string]bool{} // in any order: the sender changes CPUs
			for _, m := range sent {
				wanted[fmt.Sprintf("%x", m.Payload)] = true
			}
			for i, p := range packets {
				if !wanted[p] {
					t.Fatalf("packet %d was not sent, or is there twice", i)
				}
				delete(wanted, p)
			}
		})
	}
}

// A file system is never filled: at limits.min_free_space captures end and say why, and what
// still waits in write blocks then, because the disk stalls, has its room.
func TestMinFreeSpaceIsKept(t *testing.T) {
	disk := testbed.NewLoopDisk(t, 256<<20)
	p := testbed.NewPair(t)
	const room = 30 << 20
	keep := disk.Free() - room
	to := destinations(t)[0] // not to be reached from there
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	d := testbed.StartDaemon(t, p.B, fmt.Sprintf("[spool]\ndir = %q\n[limits]\nspool_size = \"1gb\"\nmin_free_space = %d\nmax_packet_rate = 0\nmax_captures = 2\n[ring]\nsize = \"128MiB\"\n", disk.Dir+"/spool", keep)+
		profiles([]destination{to}, fmt.Sprintf("encrypt_to = [%q]\n", key.Recipient())))
	t.Cleanup(func() { d.Stop() }) // before the file system goes
	t.Cleanup(disk.Thaw)
	ids := []string{
		d.Must("start", "--hook", "prerouting", "--segment-size", "10mb"), // allocated ahead
		d.Must("start", "--hook", "prerouting", "--segment-size", "10mb", "-d", to.name, "--no-check"),
	}
	inject := func(count int) {
		t.Helper()
		if _, err := testbed.Inject(p.B, testbed.InjectOptions{Interface: "vb", Count: count, Length: 1400, Rate: 60000}); err != nil {
			t.Fatal(err)
		}
	}
	inject(2000)
	disk.Freeze()
	inject(40_000) // more than there is room for, and less than write blocks for
	disk.Thaw()
	var written uint64
	for _, id := range ids {
		c := d.Await(id, "ended", func(c wire.Capture) bool {
			if c.Status == wire.StatusRunning {
				inject(1000)
			}
			return c.Stopped != nil
		})
		checkCounts(t, c)
		if c.StopReason != wire.StopNoSpace || c.Error == nil || !strings.Contains(c.Error.Message, "min_free_space") || c.Error.Hint == "" {
			t.Errorf("%s: %+v", c.StopReason, c.Error)
		}
		written += c.Bytes.Written
	}
	if free := disk.Free(); free < keep {
		t.Errorf("%d bytes are free, %d are to be kept; %d were written", free, keep, written)
	}
	if written < room/4 {
		t.Errorf("%d bytes were written, and %d had room", written, room)
	}
}
