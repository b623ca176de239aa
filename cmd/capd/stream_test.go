package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"capd/ctl/client"
	"capd/ctl/wire"
	"capd/ring/pcapng"
	"capd/testbed"
)

// streamTimeout bounds every wait for a stream, so that a broken one fails a test instead
// of hanging it.
const streamTimeout = 2 * time.Minute

func connect(t *testing.T, d *testbed.Daemon) *client.Client {
	c := &client.Client{Socket: d.Socket}
	t.Cleanup(c.Close)
	return c
}

// streamed is what a stream tells of itself.
type streamed struct {
	packets  uint64
	dropped  uint64 // drop counts of packets
	received uint64 // by the statistics at the end
	lost     uint64
	ended    bool // there are statistics
}

// readStream reads blocks until done says so, or to the end, where io.EOF is no error.
func readStream(r io.Reader, done func(streamed) bool) (a streamed, err error) {
	blocks := pcapng.NewReader(r)
	for done == nil || !done(a) {
		b, err := blocks.Next()
		if errors.Is(err, io.EOF) {
			return a, nil
		}
		if err != nil {
			return a, err
		}
		switch b.Type {
		case pcapng.TypePacket:
			p, err := b.Packet()
			if err != nil {
				return a, err
			}
			a.packets++
			a.dropped += p.Dropped
		case pcapng.TypeStatistics:
			s, err := b.Statistics()
			if err != nil {
				return a, err
			}
			a.received, a.lost, a.ended = a.received+s.Received, a.lost+s.Dropped, true
		}
	}
	return a, nil
}

// readFile tells of a file's packets, with the interface of each, and of its statistics
// (where a test asks for them), in their order. The file must be whole.
func readFile(t *testing.T, path string, packet func(pcapng.Interface, pcapng.Packet), statistics func(pcapng.Statistics)) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := pcapng.NewReader(f)
	for {
		b, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		switch {
		case b.Type == pcapng.TypePacket:
			p, err := b.Packet()
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			packet(r.Interfaces()[p.Interface], p)
		case b.Type == pcapng.TypeStatistics && statistics != nil:
			s, err := b.Statistics()
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			statistics(s)
		}
	}
}

func follow(t *testing.T, d *testbed.Daemon, ref string) io.ReadCloser {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), streamTimeout)
	t.Cleanup(cancel)
	r, err := connect(t, d).Stream(ctx, ref, client.StreamOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// noFiles fails the test where anything of a capture but its record is on the disk.
func noFiles(t *testing.T, d *testbed.Daemon) {
	t.Helper()
	for path := range testbed.Tree(t, filepath.Join(d.StateDir(), "spool")) {
		t.Errorf("on the disk: %s", path)
	}
}

// A capture that is a stream holds every packet once, as a file does; its end by a limit
// ends the stream in order, and nothing of it is on the disk at any time.
func TestStreamHoldsEveryPacketOnce(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	path := filepath.Join(t.TempDir(), "live.pcapng")
	// Only what the test sends: what comes before tail has begun is not in its copy.
	cmd := d.Command("start", "-n", "live", "-w", path, "net 10.9.0.0/24 or net fd00:9::/64")
	var stderr testbed.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	running := func() (c wire.Capture) {
		for _, c = range list(t, d) {
			if c.Name == "live" && c.Status == wire.StatusRunning {
				return c
			}
		}
		return wire.Capture{}
	}
	await(t, "the capture runs", func() bool { return running().ID != "" })
	copied := filepath.Join(t.TempDir(), "copy.pcapng")
	second := d.Command("tail", "live", "-w", copied)
	if err := second.Start(); err != nil {
		t.Fatal(err)
	}
	defer second.Process.Kill()
	await(t, "tail has begun", func() bool { info, err := os.Stat(copied); return err == nil && info.Size() > 0 })
	sent, err := testbed.SendAll(p, 50)
	if err != nil {
		t.Fatal(err)
	}
	noFiles(t, d)
	c := running()
	if !c.Stream || len(c.Files) != 0 {
		t.Errorf("stream %v, %d files", c.Stream, len(c.Files))
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("start -w: %v: %s", err, &stderr)
	}
	if err := second.Wait(); err != nil {
		t.Fatalf("tail: %v", err)
	}
	c = d.Show(c.ID)
	if c.Status != wire.StatusComplete || c.StopReason != wire.StopRequested || !c.Stream || len(c.Files) != 0 {
		t.Errorf("status %s, stop reason %s, stream %v, %d files", c.Status, c.StopReason, c.Stream, len(c.Files))
	}
	checkStreamCounts(t, c)
	for _, path := range []string{path, copied} {
		judgeFile(t, path, c.Packets.Captured)
		testbed.WantPackets(t, testbed.TsharkPackets(t, path, ""), sent, 1)
	}
	for _, want := range []string{c.ID, fmt.Sprintf("%d packets captured (requested)", c.Packets.Captured)} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("start -w said %q, which lacks %q", &stderr, want)
		}
	}
	noFiles(t, d)
}

// checkStreamCounts is checkCounts for a capture without files.
func checkStreamCounts(t *testing.T, c wire.Capture) {
	t.Helper()
	c.Files = []wire.File{{Packets: c.Packets.Captured, Bytes: c.Bytes.Written}}
	checkCounts(t, c)
}

func list(t *testing.T, d *testbed.Daemon) []wire.Capture {
	t.Helper()
	c := connect(t, d)
	all, err := c.List(t.Context(), true)
	c.Close()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// await waits until something is true.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(streamTimeout); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never came that %s", what)
		}
	}
}

// Captures of every form are streamed as pcapng, each packet as it comes, and not only
// when a buffer is full: one packet is with the reader while nothing else happens.
func TestTailOfEveryForm(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	for _, args := range [][]string{{"--format", "pcapng"}, {"--format", "pcap"}, {"-i", "vb", "--format", "pcap"}, {"--snaplen", "60", "--link-type", "raw"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			id := d.Must(append([]string{"start", "udp"}, args...)...)
			r := follow(t, d, id)
			var all bytes.Buffer
			tee := io.TeeReader(r, &all)
			for i := range 3 {
				_, err := testbed.SendUDP(testbed.Stream{From: p.A, To: p.B, Source: netip.AddrPortFrom(testbed.A4, 0), Destination: netip.AddrPortFrom(testbed.B4, 5000), Count: 1})
				if err != nil {
					t.Fatal(err)
				}
				if i > 0 {
					continue
				}
				// The head, an interface and the packet are there before anything else is sent.
				head := bufio.NewReader(tee)
				for read := 0; !bytes.Contains(all.Bytes(), []byte("capd udp")); read++ {
					if _, err := head.ReadByte(); err != nil {
						t.Fatalf("after %d bytes: %v", read, err)
					}
				}
			}
			d.Must("stop", id)
			if _, err := io.Copy(io.Discard, tee); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "tail.pcapng")
			if err := os.WriteFile(path, all.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			judgeFile(t, path, d.Show(id).Packets.Captured)
			if status, body := d.Call("GET", "/v1/captures/"+id+"/stream", ""); status != 409 || !strings.Contains(body, "not running") {
				t.Errorf("a capture that has ended is answered with %d %s", status, body)
			}
		})
	}
}

// A reader that stops reading costs the capture nothing, nor another reader: it loses
// packets of its own copy, and is told how many to the packet.
func TestSlowReaderLosesItsOwnCopyOnly(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "[limits]\nmax_packet_rate = 0\n")
	id := d.Must("start", "udp")
	stalled := follow(t, d, id)
	quick := follow(t, d, id)
	read := make(chan streamed, 1)
	var arrived atomic.Uint64
	go func() {
		a, err := readStream(quick, func(a streamed) bool {
			arrived.Store(a.packets)
			return false
		})
		if err != nil {
			t.Error(err)
		}
		read <- a
	}()
	const frames, burst = 20_000, 500
	for sent := uint64(burst); sent <= frames; sent += burst {
		if _, err := testbed.Inject(p.B, testbed.InjectOptions{Interface: "vb", Count: burst, Length: 1400}); err != nil {
			t.Fatal(err)
		}
		await(t, "the quick reader has read it", func() bool { return arrived.Load() >= sent })
	}
	d.Must("stop", id)
	c := d.Show(id)
	checkCounts(t, c)
	if c.Packets.Captured != frames || *c.Packets.Lost != 0 {
		t.Errorf("of %d frames %d were captured, %d lost", frames, c.Packets.Captured, *c.Packets.Lost)
	}
	slow, err := readStream(stalled, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, a := range map[string]streamed{"stalled": slow, "quick": <-read} {
		if !a.ended || a.received != c.Packets.Captured || a.packets+a.lost != c.Packets.Captured || a.dropped > a.lost {
			t.Errorf("the %s reader got %+v of %d packets", name, a, c.Packets.Captured)
		}
		if (name == "stalled") != (a.lost > 0) {
			t.Errorf("the %s reader has lost %d packets", name, a.lost)
		}
	}
}

// descriptors counts what a process has open.
func descriptors(t *testing.T, pid int) int {
	t.Helper()
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}

// Readers come and go, up to a bound that is told; they leave nothing behind, and the
// capture does not notice.
func TestReadersComeAndGo(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	id := d.Must("start", "udp")
	before := descriptors(t, d.PID())
	c := connect(t, d)
	var open []io.ReadCloser
	for len(open) < 16 {
		r, err := c.Stream(t.Context(), id, client.StreamOptions{})
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, r)
	}
	_, err := c.Stream(t.Context(), id, client.StreamOptions{})
	var refused *wire.Error
	if !errors.As(err, &refused) || refused.Status != 429 || refused.Code != wire.CodeLimit || refused.Hint == "" {
		t.Errorf("one reader too many gets %v", err)
	}
	send := func() {
		t.Helper()
		_, err := testbed.SendUDP(testbed.Stream{From: p.A, To: p.B, Source: netip.AddrPortFrom(testbed.A4, 0), Destination: netip.AddrPortFrom(testbed.B4, 5000), Count: 5})
		if err != nil {
			t.Fatal(err)
		}
	}
	one := func(a streamed) bool { return a.packets > 0 }
	for i := range 20 {
		send()
		n := i % len(open)
		if _, err := readStream(open[n], one); err != nil {
			t.Fatal(err)
		}
		open[n].Close()
		await(t, "a place is free", func() bool {
			r, err := c.Stream(t.Context(), id, client.StreamOptions{})
			if err == nil {
				open[n] = r
			}
			return err == nil
		})
	}
	for _, r := range open {
		r.Close()
	}
	c.Close()
	await(t, "as many descriptors are open as before", func() bool { return descriptors(t, d.PID()) <= before })
	d.Must("stop", id)
	got := d.Show(id)
	checkCounts(t, got)
	if got.Packets.Captured != 100 {
		t.Errorf("captured %d packets of 100", got.Packets.Captured)
	}
}

// A capture that is a stream ends with whoever reads it: a client that is killed, or a
// pipe that is closed, with packets on the way or without.
func TestStreamEndsWithItsReader(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	for _, c := range []struct {
		name    string
		traffic bool
		end     func(*exec.Cmd, *os.File)
		code    int
	}{
		{"closed pipe", true, func(_ *exec.Cmd, out *os.File) { out.Close() }, 0},
		{"closed pipe without a packet", false, func(_ *exec.Cmd, out *os.File) { out.Close() }, 0},
		{"killed", true, func(c *exec.Cmd, _ *os.File) { c.Process.Kill() }, -1},
		{"two signals", false, func(c *exec.Cmd, _ *os.File) {
			_ = c.Process.Signal(syscall.SIGTERM)
			_ = c.Process.Signal(syscall.SIGTERM)
		}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, in, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			cmd := d.Command("start", "-w", "-", "udp")
			cmd.Stdout = in
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			in.Close()
			// The head of the stream: the capture runs.
			if _, err := io.ReadFull(out, make([]byte, 28)); err != nil {
				t.Fatal(err)
			}
			ids := list(t, d)
			c.end(cmd, out)
			if c.traffic {
				if _, err := testbed.SendUDP(testbed.Stream{From: p.A, To: p.B, Source: netip.AddrPortFrom(testbed.A4, 0), Destination: netip.AddrPortFrom(testbed.B4, 5000), Count: 3}); err != nil {
					t.Fatal(err)
				}
			}
			_ = cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			got := d.Await(ids[0].ID, "complete", func(c wire.Capture) bool { return c.Status == wire.StatusComplete })
			checkStreamCounts(t, got)
			if got.StopReason != wire.StopRequested || !got.Stream {
				t.Errorf("stop reason %s, stream %v", got.StopReason, got.Stream)
			}
			if rules := d.Ruleset(); strings.Contains(rules, got.ID[:8]) {
				t.Errorf("rules are left:\n%s", rules)
			}
			noFiles(t, d)
		})
	}
}

// What a stream cannot have is refused before anything begins.
func TestStreamRefusals(t *testing.T) {
	d := testbed.StartDaemon(t, testbed.NewNS(t), "")
	for body, field := range map[string]string{
		`{"destination": "soc"}`:     "destination",
		`{"format": "pcap"}`:         "format",
		`{"segment_size": "10mb"}`:   "segment_size",
		`{"segment_time": 60}`:       "segment_time",
		`{"ring": 3}`:                "ring",
		`{"time_limit": "1000h"}`:    "time_limit",
		`{"interfaces": ["nosuch"]}`: "",
	} {
		status, answer := d.Call("POST", "/v1/stream", body)
		if status < 400 || field != "" && !strings.Contains(answer, `"field":"`+field+`"`) {
			t.Errorf("%s is answered with %d %s", body, status, answer)
		}
	}
	if left := list(t, d); len(left) != 0 {
		t.Errorf("%d captures are left", len(left))
	}
	if r := d.Capctl("start", "-w", "-", "--json"); r.Code != 2 || !strings.Contains(r.Stderr, "--json") {
		t.Errorf("--json with -w -: %+v", r)
	}
	if r := d.Capctl("start", "-w", "/nonexistent/file"); r.Code != 1 {
		t.Errorf("a file that cannot be made: %+v", r)
	}
	if r := d.Capctl("tail", "nosuch", "-w", "-"); r.Code != 5 {
		t.Errorf("tail of no capture: %+v", r)
	}
}

// A daemon that stops ends streams as whole files; one that is killed cuts them, and
// capctl says so and keeps whole packets.
func TestStreamAndTheDaemonsEnd(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	for _, killed := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "live.pcapng")
		cmd := d.Command("start", "-w", path, "udp")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		await(t, "the stream has begun", func() bool { info, err := os.Stat(path); return err == nil && info.Size() > 0 })
		if _, err := testbed.SendUDP(testbed.Stream{From: p.A, To: p.B, Source: netip.AddrPortFrom(testbed.A4, 0), Destination: netip.AddrPortFrom(testbed.B4, 5000), Count: 7}); err != nil {
			t.Fatal(err)
		}
		await(t, "the packets are there", func() bool {
			data, err := os.ReadFile(path)
			return err == nil && bytes.Count(data, []byte("capd udp")) == 7
		})
		id := list(t, d)[0].ID
		want := 0
		if killed {
			want = 3
			d.Kill()
		} else if code := d.Stop(); code != 0 {
			t.Errorf("capd ended with %d", code)
		}
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != want {
			t.Errorf("killed %v: exit code %d, want %d", killed, code, want)
		}
		judgeFile(t, path, 7)
		d.Start()
		c := d.Show(id)
		reason := map[bool]string{false: wire.StopShutdown, true: wire.StopInterrupted}[killed]
		if c.Status != wire.StatusComplete || c.StopReason != reason || !c.Stream || len(c.Files) != 0 {
			t.Errorf("killed %v: status %s, stop reason %s, stream %v, %d files", killed, c.Status, c.StopReason, c.Stream, len(c.Files))
		}
	}
}
