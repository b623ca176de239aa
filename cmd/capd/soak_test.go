package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket/pcapgo"

	"capd/ctl/wire"
	"capd/testbed"
)

var (
	soakFor  = flag.Duration("soak", 20*time.Second, "how long TestSoak runs (contrib/soak DURATION)")
	soakSeed = flag.Uint64("soak.seed", 0, "what TestSoak's choices are made from; 0 = the time")
)

// TestSoak makes round after round of mixed captures, deliveries, faults and kills, and
// holds capd to its invariants throughout: the account of every capture; that every packet
// that was sent is in the files exactly once; that the files at the destination are those
// of the record; and, over all rounds of a process's life, that nothing grows.
func TestSoak(t *testing.T) {
	seed := *soakSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	list := destinations(t)
	s := &soak{t: t, rand: rand.New(rand.NewPCG(seed, 1)), list: list, seen: map[string]int{}}
	s.d = testbed.StartDaemon(t, "", "[limits]\nmax_captures = 8\nspool_size = \"500mb\"\nmin_free_space = \"1%\"\n"+profiles(list, ""))
	t.Logf("seed %d, for %v", seed, *soakFor)
	begun, told := time.Now(), time.Now()
	for time.Since(begun) < *soakFor && !t.Failed() {
		s.round()
		if time.Since(told) > time.Minute {
			told = time.Now()
			t.Logf("after %v: %s", time.Since(begun).Round(time.Second), s.figures())
		}
	}
	if s.rounds == 0 || s.packets == 0 || s.delivered == 0 {
		t.Errorf("%v were too short for a round", *soakFor)
	}
	t.Logf("in %v: %s", time.Since(begun).Round(time.Second), s.figures())
}

// soak is what TestSoak knows from round to round.
type soak struct {
	t    *testing.T
	d    *testbed.Daemon
	rand *rand.Rand
	list []destination

	rounds, captures           int
	packets, delivered, kills  uint64
	limited, interrupted, lost uint64
	bytes                      uint64
	seen                       map[string]int // faults and kinds, and how often

	// Of the process that runs now.
	age         int
	first, last usageOf
	peak        float64
}

// usageOf is what a process holds while no capture runs.
type usageOf struct{ rss, fds, goroutines float64 }

func (s *soak) figures() string {
	return fmt.Sprintf("%d rounds, %d captures, %d packets sent and each found once, %d files (%.1f MB) delivered and compared; %v; %d kills of capd, %d captures interrupted; limited %d, lost %d; resident %.1f MiB first, %.1f last, %.1f at most; descriptors %.0f and %.0f, goroutines %.0f and %.0f",
		s.rounds, s.captures, s.packets, s.delivered, float64(s.bytes)/1e6, s.seen, s.kills, s.interrupted, s.limited, s.lost,
		s.first.rss/(1<<20), s.last.rss/(1<<20), s.peak/(1<<20), s.first.fds, s.last.fds, s.first.goroutines, s.last.goroutines)
}

// soaked is one capture of a round.
type soaked struct {
	id, kind string
	to       *destination // nil: kept on the box
	listener net.PacketConn
	sender   net.Conn
	sent     int
	limit    int // packets that may be in the files; -1 = all that were sent
}

// kinds are the flags of captures. What a kind's files must hold stands in check.
var kinds = map[string][]string{
	"whole":    {},
	"segments": {"--segment-size", "64KiB"},
	"time":     {"--segment-time", "1s"},
	"cut":      {"-s", "100"},
	"limit":    {"-c", "100"},
	"sample":   {"--sample", "4"},
	"headers":  {"--headers-only"},
	"classic":  {"--format", "pcap"},
	"comments": {"--annotate"},
}

func (s *soak) round() {
	s.rounds++
	s.age++
	var running []*soaked
	names := slices.Sorted(maps.Keys(kinds))
	for range 1 + s.rand.IntN(4) {
		c := &soaked{kind: names[s.rand.IntN(len(names))], limit: -1}
		if n := s.rand.IntN(len(s.list) + 1); n < len(s.list) {
			c.to = &s.list[n]
		}
		s.begin(c)
		running = append(running, c)
	}
	fault := s.fault()
	killed := fault == "capd is killed"
	for range 3 {
		for _, c := range running {
			s.send(c, 20+s.rand.IntN(300))
		}
	}
	if killed {
		s.kills++
		s.d.Kill()
		s.d.Start()
		s.age = 0
	}
	for _, c := range running {
		if !killed {
			s.d.Must("stop", c.id)
		}
	}
	for i := range s.list {
		if fault == s.list[i].name+" is away" {
			s.list[i].start()
		}
	}
	for _, c := range running {
		s.check(c, killed, fault)
		s.end(c)
	}
	s.seen[fault]++
	s.measure()
}

// begin starts a capture of the datagrams to a port of its own.
func (s *soak) begin(c *soaked) {
	s.t.Helper()
	var err error
	if c.listener, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
		s.t.Fatal(err)
	}
	if c.sender, err = net.Dial("udp", c.listener.LocalAddr().String()); err != nil {
		s.t.Fatal(err)
	}
	args := append([]string{"start", "-q"}, kinds[c.kind]...)
	if c.to != nil {
		args = append(args, "-d", c.to.name, "--no-check")
	}
	port := c.listener.LocalAddr().(*net.UDPAddr).Port
	c.id = s.d.Must(append(args, "udp dst port "+strconv.Itoa(port))...)
	if c.kind == "limit" {
		c.limit = 100
	}
	s.captures++
	s.seen[c.kind]++
}

// send sends datagrams whose payload says which they are.
func (s *soak) send(c *soaked, count int) {
	for range count {
		text := fmt.Appendf(nil, "soak %s %08d ", c.id, c.sent)
		text = append(text, make([]byte, s.rand.IntN(1200))...)
		if _, err := c.sender.Write(text); err != nil {
			s.t.Fatal(err)
		}
		c.sent++
	}
	s.packets += uint64(count)
}

// fault makes something go wrong, and gives its name. Servers that it stopped are started
// by round.
func (s *soak) fault() string {
	switch n := s.rand.IntN(100); {
	case n < 4:
		return "capd is killed"
	case n < 12:
		s.d.Signal(syscall.SIGSTOP)
		time.Sleep(time.Second)
		s.d.Signal(syscall.SIGCONT)
		return "capd is stopped"
	case n < 24:
		to := s.list[s.rand.IntN(len(s.list))]
		to.stop()
		return to.name + " is away"
	case n < 34:
		s.d.Signal(syscall.SIGHUP)
		return "reload"
	case n < 44:
		for _, pid := range children(s.t, s.d.PID()) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		return "delivery is killed"
	}
	return "nothing"
}

// children gives the processes whose parent is pid.
func children(t *testing.T, pid int) (out []int) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range tasks {
		text, _ := os.ReadFile(name) // a thread may end meanwhile
		for _, f := range strings.Fields(string(text)) {
			child, err := strconv.Atoi(f)
			if err != nil {
				t.Fatalf("%s: %q", name, text)
			}
			out = append(out, child)
		}
	}
	return out
}

// check waits until a capture is finished and holds its account, its files and their
// packets to what was sent.
func (s *soak) check(c *soaked, killed bool, fault string) {
	t := s.t
	t.Helper()
	got := s.d.Await(c.id, "complete", func(g wire.Capture) bool { return isComplete(g) || g.Status == wire.StatusFailed })
	where := fmt.Sprintf("%s, kind %s, %s (soak.seed)", c.id, c.kind, fault)
	if got.Status != wire.StatusComplete {
		t.Fatalf("%s: %s, %+v", where, got.Status, got.Error)
	}
	interrupted := got.StopReason == wire.StopInterrupted
	if interrupted {
		s.interrupted++
	} else {
		checkCounts(t, got)
		s.limited += *got.Packets.Limited
		s.lost += *got.Packets.Lost
		// One that reached its limit is gone before all was sent.
		if want := uint64(c.sent); *got.Packets.Seen > want || *got.Packets.Seen < want && c.limit < 0 || *got.Packets.Limited != 0 || *got.Packets.Lost != 0 {
			t.Errorf("%s: %d were sent: %+v", where, want, got.Packets)
		}
	}
	if interrupted != (killed && c.limit < 0) && c.limit < 0 {
		t.Errorf("%s: ended with %s", where, got.StopReason)
	}
	dir := t.TempDir()
	there := map[string]string{}
	switch {
	case len(got.Files) == 0 && interrupted:
		// Killed before anything was on the disk.
	case c.to == nil:
		s.d.Must("download", "-q", "-o", dir, c.id)
		there = found(t, dir)
	}
	if c.to != nil {
		there = found(t, folderOf(t, c.to.root, c.id))
		if there[wire.ManifestName] == "" || there[wire.SignatureName] == "" {
			t.Errorf("%s: no manifest at the destination: %v", where, there)
		}
	}
	numbers := map[int]bool{}
	for _, f := range got.Files {
		data, err := os.ReadFile(there[f.Name])
		if err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		if sum := sha256.Sum256(data); c.to != nil && f.SHA256 != hex.EncodeToString(sum[:]) {
			t.Errorf("%s: %d bytes with SHA-256 %x are there, the record says %+v", where, len(data), sum, f)
		}
		if c.to != nil {
			s.delivered++
			s.bytes += uint64(len(data))
		}
		n, err := soakNumbers(there[f.Name], c.id, numbers)
		if err != nil || n != f.Packets {
			t.Errorf("%s: %s has %d packets, the record says %d: %v", where, f.Name, n, f.Packets, err)
		}
	}
	want := uint64(c.sent)
	switch {
	case interrupted:
		want = got.Packets.Captured
	case c.kind == "sample":
		want -= *got.Packets.SampledOut
	case c.limit >= 0:
		want = min(want, uint64(c.limit))
	}
	if got.Packets.Captured != want || (c.kind != "headers" && uint64(len(numbers)) != want) {
		t.Errorf("%s: %d were sent, %d captured, %d different ones are in the files, want %d", where, c.sent, got.Packets.Captured, len(numbers), want)
	}
}

// folderOf finds the folder below root that holds a capture's delivered files.
func folderOf(t *testing.T, root, id string) (dir string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && e.Name() == id {
			dir = path
		}
		return err
	})
	if err != nil || dir == "" {
		t.Fatalf("no folder of %s: %v", id, err)
	}
	return dir
}

// soakNumbers collects the numbers of the datagrams in a file, each of which may come once,
// and counts the packets.
func soakNumbers(path, id string, numbers map[int]bool) (n uint64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var next func() ([]byte, error)
	if strings.HasSuffix(path, ".pcap") {
		r, err := pcapgo.NewReader(f)
		if err != nil {
			return 0, err
		}
		next = func() ([]byte, error) { data, _, err := r.ReadPacketData(); return data, err }
	} else {
		r, err := pcapgo.NewNgReader(f, pcapgo.DefaultNgReaderOptions)
		if err != nil {
			return 0, err
		}
		next = func() ([]byte, error) { data, _, err := r.ReadPacketData(); return data, err }
	}
	for {
		data, err := next()
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		n++
		_, text, ok := strings.Cut(string(data), "soak "+id+" ")
		if !ok {
			continue // cut at the payload
		}
		number, err := strconv.Atoi(text[:8])
		if err != nil {
			return n, err
		}
		if numbers[number] {
			return n, fmt.Errorf("datagram %d comes twice", number)
		}
		numbers[number] = true
	}
}

// end forgets a capture, here and at its destination.
func (s *soak) end(c *soaked) {
	s.t.Helper()
	c.listener.Close()
	c.sender.Close()
	s.d.Must("rm", c.id)
	if c.to != nil {
		if err := os.RemoveAll(folderOf(s.t, c.to.root, c.id)); err != nil {
			s.t.Fatal(err)
		}
	}
}

// measure holds what capd has while it is idle to what it had in an early round of its
// life.
func (s *soak) measure() {
	t := s.t
	t.Helper()
	if rules := s.d.Ruleset(); strings.Contains(rules, "log prefix") {
		t.Errorf("no capture runs and there are rules:\n%s", rules)
	}
	var left []string
	for _, folder := range []string{"spool", "captures"} {
		entries, err := os.ReadDir(filepath.Join(s.d.StateDir(), folder))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		for _, e := range entries {
			left = append(left, folder+"/"+e.Name())
		}
	}
	if len(left) > 0 {
		t.Errorf("no capture is known and there are files: %v", left)
	}
	const settled = 5 // rounds after which everything was used once
	var now usageOf
	deadline := time.Now().Add(20 * time.Second)
	for {
		now = s.usage()
		if s.age <= settled || (now.fds <= s.first.fds && now.goroutines <= s.first.goroutines) {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("after %d rounds there are %.0f descriptors and %.0f goroutines, there were %.0f and %.0f", s.age, now.fds, now.goroutines, s.first.fds, s.first.goroutines)
			break
		}
		time.Sleep(100 * time.Millisecond) // idle connections and the like end by themselves
	}
	if s.age <= settled {
		s.first = usageOf{max(s.first.rss, now.rss), max(s.first.fds, now.fds), max(s.first.goroutines, now.goroutines)}
		if s.age == 1 {
			s.first = now
		}
	} else if now.rss > s.first.rss+(32<<20) {
		t.Errorf("after %d rounds %.1f MiB are resident, there were %.1f", s.age, now.rss/(1<<20), s.first.rss/(1<<20))
	}
	s.last, s.peak = now, max(s.peak, now.rss)
}

// usage reads capd's own metrics.
func (s *soak) usage() (u usageOf) {
	s.t.Helper()
	status, text := s.d.Call("GET", "/metrics", "")
	if status != 200 {
		s.t.Fatalf("metrics: %d %s", status, text)
	}
	for name, value := range map[string]*float64{"process_resident_memory_bytes": &u.rss, "process_open_fds": &u.fds, "go_goroutines": &u.goroutines} {
		_, after, ok := strings.Cut(text, "\n"+name+" ")
		if !ok {
			s.t.Fatalf("no %s in the metrics", name)
		}
		var err error
		if *value, err = strconv.ParseFloat(strings.Fields(after)[0], 64); err != nil {
			s.t.Fatal(err)
		}
	}
	return u
}
