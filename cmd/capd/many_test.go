package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"capd/ring/pcapng"
	"capd/testbed"
)

// quiet sends count datagrams to a port of B, and sees each of them arrive.
func quiet(p testbed.Pair, port uint16, count int, every time.Duration) ([]testbed.Message, error) {
	return testbed.SendUDP(testbed.Stream{From: p.A, To: p.B, Source: netip.AddrPortFrom(testbed.A4, 0),
		Destination: netip.AddrPortFrom(testbed.B4, port), Count: count, Interval: every, Size: 200})
}

// stream sends numbered datagrams from A to B, one after the other, until it is closed.
type stream struct {
	t       *testing.T
	sent    atomic.Uint64 // those below are on their way or there
	end     chan struct{}
	sending sync.WaitGroup
}

func newStream(t *testing.T, p testbed.Pair, port uint16) *stream {
	t.Helper()
	s := &stream{t: t, end: make(chan struct{})}
	var c *net.UDPConn
	testbed.In(t, p.A, func() (err error) {
		c, err = net.ListenUDP("udp", &net.UDPAddr{IP: testbed.A4.AsSlice()})
		return err
	})
	s.sending.Go(func() {
		defer c.Close()
		b := make([]byte, 64)
		for {
			select {
			case <-s.end:
				return
			default:
			}
			binary.BigEndian.PutUint64(b, s.sent.Load())
			if _, err := c.WriteToUDPAddrPort(b, netip.AddrPortFrom(testbed.B4, port)); err != nil {
				t.Errorf("send: %v", err)
				return
			}
			s.sent.Add(1)
			time.Sleep(200 * time.Microsecond)
		}
	})
	return s
}

// until waits until the packets below number n are sent.
func (s *stream) until(n uint64) {
	s.t.Helper()
	for deadline := time.Now().Add(time.Minute); s.sent.Load() < n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("%d of %d packets are sent", s.sent.Load(), n)
		}
	}
}

func (s *stream) close() {
	close(s.end)
	s.sending.Wait()
}

// numbersIn gives the numbers of a stream's packets in a file.
func numbersIn(t *testing.T, path string) (numbers []uint64) {
	t.Helper()
	readFile(t, path, func(_ pcapng.Interface, p pcapng.Packet) {
		const payload = 20 + 20 + 8 // SLL2, IPv4 and UDP headers
		numbers = append(numbers, binary.BigEndian.Uint64(p.Body[payload:]))
	}, nil)
	return numbers
}

// residentOf is a process's resident size in bytes.
func residentOf(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(text))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

func portRequest(t *testing.T, d *testbed.Daemon, port uint16, args ...string) string {
	t.Helper()
	path := t.TempDir() + "/request.json"
	text := fmt.Sprintf(`{"filter_v1": {"destination_port": %d, "protocol": "udp"}, "hooks": ["prerouting"]}`, port)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return d.Must(append([]string{"start", "-f", path}, args...)...)
}

// Eight captures at once, one of which takes more than the box can write down: the others
// lose nothing, and every count is exact.
func TestAFloodCostsOnlyItsOwnCapture(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, strings.NewReplacer("max_captures = 1\n", "max_captures = 8\n", `size = "16MiB"`, `size = "64MiB"`).Replace(overloaded))
	const quietOnes, perCapture, floodPort = 7, 300, 7000
	before := residentOf(t, d.PID())
	var ids []string
	for i := range quietOnes {
		ids = append(ids, portRequest(t, d, uint16(7001+i)))
	}
	flooded := portRequest(t, d, floodPort)

	var sending sync.WaitGroup
	over, done := make(chan struct{}), make(chan struct{})
	injected, most := 0, 0
	go func() {
		defer close(done)
		for {
			select {
			case <-over:
				return
			default:
			}
			n, err := testbed.Inject(p.B, testbed.InjectOptions{Interface: "vb", Count: 20_000, Length: 1400, Port: floodPort})
			if injected += n.Frames; err != nil {
				t.Error(err)
				return
			}
			most = max(most, residentOf(t, d.PID()))
		}
	}()
	sent := make([][]testbed.Message, quietOnes)
	for i := range quietOnes {
		sending.Go(func() {
			var err error
			if sent[i], err = quiet(p, uint16(7001+i), perCapture, 2*time.Millisecond); err != nil {
				t.Errorf("stream %d: %v", i, err)
			}
		})
	}
	sending.Wait()
	close(over)
	<-done
	d.Must(append([]string{"stop", flooded}, ids...)...)
	for i, id := range ids {
		c := d.Show(id)
		checkCounts(t, c)
		if *c.Packets.Seen != perCapture || c.Packets.Captured != perCapture || *c.Packets.Lost != 0 {
			t.Errorf("quiet capture %d: %+v, %d were sent", i, c.Packets, perCapture)
		}
		testbed.WantPackets(t, testbed.TsharkPackets(t, files(t, d, id)[0], ""), sent[i], 1)
	}
	c := d.Show(flooded)
	checkCounts(t, c)
	inFiles := uint64(0)
	for _, path := range files(t, d, flooded) {
		inFiles += uint64(testbed.Capinfos(t, path).Packets)
	}
	if *c.Packets.Seen != uint64(injected) || c.Packets.Captured != inFiles || *c.Packets.Lost != uint64(injected)-inFiles-*c.Packets.Limited {
		t.Errorf("%d frames were injected, %d are in the files: %+v", injected, inFiles, c.Packets)
	}
	after := residentOf(t, d.PID())
	t.Logf("of %d frames %d were lost; capd had %d KiB before, %d during, %d after", injected, *c.Packets.Lost, before>>10, most>>10, after>>10)
	// The ring and its write blocks are [ring] size; 32 MiB is for all else, whatever comes.
	if most > 64<<20+32<<20 || after > before+32<<20 {
		t.Errorf("capd's resident size was %d KiB before, %d during, %d after, with 64 MiB of ring", before>>10, most>>10, after>>10)
	}
	if rules := d.Ruleset(); strings.Contains(rules, "log") || strings.Contains(rules, "hook") {
		t.Errorf("rules are left:\n%s", rules)
	}
}

// From start's return on every packet counts, and from stop's return on no rule is left,
// while others run.
func TestStartAndStopAreExact(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	for i := range 7 {
		portRequest(t, d, uint16(7101+i), "--name", fmt.Sprint("other-", i))
	}
	// A stream of numbered packets that never pauses. What was sent after start had returned
	// and before stop was asked for must be in the file, and nothing from after stop's return.
	const port = 7100
	for round := range 5 {
		s := newStream(t, p, port)
		s.until(50)
		id := portRequest(t, d, port)
		first := s.sent.Load() + 1 // the one before may have been on its way when start returned
		if rules := d.Ruleset(); !strings.Contains(rules, id[:8]) {
			t.Errorf("round %d: no rule of %s while it runs:\n%s", round, id[:8], rules)
		}
		s.until(first + 200)
		last := s.sent.Load() - 1
		d.Must("stop", id)
		beyond := s.sent.Load() + 1 // sent after stop had returned
		if rules := d.Ruleset(); strings.Contains(rules, id[:8]) {
			t.Errorf("round %d: after stop there are rules of %s:\n%s", round, id[:8], rules)
		}
		s.until(beyond + 50)
		s.close()
		c := d.Show(id)
		checkCounts(t, c)
		if *c.Packets.Lost != 0 {
			t.Errorf("round %d: %+v", round, c.Packets)
		}
		numbers := numbersIn(t, files(t, d, id)[0])
		slices.Sort(numbers)
		for i, n := range numbers {
			if i > 0 && n != numbers[i-1]+1 {
				t.Errorf("round %d: packet %d comes after %d", round, n, numbers[i-1])
			}
		}
		if len(numbers) == 0 || numbers[0] > first || numbers[len(numbers)-1] < last || numbers[len(numbers)-1] >= beyond {
			t.Errorf("round %d: %d packets are in the file; %d to %d must be, and none from %d on", round, len(numbers), first, last, beyond)
		}
	}
	// One packet, right away.
	for range 10 {
		id := portRequest(t, d, port)
		if _, err := quiet(p, port, 1, 0); err != nil {
			t.Fatal(err)
		}
		d.Must("stop", id)
		if c := d.Show(id); c.Packets.Captured != 1 || *c.Packets.Matched != 1 {
			t.Errorf("one packet was sent after start: %+v", c.Packets)
		}
	}
	d.Must("stop", "--all")
	if rules := d.Ruleset(); strings.Contains(rules, "log") || strings.Contains(rules, "hook") {
		t.Errorf("rules are left:\n%s", rules)
	}
}
