package ring

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"capd/testbed"
)

const floodRule = `table inet t {
	chain capture { udp dport 9 G0; }
	chain arriving { type filter hook prerouting priority -450; jump capture; udp dport 9 drop; }
}`

// flood injects frames into the namespace's vb.
func flood(t *testing.T, ns string, n, length int) {
	t.Helper()
	sent, err := testbed.Inject(ns, testbed.InjectOptions{Interface: "vb", Count: n, Length: length})
	if err != nil || sent.Frames != n {
		t.Fatalf("injected %d of %d frames: %v", sent.Frames, n, err)
	}
}

// TestKernelLoss overruns a small receive buffer while nobody reads, and accounts for
// every packet: by gaps, and at the tail by the rule's counter.
func TestKernelLoss(t *testing.T) {
	p := testbed.NewPair(t)
	r := openIn(t, p.B, Config{Stamped: 1, ReceiveBuffer: 400_000})
	nft(t, p.B, r, floodRule)
	const n = 100_000
	var received, dropped uint64
	read := func() {
		for _, g := range collect(t, r, LinkRaw, silence) {
			received++
			dropped += g.Dropped
		}
	}
	flood(t, p.B, n, 60)
	read()
	if received == 0 || received > n/2 {
		t.Fatalf("%d of %d packets fit into the receive buffer", received, n)
	}
	flood(t, p.B, 10, 60) // shows the gap at the tail
	read()
	if got := matched(t, p.B); received+dropped != got || got != n+10 {
		t.Errorf("received %d + gaps %d = %d, the counter says %d, injected were %d", received, dropped, received+dropped, got, n+10)
	}
	checkAccount(t, r, 0, n+9)
	if s := r.Stats().Groups[0]; s.Gaps != dropped || s.Received != received || s.Malformed != 0 {
		t.Errorf("account %+v", s)
	}

	// At the tail.
	flood(t, p.B, n, 60)
	testbed.RunIn(t, p.B, "nft", "flush", "chain", "inet", "t", "arriving")
	r.SetDeadline(time.Time{})
	r.Drain()
	for _, g := range collect(t, r, LinkRaw, 0) {
		received++
		dropped += g.Dropped
	}
	counter := matched(t, p.B)
	s := r.Stats().Groups[0]
	tail := counter - s.Received - s.Gaps - s.Malformed
	if counter != 2*n+10 || s.Received != received || s.Gaps != dropped || tail == 0 || tail > n {
		t.Errorf("counter %d, received %d, gaps %d, so lost at the tail %d", counter, s.Received, s.Gaps, tail)
	}
}

// TestKernelDrain stops in the middle of traffic, over and over: nothing may be missing.
func TestKernelDrain(t *testing.T) {
	p := testbed.NewPair(t)
	stop := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if _, err := testbed.Inject(p.B, testbed.InjectOptions{Interface: "vb", Count: 20_000, Rate: 100_000, Flows: 10}); err != nil {
				done <- err
				return
			}
		}
	}()
	for round := range 10 {
		r := openIn(t, p.B, Config{Stamped: 2, ReceiveBuffer: 128 << 20})
		nft(t, p.B, r, `table inet t {
			chain capture { udp dport 9 udp sport 4000-4004 G0; udp dport 9 udp sport 4005-4009 G1; }
			chain arriving { type filter hook prerouting priority -450; jump capture; udp dport 9 drop; }
		}`)
		var p2 Packet
		packets, last, unordered := uint64(0), int64(0), 0
		take := func() {
			packets++
			if p2.Time < last {
				unordered++
			}
			last = p2.Time
		}
		r.SetDeadline(time.Now().Add(time.Duration(30+round*7) * time.Millisecond))
		for {
			err := next(r, &p2)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				if packets > 0 {
					break
				}
				r.SetDeadline(time.Now().Add(10 * time.Millisecond)) // the sender has not begun
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			take()
		}
		testbed.RunIn(t, p.B, "nft", "flush chain inet t arriving; add rule inet t arriving udp dport 9 drop")
		_, _, _ = unix.Syscall(unix.SYS_MEMBARRIER, 1, 0, 0) // no packet is in the old rules any more
		r.SetDeadline(time.Time{})
		r.Drain()
		for {
			err := next(r, &p2)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			take()
		}
		counter, sum := matched(t, p.B), uint64(0)
		for _, s := range r.Stats().Groups {
			sum += s.Received + s.Gaps + s.Malformed
		}
		if counter != packets || sum != counter || counter == 0 {
			t.Errorf("round %d: the counters say %d, %d packets came, the account adds up to %d", round, counter, packets, sum)
		}
		if unordered != 0 && r.Stats().Hurried == 0 {
			t.Errorf("round %d: %d packets out of order", round, unordered)
		}
		testbed.RunIn(t, p.B, "nft", "delete", "table", "inet", "t")
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestKernelForeign has another rule use the same group.
func TestKernelForeign(t *testing.T) {
	p := testbed.NewPair(t)
	r := openIn(t, p.B, Config{Stamped: 1})
	nft(t, p.B, r, fmt.Sprintf(`table inet t { chain arriving { type filter hook prerouting priority -450
		meta l4proto udp G0
		meta l4proto udp log prefix "somebody else" group %d
	}
	}`, r.Groups()[0].Number))
	if _, err := testbed.SendUDP(testbed.Stream{From: p.A, To: p.B, Destination: netip.AddrPortFrom(testbed.B4, 5000), Count: 50}); err != nil {
		t.Fatal(err)
	}
	if got := collect(t, r, LinkRaw, silence); len(got) != 50 {
		t.Errorf("%d packets", len(got))
	}
	if s := r.Stats().Groups[0]; s.Received != 50 || s.Foreign != 50 || s.Gaps != 0 {
		t.Errorf("account %+v", s)
	}
	checkAccount(t, r, 0, 99)
}

// TestKernelBatches sees that batches grow with a flood, and that without one a Clocked
// packet comes at once.
func TestKernelBatches(t *testing.T) {
	p := testbed.NewPair(t)
	r := openIn(t, p.B, Config{Stamped: 1, ReceiveBuffer: 128 << 20}) // for the whole flood, should the reader not get its turn
	nft(t, p.B, r, floodRule)
	done := make(chan error, 1)
	go func() {
		_, err := testbed.Inject(p.B, testbed.InjectOptions{Interface: "vb", Count: 300_000})
		done <- err
	}()
	var q Packet
	for range 300_000 {
		r.SetDeadline(time.Now().Add(time.Minute))
		if err := next(r, &q); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	s := r.Stats()
	g := s.Groups[0]
	// Full ones are of some 60,000 bytes; an injector that has to wait for its turn leaves
	// others to the flush timer.
	if g.Bytes/g.Datagrams < 10_000 || g.Gaps != 0 {
		t.Errorf("%d datagrams of %d bytes on average, %d gaps", g.Datagrams, g.Bytes/g.Datagrams, g.Gaps)
	}
	// The last one is not known to be over.
	counted, atMost := uint64(0), uint64(0)
	for i, n := range g.Batches {
		counted, atMost = counted+n, atMost+n<<i
	}
	if counted > g.Datagrams || counted+1 < g.Datagrams || atMost < g.Received || atMost/2 >= g.Received || g.Batches[BatchSizes-1] != 0 {
		t.Errorf("%d packets in %d datagrams, by their size %v", g.Received, g.Datagrams, g.Batches)
	}

	c := openIn(t, p.B, Config{Clocked: 1})
	nft(t, p.B, c, `table inet u { chain leaving { type filter hook output priority -450; udp dport 7 G0; }; }`)
	if _, err := testbed.SendUDP(testbed.Stream{From: p.B, To: p.A, Destination: netip.AddrPortFrom(testbed.A4, 7), Count: 30, Interval: 2 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	if got := collect(t, c, LinkRaw, silence); len(got) != 30 {
		t.Errorf("%d packets", len(got))
	}
	if g := c.Stats().Groups[0]; g.Datagrams != 30 || g.Batches != [BatchSizes]uint64{30} {
		t.Errorf("30 packets came in %d datagrams, %v", g.Datagrams, g.Batches)
	}
}

// TestKernelIdle counts how often a Reader without traffic wakes up, and wakes it.
func TestKernelIdle(t *testing.T) {
	ns := testbed.NewNS(t)
	r := openIn(t, ns, Config{Stamped: 2, Clocked: 2})
	woken := make(chan struct{})
	go func() {
		time.Sleep(300 * time.Millisecond)
		r.Wake()
		close(woken)
	}()
	var p Packet
	if err := next(r, &p); !errors.Is(err, ErrWoken) {
		t.Errorf("got %v", err)
	}
	<-woken
	if s := r.Stats(); s.Waits > 3 || s.Rounds > 6 {
		t.Errorf("%d waits and %d rounds while nothing happened", s.Waits, s.Rounds)
	}
	r.SetDeadline(time.Now().Add(-time.Second))
	if err := next(r, &p); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	r.SetDeadline(time.Time{})
	r.Drain()
	if err := next(r, &p); !errors.Is(err, io.EOF) {
		t.Errorf("got %v", err)
	}
}

// TestKernelGroups has many Readers take groups of their own, and give them back.
func TestKernelGroups(t *testing.T) {
	ns := testbed.NewNS(t)
	seen := map[uint16]bool{}
	var readers []*Reader
	for range 8 {
		r := openIn(t, ns, Config{Stamped: 2, Clocked: 2, Memory: 1, ReceiveBuffer: 1 << 20})
		readers = append(readers, r)
		for _, g := range r.Groups() {
			if seen[g.Number] || g.Number < firstNumber {
				t.Errorf("group %d is given twice or too low", g.Number)
			}
			seen[g.Number] = true
		}
	}
	bound := func() int {
		return strings.Count(testbed.RunIn(t, ns, "cat", "/proc/net/netfilter/nfnetlink_log"), "\n")
	}
	if n := bound(); n != 32 {
		t.Errorf("%d groups are bound, want 32", n)
	}
	for _, r := range readers {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if n := bound(); n != 0 {
		t.Errorf("%d groups are bound after Close", n)
	}
}

// dropCapabilities takes all rights from the calling thread.
func dropCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	return unix.Capset(&header, &none[0])
}

// TestKernelRights opens without rights, and goes on after giving them up.
func TestKernelRights(t *testing.T) {
	p := testbed.NewPair(t)
	err := testbed.Do(p.B, func() error {
		if err := dropCapabilities(); err != nil {
			return err
		}
		r, err := Open(Config{Stamped: 1})
		if err == nil {
			return errors.Join(errors.New("opened"), r.Close())
		}
		return err
	})
	if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "BIND") {
		t.Errorf("without rights: %v", err)
	}

	r := openIn(t, p.B, Config{Stamped: 1, Clocked: 1})
	nft(t, p.B, r, floodRule)
	const n = 50_000
	packets := 0
	testbed.In(t, p.B, func() error {
		if err := dropCapabilities(); err != nil {
			return err
		}
		done := make(chan error, 1)
		go func() {
			_, err := testbed.Inject(p.B, testbed.InjectOptions{Interface: "vb", Count: n, Rate: 100_000})
			done <- err
		}()
		var q Packet
		for ; packets < n; packets++ {
			r.SetDeadline(time.Now().Add(time.Minute))
			if err := next(r, &q); err != nil {
				return fmt.Errorf("after %d packets: %w", packets, err)
			}
		}
		if err := <-done; err != nil {
			return err
		}
		r.SetDeadline(time.Time{})
		r.Drain()
		for {
			err := next(r, &q)
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			packets++
		}
	})
	if got := matched(t, p.B); got != n || packets != n {
		t.Errorf("%d packets, the counter says %d, injected were %d", packets, got, n)
	}
}
