package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"capd/ctl/wire"
	"capd/ring/pcapng"
	"capd/testbed"
)

// Overload on purpose. The injector's own count is what everything is held against: it
// knows nothing of rules, groups or sequence numbers.

// overloaded is a configuration in which nothing but loss keeps packets out of the files.
const overloaded = `
[limits]
max_packet_rate = 0
spool_size = "30gb"
min_free_space = "1%"
max_byte_limit = "100gb"
default_byte_limit = "30gb"
max_captures = 1
[ring]
size = "16MiB"
receive_buffer = "16MiB"
`

// startInjected starts a capture of what Inject sends, once, as it arrives.
func startInjected(t *testing.T, d *testbed.Daemon, args ...string) string {
	t.Helper()
	request := filepath.Join(t.TempDir(), "request.json")
	text := `{"filter_v1": {"source_address": "10.9.0.1", "destination_address": "10.9.0.2", "protocol": "udp"}, "hooks": ["prerouting"]}`
	if err := os.WriteFile(request, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return d.Must(append([]string{"start", "-f", request}, args...)...)
}

// flood injects on vb and counts what it injected. Each call has a destination port of
// its own, so that a packet in a file can be told to be one of those that it injected.
type flood struct {
	t  *testing.T
	ns string

	mu     sync.Mutex
	count  uint64
	bursts []burst // in the order in which they began
}

// burst is one call's frames: numbers first to last of all that were injected, if no other
// call ran at the same time.
type burst struct{ first, last uint64 }

const firstPort = 10_000

// inject returns when every frame has gone through the rules. It may run on any goroutine.
func (f *flood) inject(o testbed.InjectOptions) {
	f.mu.Lock()
	o.Interface, o.Port = "vb", uint16(firstPort+len(f.bursts))
	n := len(f.bursts)
	f.bursts = append(f.bursts, burst{f.count, f.count + uint64(o.Count) - 1})
	f.mu.Unlock()
	done, err := testbed.Inject(f.ns, o)
	if err != nil || done.Frames != o.Count {
		f.t.Errorf("burst %d: %d of %d frames: %v", n, done.Frames, o.Count, err)
	}
	f.mu.Lock()
	f.count += uint64(done.Frames)
	f.mu.Unlock()
}

// onOne is a burst that one CPU makes. All such bursts go to one group, in their order.
func onOne(count, length int) testbed.InjectOptions {
	return testbed.InjectOptions{Count: count, Length: length, Pin: true}
}

// fileAccount is what capture files tell, read with our own reader.
type fileAccount struct {
	packets, dropped                          uint64 // sum of epb_dropcount
	received, ifDropped, osDropped, delivered uint64 // sums of the interface statistics
	list                                      []filePacket
}

type filePacket struct {
	burst   int
	dropped uint64
}

func account(t *testing.T, paths []string) (a fileAccount) {
	t.Helper()
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		r := pcapng.NewReader(f)
		b, err := r.Next()
		for ; err == nil; b, err = r.Next() {
			switch b.Type {
			case pcapng.TypePacket:
				p, err := b.Packet()
				if err != nil {
					t.Fatal(err)
				}
				a.packets++
				a.dropped += p.Dropped
				const udp = 20 + 20 // SLL2 and IPv4 headers
				a.list = append(a.list, filePacket{int(binary.BigEndian.Uint16(p.Body[udp+2:])) - firstPort, p.Dropped})
			case pcapng.TypeStatistics:
				s, err := b.Statistics()
				if err != nil {
					t.Fatal(err)
				}
				a.received += s.Received
				a.ifDropped += s.Dropped
				a.osDropped += s.OSDropped
				a.delivered += s.Delivered
			}
		}
		f.Close()
		if !errors.Is(err, io.EOF) {
			t.Fatalf("%s: %v", path, err)
		}
	}
	return a
}

// checkPlaces sees to it that loss stands where it happened: counting the packets of a
// file and what they tell of loss before them gives each packet's number among all that
// were injected, and it must be one of those of its burst. It gives the number of the last
// packet in the files, plus one. For bursts on one CPU, one after the other.
func checkPlaces(t *testing.T, f *flood, a fileAccount) (next uint64) {
	t.Helper()
	for i, p := range a.list {
		next += p.dropped
		if p.burst < 0 || p.burst >= len(f.bursts) {
			t.Fatalf("packet %d of the files was not injected", i)
		}
		if b := f.bursts[p.burst]; next < b.first || next > b.last {
			t.Fatalf("by the losses told, packet %d of the files is number %d of all; it is of burst %d, which is %d to %d", i, next, p.burst, b.first, b.last)
		}
		next++
	}
	return next
}

// checkLoss holds a stopped capture and its files against the number of frames injected.
func checkLoss(t *testing.T, c wire.Capture, paths []string, injected uint64) fileAccount {
	t.Helper()
	checkCounts(t, c)
	p := c.Packets
	if *p.Seen != injected || *p.SampledOut != 0 || p.Discarded != 0 {
		t.Errorf("%d frames were injected, seen %d, sampled out %d, discarded %d", injected, *p.Seen, *p.SampledOut, p.Discarded)
	}
	inFiles := uint64(0)
	for _, path := range paths {
		inFiles += uint64(testbed.Capinfos(t, path).Packets)
	}
	if missing := injected - *p.Limited - inFiles; p.Captured != inFiles || p.Lost != missing {
		t.Errorf("of %d frames injected (%d limited) capinfos finds %d: %d are missing; captured %d, lost %d", injected, *p.Limited, inFiles, missing, p.Captured, p.Lost)
	}
	a := account(t, paths)
	if a.packets != inFiles || a.delivered != inFiles || a.ifDropped != p.Lost || a.osDropped != p.Lost || a.received != *p.Matched {
		t.Errorf("the files tell of %+v, the capture of %+v", a, p)
	}
	if a.dropped != p.LostBy.Sequence+p.LostBy.Decode || a.dropped+p.LostBy.Tail != p.Lost {
		t.Errorf("on packets stand %d losses, lost %d by %+v", a.dropped, p.Lost, p.LostBy)
	}
	t.Logf("%d injected, captured %d, lost %d by %+v, limited %d", injected, p.Captured, p.Lost, p.LostBy, *p.Limited)
	return a
}

// shown is what `capctl --json show` tells.
func shown(t *testing.T, d *testbed.Daemon, id string) (c wire.Capture) {
	t.Helper()
	if err := json.Unmarshal([]byte(d.Must("--json", "show", id)), &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// frozen stops capd by SIGSTOP for two seconds and longer if f takes longer. It tells
// whether that was short enough for the dead-man switch, which capd feeds once a second
// and which holds for five, not to have stopped the rules.
func frozen(t *testing.T, d *testbed.Daemon, f func()) (short bool) {
	t.Helper()
	began := time.Now()
	d.Signal(syscall.SIGSTOP)
	defer d.Signal(syscall.SIGCONT)
	awaitStopped(t, d.PID())
	f()
	time.Sleep(time.Until(began.Add(2 * time.Second)))
	return time.Since(began) < 3500*time.Millisecond
}

// awaitStopped waits until every thread of a process has taken note of SIGSTOP.
func awaitStopped(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil || len(threads) == 0 {
			t.Fatalf("threads of %d: %v %v", pid, threads, err)
		}
		stopped := 0
		for _, path := range threads {
			text, _ := os.ReadFile(path)
			if _, rest, _ := strings.Cut(string(text), ") "); strings.HasPrefix(rest, "T") {
				stopped++
			}
		}
		if stopped == len(threads) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d threads are stopped", stopped, len(threads))
		}
	}
}

// A receive buffer that holds a fraction of what comes while capd is stopped. What is
// lost before a packet that arrives is told by the sequence numbers, and stands on that
// packet; what is lost last only the rule's counter knows.
func TestLossWhileStopped(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, overloaded)
	check := func(t *testing.T, id string, f *flood, short bool) wire.LostBy {
		t.Helper()
		d.Must("stop", id)
		c := shown(t, d, id)
		a := checkLoss(t, c, files(t, d, id), f.count)
		if c.Packets.Lost == 0 || c.Packets.Captured == 0 {
			t.Errorf("nothing was lost, or all: %+v", c.Packets)
		}
		if *c.Packets.Limited == 0 {
			if last := checkPlaces(t, f, a); f.count-last != c.Packets.LostBy.Tail {
				t.Errorf("the last packet in the files is number %d of %d, lost at the tail: %d", last, f.count, c.Packets.LostBy.Tail)
			}
		} else if short {
			t.Errorf("limited %d: the dead-man switch must hold for a stop of two seconds", *c.Packets.Limited)
		}
		d.Must("rm", id)
		return c.Packets.LostBy
	}
	t.Run("packets come after it", func(t *testing.T) {
		f := &flood{t: t, ns: p.B}
		id := startInjected(t, d)
		f.inject(onOne(5000, 60))
		short := frozen(t, d, func() {
			for range 20 {
				f.inject(onOne(10_000, 60))
			}
		})
		d.Await(id, "read", func(c wire.Capture) bool {
			f.inject(onOne(1, 60))
			return c.Packets.Lost > 0 // by a packet after the loss
		})
		f.inject(onOne(500, 60))
		if by := check(t, id, f, short); by.Sequence == 0 || by.Tail != 0 {
			t.Errorf("lost by %+v, want all by sequence", by)
		}
	})
	t.Run("nothing comes after it", func(t *testing.T) {
		f := &flood{t: t, ns: p.B}
		id := startInjected(t, d)
		f.inject(onOne(5000, 60))
		short := frozen(t, d, func() {
			f.inject(onOne(100_000, 60))
			// The room that is left in the receive buffer is too small for a full batch. Batches
			// of one packet may fit, but not forty: those after the last that fits are the tail.
			for range 40 {
				time.Sleep(15 * time.Millisecond)
				f.inject(onOne(1, 3000))
			}
			time.Sleep(200 * time.Millisecond) // the kernel holds a batch for 10 ms and some
		})
		if by := check(t, id, f, short); short && by.Tail == 0 {
			t.Errorf("lost by %+v, want some at the tail", by)
		}
	})
	t.Run("in the midst of it", func(t *testing.T) {
		f := &flood{t: t, ns: p.B}
		id := startInjected(t, d)
		var flooding sync.WaitGroup
		enough := make(chan struct{})
		flooding.Go(func() {
			for {
				select {
				case <-enough:
					return
				default:
					f.inject(onOne(5000, 60))
				}
			}
		})
		d.Await(id, "flooded", func(c wire.Capture) bool { return c.Packets.Captured > 1000 })
		short := frozen(t, d, func() {})
		before := shown(t, d, id).Packets.Captured
		d.Await(id, "going on", func(c wire.Capture) bool { return c.Packets.Lost > 0 && c.Packets.Captured > before+5000 })
		close(enough)
		flooding.Wait()
		check(t, id, f, short)
	})
}

// The disk takes nothing for a while: the write blocks fill, then the ring, then the
// receive buffer, and then packets are lost and counted. A frozen file system is what a
// disk that hangs looks like from above.
func TestLossWhileTheDiskStalls(t *testing.T) {
	disk := testbed.NewLoopDisk(t, 1<<30)
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, strings.ReplaceAll(overloaded, "30gb", "900mb")+fmt.Sprintf("[spool]\ndir = %q\n", disk.Dir+"/spool"))
	t.Cleanup(disk.Thaw) // before capd is stopped
	f := &flood{t: t, ns: p.B}
	id := startInjected(t, d)
	f.inject(onOne(2000, 1400))
	disk.Freeze()
	d.Await(id, "lossy", func(c wire.Capture) bool {
		f.inject(onOne(10_000, 1400))
		return c.Packets.Lost > 0 || *c.Packets.Matched > c.Packets.Captured+100_000
	})
	while := shown(t, d, id)
	disk.Thaw()
	d.Await(id, "going on", func(c wire.Capture) bool {
		f.inject(onOne(100, 1400))
		return c.Packets.Captured > while.Packets.Captured && c.Packets.Lost > 0
	})
	d.Must("stop", id)
	c := shown(t, d, id)
	a := checkLoss(t, c, files(t, d, id), f.count)
	if last := checkPlaces(t, f, a); f.count-last != c.Packets.LostBy.Tail {
		t.Errorf("the last packet in the files is number %d of %d, lost at the tail: %d", last, f.count, c.Packets.LostBy.Tail)
	}
	if c.Packets.LostBy.Sequence == 0 || c.Error != nil || c.StopReason != wire.StopRequested {
		t.Errorf("%s, %+v, %+v", c.StopReason, c.Error, c.Packets)
	}
}

// TestLossBesideAForeignRule: a rule of somebody else that logs to a capture's groups takes
// of their numbers, so that gaps in them are not all the capture's loss.
func TestLossBesideAForeignRule(t *testing.T) {
	p := testbed.NewPair(t)
	testbed.NeedCommand(t, "nft")
	d := testbed.StartDaemon(t, p.B, overloaded)
	f := &flood{t: t, ns: p.B}
	id := startInjected(t, d)
	groups := map[string]bool{}
	for _, m := range regexp.MustCompile(`log prefix "capd:[0-9a-f]+" group (\d+)`).FindAllStringSubmatch(testbed.RunIn(t, p.B, "nft", "list", "ruleset"), -1) {
		groups[m[1]] = true
	}
	if len(groups) == 0 {
		t.Fatal("the capture has no log rule")
	}
	testbed.RunIn(t, p.B, "nft", "add", "table", "inet", "foreign")
	testbed.RunIn(t, p.B, "nft", "add", "chain", "inet", "foreign", "in", "{ type filter hook prerouting priority 0; }")
	for g := range groups {
		testbed.RunIn(t, p.B, "nft", "add", "rule", "inet", "foreign", "in", "ip", "saddr", "10.9.0.1", "log", "prefix", "foreign", "group", g)
	}
	f.inject(onOne(5000, 60))
	frozen(t, d, func() {
		for range 20 {
			f.inject(onOne(10_000, 60))
		}
	})
	d.Await(id, "read", func(c wire.Capture) bool {
		f.inject(onOne(1, 60))
		return c.Packets.Lost > 0
	})
	d.Must("stop", id)
	c := shown(t, d, id)
	checkCounts(t, c)
	inFiles := uint64(0)
	for _, path := range files(t, d, id) {
		inFiles += uint64(testbed.Capinfos(t, path).Packets)
	}
	if missing := f.count - *c.Packets.Limited - inFiles; *c.Packets.Seen != f.count || c.Packets.Captured != inFiles || c.Packets.Lost != missing || missing == 0 {
		t.Errorf("of %d frames injected capinfos finds %d, so that %d are missing; the capture says %+v", f.count, inFiles, missing, c.Packets)
	}
	if len(c.Warnings) != 1 || c.Warnings[0].Code != "foreign_packets" {
		t.Errorf("warnings %+v, want foreign_packets", c.Warnings)
	}
}

// More than the box can take: every CPU injects whole packets at full speed, and capd has
// to wait for its turn, because it is the least important process.
func TestLossAtFullSpeed(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, overloaded)
	f := &flood{t: t, ns: p.B}
	id := startInjected(t, d)
	niceness(t, d.PID(), 19)
	for round := 0; shown(t, d, id).Packets.Lost == 0; round++ {
		if round == 10 {
			t.Fatalf("%d frames at full speed from %d CPUs, and nothing was lost", f.count, runtime.NumCPU())
		}
		var injecting sync.WaitGroup
		for cpu := range runtime.NumCPU() {
			injecting.Go(func() { f.inject(testbed.InjectOptions{Count: 150_000, Length: 1400, Pin: true, CPU: cpu}) })
		}
		injecting.Wait()
	}
	niceness(t, d.PID(), 0)
	d.Must("stop", id)
	c := shown(t, d, id)
	checkLoss(t, c, files(t, d, id), f.count)
}

// niceness sets that of every thread of a process.
func niceness(t *testing.T, pid, nice int) {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil || len(threads) == 0 {
		t.Fatalf("threads of %d: %v %v", pid, threads, err)
	}
	for _, path := range threads {
		tid, _ := strconv.Atoi(filepath.Base(path))
		if err := unix.Setpriority(unix.PRIO_PROCESS, tid, nice); err != nil && !errors.Is(err, unix.ESRCH) {
			t.Fatal(err)
		}
	}
}

// The loss of a delivered capture stands in its manifest.
func TestLossIsDelivered(t *testing.T) {
	sshd := testbed.NewSSHD(t)
	p := testbed.NewPair(t)
	forward(t, p.B, sshd.Address)
	d := testbed.StartDaemon(t, p.B, overloaded+fmt.Sprintf("[destination.soc]\ntype = \"sftp\"\naddress = %q\nuser = %q\nprivate_key = %q\nknown_hosts = %q\npath = \"{file}\"\n",
		sshd.Address, sshd.User, sshd.PrivateKey, sshd.KnownHosts))
	f := &flood{t: t, ns: p.B}
	id := startInjected(t, d, "-d", "soc", "--segment-size", "1mb")
	f.inject(onOne(5000, 60))
	frozen(t, d, func() { f.inject(onOne(100_000, 60)) })
	f.inject(onOne(5000, 60))
	d.Must("stop", id)
	d.Await(id, "complete", isComplete)
	c := shown(t, d, id)
	there := found(t, sshd.Root)
	var paths []string
	for _, file := range c.Files {
		paths = append(paths, there[file.Name])
	}
	if checkLoss(t, c, paths, f.count); c.Packets.Lost == 0 || len(paths) < 3 {
		t.Errorf("%d files, %+v", len(paths), c.Packets)
	}
	text, err := os.ReadFile(there["manifest.json"])
	if err != nil {
		t.Fatal(err)
	}
	var manifest struct{ Capture wire.Capture }
	if err := json.Unmarshal(text, &manifest); err != nil {
		t.Fatal(err)
	}
	got, _ := json.Marshal(manifest.Capture.Packets)
	want, _ := json.Marshal(c.Packets)
	if string(got) != string(want) {
		t.Errorf("the manifest tells of %s, show of %s", got, want)
	}
}

// forward makes an address on this machine's loopback reachable at the same address
// inside a namespace.
func forward(t *testing.T, ns, address string) {
	t.Helper()
	var l net.Listener
	testbed.In(t, ns, func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	var copying sync.WaitGroup
	t.Cleanup(copying.Wait)
	t.Cleanup(func() { l.Close() })
	copying.Go(func() {
		for {
			inner, err := l.Accept()
			if err != nil {
				return
			}
			outer, err := net.Dial("tcp", address)
			if err != nil {
				inner.Close()
				continue
			}
			for _, way := range [][2]net.Conn{{inner, outer}, {outer, inner}} {
				copying.Go(func() {
					_, _ = io.Copy(way[0], way[1])
					way[0].Close()
					way[1].Close()
				})
			}
		}
	})
}
