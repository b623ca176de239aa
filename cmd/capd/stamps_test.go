package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"capd/ring/pcapng"
	"capd/testbed"
)

// Timestamps against AF_PACKET's of the same packets. Numbers in the packets tell them
// apart.

// ticker is a sender of numbered UDP datagrams.
type ticker struct {
	from       string // namespace
	source, to netip.Addr
	count      int
	burst      int // datagrams at once
	every      time.Duration
}

const tickPort = 6000

func (s ticker) send() error {
	var c *net.UDPConn
	err := testbed.Do(s.from, func() (err error) {
		c, err = net.ListenUDP("udp", &net.UDPAddr{IP: s.source.AsSlice()})
		return err
	})
	if err != nil {
		return err
	}
	defer c.Close()
	began := time.Now()
	b := make([]byte, 100)
	for i := range s.count {
		binary.BigEndian.PutUint64(b, uint64(i))
		if _, err := c.WriteToUDPAddrPort(b, netip.AddrPortFrom(s.to, tickPort)); err != nil {
			return err
		}
		if (i+1)%s.burst == 0 {
			time.Sleep(time.Until(began.Add(time.Duration((i+1)/s.burst) * s.every)))
		}
	}
	return nil
}

// stamped is what a file, or a listener, says of numbered packets: nanoseconds since the
// epoch, by number.
type stamped map[uint64]int64

// hookStamps reads the numbered packets of a capture's files, by hook.
func hookStamps(t *testing.T, paths []string) (byHook map[string]stamped, comments map[string]string) {
	t.Helper()
	byHook, comments = map[string]stamped{}, map[string]string{}
	for _, path := range paths {
		readFile(t, path, func(i pcapng.Interface, p pcapng.Packet) {
			if byHook[i.Description] == nil {
				byHook[i.Description] = stamped{}
			}
			comments[i.Description] = i.Comment
			const payload = 20 + 20 + 8 // SLL2, IPv4 and UDP headers
			byHook[i.Description][binary.BigEndian.Uint64(p.Body[payload:])] = p.Time
		}, nil)
	}
	return byHook, comments
}

// listener is an AF_PACKET socket: it has the kernel's stamps of what passes a device, and
// its own clock right after each read, which tells how late this machine lets a process
// be that does nothing but wait for packets.
type listener struct {
	fd     int
	kernel stamped
	read   stamped
	done   sync.WaitGroup
	err    error
}

func listen(t *testing.T, ns, device string) *listener {
	t.Helper()
	l := &listener{kernel: stamped{}, read: stamped{}}
	testbed.In(t, ns, func() error {
		dev, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		all := int(uint16(unix.ETH_P_ALL)<<8 | unix.ETH_P_ALL>>8)
		if l.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		if err := unix.Bind(l.fd, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: dev.Index}); err != nil {
			return err
		}
		_ = unix.SetsockoptInt(l.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
		_ = unix.SetsockoptTimeval(l.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1})
		return unix.SetsockoptInt(l.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
	})
	l.done.Go(func() {
		defer unix.Close(l.fd)
		b, oob := make([]byte, 2048), make([]byte, 256)
		for {
			n, m, _, _, err := unix.Recvmsg(l.fd, b, oob, 0)
			now := time.Now().UnixNano()
			if errors.Is(err, unix.EAGAIN) {
				return // a second of silence
			}
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				l.err = err
				return
			}
			const headers = 20 + 8
			if n < headers+8 || b[9] != unix.IPPROTO_UDP || binary.BigEndian.Uint16(b[22:]) != tickPort {
				continue
			}
			messages, err := unix.ParseSocketControlMessage(oob[:m])
			if err != nil || len(messages) == 0 || messages[0].Header.Type != unix.SO_TIMESTAMPNS {
				l.err = fmt.Errorf("a packet without a stamp: %v", err)
				return
			}
			stamp := messages[0].Data
			number := binary.BigEndian.Uint64(b[headers:])
			l.kernel[number] = int64(binary.NativeEndian.Uint64(stamp))*1e9 + int64(binary.NativeEndian.Uint64(stamp[8:]))
			l.read[number] = now
		}
	})
	return l
}

// wait returns when nothing has come for a second.
func (l *listener) wait(t *testing.T) {
	t.Helper()
	if l.done.Wait(); l.err != nil {
		t.Fatal(l.err)
	}
}

// late tells how much later than the truth each packet's stamp is, in order of lateness.
// Every packet that was sent must be in both.
func late(t *testing.T, got, truth stamped, count int) []time.Duration {
	t.Helper()
	out := make([]time.Duration, 0, count)
	for i := range uint64(count) {
		g, ok := got[i]
		w, there := truth[i]
		if !ok || !there {
			t.Fatalf("packet %d of %d: in the file %v, seen by the listener %v", i, count, ok, there)
		}
		out = append(out, time.Duration(g-w))
	}
	slices.Sort(out)
	return out
}

func median(sorted []time.Duration) time.Duration { return sorted[len(sorted)/2] }
func worst(sorted []time.Duration) time.Duration  { return sorted[len(sorted)-1] }

// request is written for a capture of what a ticker sends.
func tickRequest(t *testing.T, hooks string) string {
	t.Helper()
	path := t.TempDir() + "/request.json"
	text := fmt.Sprintf(`{"filter_v1": {"destination_port": %d, "protocol": "udp"}, "hooks": [%s]}`, tickPort, hooks)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// At the hooks of arrival the file has the kernel's own receive stamp: the same that
// AF_PACKET gives, cut to the microseconds that NFLOG carries.
func TestReceiveStampsAreTheKernels(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	id := d.Must("start", "-f", tickRequest(t, `"prerouting", "input"`))
	l := listen(t, p.B, "vb")
	const count = 1000
	if err := (ticker{p.A, testbed.A4, testbed.B4, count, 10, 10 * time.Millisecond}).send(); err != nil {
		t.Fatal(err)
	}
	l.wait(t)
	d.Must("stop", id)
	byHook, comments := hookStamps(t, files(t, d, id))
	for _, hook := range []string{"prerouting", "input"} {
		diffs := late(t, byHook[hook], l.kernel, count)
		if diffs[0] <= -time.Microsecond || worst(diffs) > 0 {
			t.Errorf("%s: stamps differ from AF_PACKET's by %s to %s, want less than a microsecond, never later", hook, diffs[0], worst(diffs))
		}
		if !strings.Contains(comments[hook], "kernel") {
			t.Errorf("%s: the file says %q", hook, comments[hook])
		}
	}
}

// Where a box forwards, one packet has one receive stamp, with nobody but capd listening:
// nothing else turns the kernel's stamping on then.
func TestForwardedPacketsHaveOneStamp(t *testing.T) {
	testbed.NeedRoot(t)
	a, router, b := testbed.NewNS(t), testbed.NewNS(t), testbed.NewNS(t)
	for _, link := range []struct{ ns, dev, peer, addr, gateway, route string }{
		{a, "va", "ra", "10.9.1.2/24", "10.9.1.1", "10.9.2.0/24"}, {b, "vb", "rb", "10.9.2.2/24", "10.9.2.1", "10.9.1.0/24"},
	} {
		testbed.Run(t, "ip", "link", "add", link.dev, "netns", link.ns, "type", "veth", "peer", "name", link.peer, "netns", router)
		testbed.Run(t, "ip", "-n", link.ns, "addr", "add", link.addr, "dev", link.dev)
		testbed.Run(t, "ip", "-n", link.ns, "link", "set", link.dev, "up")
		testbed.Run(t, "ip", "-n", router, "addr", "add", link.gateway+"/24", "dev", link.peer)
		testbed.Run(t, "ip", "-n", router, "link", "set", link.peer, "up")
		testbed.Run(t, "ip", "-n", link.ns, "route", "add", link.route, "via", link.gateway)
	}
	testbed.RunIn(t, router, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
	d := testbed.StartDaemon(t, router, "")
	id := d.Must("start", "-f", tickRequest(t, `"prerouting", "forward", "postrouting"`))
	const count = 1000
	if err := (ticker{a, netip.MustParseAddr("10.9.1.2"), netip.MustParseAddr("10.9.2.2"), count, 10, 10 * time.Millisecond}).send(); err != nil {
		t.Fatal(err)
	}
	d.Must("stop", id)
	byHook, _ := hookStamps(t, files(t, d, id))
	diffs := late(t, byHook["forward"], byHook["prerouting"], count)
	if diffs[0] != 0 || worst(diffs) != 0 {
		t.Errorf("the stamp at forward is %s to %s after that at prerouting of the same packet", diffs[0], worst(diffs))
	}
	out := late(t, byHook["postrouting"], byHook["prerouting"], count)
	t.Logf("postrouting (the reader's clock) is later by %s, median %s, at most %s", out[0], median(out), worst(out))
	if out[0] < -time.Microsecond {
		t.Errorf("a packet left %s before it came", -out[0])
	}
	stamps := map[int64]bool{}
	for _, ns := range byHook["prerouting"] {
		stamps[ns] = true
	}
	if len(stamps) < count/2 {
		t.Errorf("%d packets have %d stamps", count, len(stamps))
	}
}

// At output there is only capd's clock when it reads the packet: never early, and late by
// 1 ms at most below 1,000 packets/s and 10 ms above, as the file says, on a machine that
// lets capd run when it has something to do. How well this one does that is measured with
// a process that only waits for the same packets; what it is late by is granted to capd
// twice over. That is held on the median; the worst packet, which is late as long as a busy
// machine lets capd wait for its turn, is told and not judged.
func TestOutputStampsAreWithinTheirBound(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	for _, c := range []struct {
		name  string
		s     ticker
		bound time.Duration
	}{
		{"a few", ticker{p.B, testbed.B4, testbed.A4, 100, 1, 20 * time.Millisecond}, time.Millisecond},
		{"500 a second", ticker{p.B, testbed.B4, testbed.A4, 1000, 1, 2 * time.Millisecond}, time.Millisecond},
		{"5,000 a second", ticker{p.B, testbed.B4, testbed.A4, 10_000, 1, 200 * time.Microsecond}, 10 * time.Millisecond},
		{"20,000 a second in bursts", ticker{p.B, testbed.B4, testbed.A4, 40_000, 20, time.Millisecond}, 10 * time.Millisecond},
		{"60,000 a second in bursts", ticker{p.B, testbed.B4, testbed.A4, 120_000, 60, time.Millisecond}, 10 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			id := d.Must("start", "-f", tickRequest(t, `"output"`))
			l := listen(t, p.B, "vb")
			if err := c.s.send(); err != nil {
				t.Fatal(err)
			}
			l.wait(t)
			d.Must("stop", id)
			byHook, comments := hookStamps(t, files(t, d, id))
			// The hook comes before the device, so that a little less than nothing is right.
			got, machine := late(t, byHook["output"], l.kernel, c.s.count), late(t, l.read, l.kernel, c.s.count)
			beyond, _ := slices.BinarySearch(got, c.bound)
			t.Logf("late by %s to %s, median %s, %d of %d by more than %s; a process that only waits: median %s, at most %s",
				got[0], worst(got), median(got), len(got)-beyond, len(got), c.bound, median(machine), worst(machine))
			if got[0] < -time.Duration(math.Max(float64(time.Millisecond), float64(worst(machine)))) {
				t.Errorf("a stamp is early by %s", -got[0])
			}
			if allowed := c.bound + 2*median(machine); median(got) > allowed {
				t.Errorf("the median packet is late by %s, more than %s", median(got), allowed)
			}
			if !strings.Contains(comments["output"], "1 ms") || !strings.Contains(comments["output"], "10 ms") {
				t.Errorf("the file states the bound as %q", comments["output"])
			}
		})
	}
}
