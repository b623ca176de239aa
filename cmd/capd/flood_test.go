package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
		readFile(t, path, func(_ pcapng.Interface, p pcapng.Packet) {
			a.packets++
			a.dropped += p.Dropped
			const udp = 20 + 20 // SLL2 and IPv4 headers
			a.list = append(a.list, filePacket{int(binary.BigEndian.Uint16(p.Body[udp+2:])) - firstPort, p.Dropped})
		}, func(s pcapng.Statistics) {
			a.received += s.Received
			a.ifDropped += s.Dropped
			a.osDropped += s.OSDropped
			a.delivered += s.Delivered
		})
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
	if *p.Seen != injected || *p.SampledOut != 0 || *p.Discarded != 0 {
		t.Errorf("%d frames were injected, seen %d, sampled out %d, discarded %d", injected, *p.Seen, *p.SampledOut, *p.Discarded)
	}
	inFiles := uint64(0)
	for _, path := range paths {
		inFiles += uint64(testbed.Capinfos(t, path).Packets)
	}
	if missing := injected - *p.Limited - inFiles; p.Captured != inFiles || *p.Lost != missing {
		t.Errorf("of %d frames injected (%d limited) capinfos finds %d: %d are missing; captured %d, lost %d", injected, *p.Limited, inFiles, missing, p.Captured, *p.Lost)
	}
	a := account(t, paths)
	if a.packets != inFiles || a.delivered != inFiles || a.ifDropped != *p.Lost || a.osDropped != *p.Lost || a.received != *p.Matched {
		t.Errorf("the files tell of %+v, the capture of %+v", a, p)
	}
	if a.dropped != p.LostBy.Sequence+p.LostBy.Decode || a.dropped+p.LostBy.Tail != *p.Lost {
		t.Errorf("on packets stand %d losses, lost %d by %+v", a.dropped, *p.Lost, p.LostBy)
	}
	t.Logf("%d injected, captured %d, lost %d by %+v, limited %d", injected, p.Captured, *p.Lost, p.LostBy, *p.Limited)
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
// and which holds for five, not to have stopped the rules: until capd answers again, which
// on a busy machine is later than it may.
func frozen(t *testing.T, d *testbed.Daemon, f func()) (short bool) {
	t.Helper()
	d.Must("list")
	began := time.Now()
	d.Signal(syscall.SIGSTOP)
	func() {
		defer d.Signal(syscall.SIGCONT)
		awaitStopped(t, d.PID())
		f()
		time.Sleep(time.Until(began.Add(2 * time.Second)))
	}()
	d.Must("list")
	return time.Since(began) < 3500*time.Millisecond
}

// awaitStopped waits until every thread of a process has taken note of SIGSTOP.
func awaitStopped(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
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
