package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/gopacket/gopacket/pcapgo"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"capd/ctl/wire"
	"capd/testbed"
)

var kills = flag.Int("kills", 50, "how often TestKills kills capd or its delivery process")

// TestKills kills capd, or its delivery process alone, at random moments while packets
// are captured and delivered, plain and sealed, to both kinds of server. In the end each
// numbered packet that a capture holds is on the server exactly once and without a gap,
// every hash is right, every segment that was closed before a kill has arrived as it was,
// and nothing else is left, there or here.
func TestKills(t *testing.T) {
	testbed.NeedRoot(t)
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	k := &killing{t: t, key: key, rounds: map[string]*killed{}}
	toml := ""
	for _, to := range destinations(t) {
		k.to = append(k.to, to, destination{name: to.name + "-sealed", root: to.root, verified: to.verified})
		toml += profiles([]destination{to}, "")
		toml += fmt.Sprintf("[destination.%s-sealed]\n%scompression = \"zstd\"\nencrypt_to = [%q]\n", to.name, to.profile, key.Recipient())
	}
	k.d = testbed.StartDaemon(t, "", toml)
	stop := count(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	k.start()
	for n := range *kills {
		time.Sleep(time.Duration(20+rnd.IntN(900)) * time.Millisecond)
		k.note()
		if n%3 == 2 {
			k.killChild()
			continue
		}
		k.d.Kill()
		k.lookInside()
		k.d.Start()
		k.start()
	}
	k.note()
	k.d.Must("stop", "--all")
	stop()
	k.judge()
}

// killing is what TestKills knows.
type killing struct {
	t      *testing.T
	d      *testbed.Daemon
	key    *age.X25519Identity
	to     []destination
	rounds map[string]*killed // by capture
	now    []string           // captures that run
}

// killed is one capture of TestKills.
type killed struct {
	to     destination
	closed map[string]uint64 // packets of the segments that were seen closed
}

func (k *killed) sealed() bool { return strings.HasSuffix(k.to.name, "-sealed") }

// start begins a capture to each destination.
func (k *killing) start() {
	k.now = nil
	for _, to := range k.to {
		id := k.d.Must("start", "-d", to.name, "--no-check", "--segment-size", "256KiB", "-f", writeRequest(k.t))
		k.rounds[id], k.now = &killed{to, map[string]uint64{}}, append(k.now, id)
	}
}

// note remembers the segments that are closed.
func (k *killing) note() {
	for _, id := range k.now {
		for _, f := range k.d.Show(id).Files {
			if f.Status != wire.FileOpen {
				k.rounds[id].closed[f.Name] = f.Packets
			}
		}
	}
}

// lookInside looks for plain packets in what a killed capd has left of sealed captures.
func (k *killing) lookInside() {
	for _, id := range k.now {
		if !k.rounds[id].sealed() {
			continue
		}
		for name, data := range testbed.Tree(k.t, filepath.Join(k.d.StateDir(), "spool", id)) {
			if bytes.Contains(data, []byte(mark)) {
				k.t.Errorf("%s/%s holds plain packets", id, name)
			}
		}
	}
}

// killChild kills the delivery process.
func (k *killing) killChild() {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", k.d.PID(), k.d.PID()))
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil || len(stats) == 0 {
		k.t.Fatalf("capd's children: %s, %v", text, err)
	}
	for _, stat := range stats { // a child belongs to the thread that made it, so all are looked at
		line, err := os.ReadFile(stat)
		_, rest, ok := strings.Cut(string(line), ") ")
		if fields := strings.Fields(rest); err == nil && ok && len(fields) > 1 && fields[1] == strconv.Itoa(k.d.PID()) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(stat)))
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				k.t.Fatal(err)
			}
		}
	}
}

const mark = "capd kills "

var number = regexp.MustCompile(regexp.QuoteMeta(mark) + `(\d{9})\|`)

// perSender is more than one sender of count's sends: number n is of sender n / perSender.
const perSender = 100_000_000

// count sends numbered datagrams to talkPort until the function that it gives is called,
// from two CPUs, or one where there is one. Each sender stays on its CPU and has numbers of
// its own, so that what it sends goes to one group and ends at one place at a kill.
func count(t *testing.T) (stop func()) {
	t.Helper()
	to := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: talkPort}
	l, err := net.ListenUDP("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cpus); err != nil {
		t.Fatal(err)
	}
	end := make(chan struct{})
	var sending sync.WaitGroup
	filler := strings.Repeat("0123456789", 60)
	for cpu, senders := 0, 0; senders < min(2, cpus.Count()); cpu++ {
		if !cpus.IsSet(cpu) {
			continue
		}
		first := senders * perSender
		senders++
		sending.Go(func() {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			var here unix.CPUSet
			here.Set(cpu)
			if err := unix.SchedSetaffinity(0, &here); err != nil {
				t.Error(err)
				return
			}
			c, err := net.DialUDP("udp", nil, to)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			for n := first; ; n++ {
				select {
				case <-end:
					return
				case <-time.After(time.Millisecond):
				}
				if _, err := fmt.Fprintf(c, "%s%09d|%s", mark, n, filler); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	return func() {
		close(end)
		sending.Wait()
		l.Close()
	}
}

// judge waits for every delivery and looks at what has arrived.
func (k *killing) judge() {
	t := k.t
	interrupted, repaired, cut, packets := 0, 0, 0, 0
	expected := map[string]bool{}
	for id, round := range k.rounds {
		k.d.Capctl("retry", id)
		c := k.d.Await(id, "complete", isComplete)
		there := map[string]string{}
		for name, path := range delivered(t, round.to.root) {
			if strings.Contains(name, id) {
				there[filepath.Base(name)] = path
				expected[path] = true
			}
		}
		manifest := wire.ManifestName
		if round.sealed() {
			manifest = wire.SealedManifestName
		}
		if len(there) != len(c.Files)+2 || there[manifest] == "" || there[wire.SignatureName] == "" {
			t.Errorf("capture %s: %v are there, the record has %+v", id, there, c.Files)
		}
		if c.StopReason == wire.StopInterrupted {
			interrupted++
		}
		var numbers []int
		for i, f := range c.Files {
			if want := fmt.Sprintf("%04d.pcapng", i+1); !strings.HasPrefix(f.Name, want) {
				t.Errorf("capture %s: file %d is %s", id, i+1, f.Name)
			}
			if f.Interrupted {
				repaired++
			}
			if f.Cut {
				cut++
			}
			// The open one, and before it those that were being closed: one on a disk that keeps up.
			if f.Interrupted && c.StopReason != wire.StopInterrupted || f.Cut && !round.sealed() {
				t.Errorf("capture %s: %+v", id, f)
			}
			if i > 0 && c.Files[i-1].Interrupted && !f.Interrupted {
				t.Errorf("capture %s: %+v comes after an interrupted one", id, f)
			}
			if n, ok := round.closed[f.Name]; ok && (f.Interrupted || n != f.Packets) {
				t.Errorf("capture %s: %s was closed with %d packets: %+v", id, f.Name, n, f)
			}
			delete(round.closed, f.Name)
			numbers = append(numbers, k.read(round, there[f.Name], f)...)
		}
		packets += len(numbers)
		slices.Sort(numbers)  // a file is in time order only within its bound
		last := map[int]int{} // of each sender
		for _, n := range numbers {
			if before, ok := last[n/perSender]; ok && n != before+1 {
				t.Errorf("capture %s: packet %d is followed by %d", id, before, n)
			}
			last[n/perSender] = n
		}
		if len(round.closed) > 0 {
			t.Errorf("capture %s: closed segments are gone: %v", id, round.closed)
		}
	}
	for _, to := range k.to {
		for name, path := range delivered(t, to.root) {
			if !expected[path] {
				t.Errorf("%s is left at %s", name, to.name)
			}
		}
	}
	for name := range testbed.Tree(t, k.d.StateDir()) {
		if dir, file := filepath.Split(name); dir == "spool/" || dir == "captures/" && (len(file) != len("0123456789abcdef0123456789abcdef.json")) || strings.Count(name, "/") > 1 {
			t.Errorf("%s is left here", name)
		}
	}
	t.Logf("%d kills: %d captures, %d interrupted, %d segments repaired, %d sealed ones cut, %d packets exactly once", *kills, len(k.rounds), interrupted, repaired, cut, packets)
	if interrupted == 0 || packets == 0 || *kills >= 50 && (repaired == 0 || cut == 0) {
		t.Error("the kills met nothing")
	}
}

// delivered maps the paths of a server's files, from its root on, to their whole paths.
func delivered(t *testing.T, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && e.Name() == ".sgwtmp" {
			return filepath.SkipDir // versitygw's own
		}
		if err == nil && e.Type().IsRegular() {
			all[strings.TrimPrefix(path, root)] = path
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// read gives the numbers of the packets in a delivered file, in their order.
func (k *killing) read(round *killed, path string, f wire.File) (numbers []int) {
	t := k.t
	data, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
		return nil
	}
	if sum := sha256.Sum256(data); f.Status != wire.FileDelivered || f.Verified != round.to.verified || f.SHA256 != hex.EncodeToString(sum[:]) || f.Bytes != uint64(len(data)) {
		t.Errorf("%s: %d bytes of SHA-256 %x are there: %+v", path, len(data), sum, f)
	}
	if round.sealed() {
		if bytes.Contains(data, []byte(mark)) {
			t.Errorf("%s holds plain packets", path)
		}
		data = k.unseal(data, f)
	}
	if f.SHA256Plain != "" {
		if sum := sha256.Sum256(data); f.SHA256Plain != hex.EncodeToString(sum[:]) {
			t.Errorf("%s: sha256_plain is %s, the plain file has %x", path, f.SHA256Plain, sum)
		}
	}
	r, err := pcapgo.NewNgReader(bytes.NewReader(data), pcapgo.DefaultNgReaderOptions)
	for err == nil {
		var packet []byte
		if packet, _, err = r.ReadPacketData(); err != nil {
			break
		}
		found := number.FindSubmatch(packet)
		if found == nil {
			t.Errorf("%s: a packet without a number", path)
			continue
		}
		n, _ := strconv.Atoi(string(found[1]))
		numbers = append(numbers, n)
	}
	if !errors.Is(err, io.EOF) && !(f.Cut && (len(data) == 0 || errors.Is(err, io.ErrUnexpectedEOF))) {
		t.Errorf("%s: %v", path, err)
	}
	if !f.Cut && uint64(len(numbers)) != f.Packets {
		t.Errorf("%s: %d packets, the record says %d", path, len(numbers), f.Packets)
	}
	return numbers
}

// unseal opens a sealed file; of one that is cut, what comes before the cut.
func (k *killing) unseal(data []byte, f wire.File) []byte {
	sealed, err := age.Decrypt(bytes.NewReader(data), k.key)
	if err != nil {
		if !f.Cut {
			k.t.Errorf("open %s: %v", f.Name, err)
		}
		return nil
	}
	frame, err := zstd.NewReader(sealed)
	if err != nil {
		k.t.Fatal(err)
	}
	defer frame.Close()
	plain, err := io.ReadAll(frame)
	if err != nil && !f.Cut {
		k.t.Errorf("open %s: %v", f.Name, err)
	}
	return slices.Clip(plain)
}
