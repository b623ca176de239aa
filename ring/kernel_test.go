package ring

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"capd/ring/pcapng"
	"capd/testbed"
)

// openIn opens a Reader in a namespace; it is closed when the test ends.
func openIn(t *testing.T, ns string, c Config) *Reader {
	t.Helper()
	if c.Prefix == "" {
		c.Prefix = testPrefix
	}
	if c.Memory == 0 {
		c.Memory = 16 << 20
	}
	if c.ReceiveBuffer == 0 {
		c.ReceiveBuffer = 32 << 20
	}
	var r *Reader
	testbed.In(t, ns, func() (err error) {
		r, err = Open(c)
		return err
	})
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// nft loads rules in a namespace. In the text, G0, G1, … stand for
// `counter log prefix … group …` of the Reader's groups.
func nft(t *testing.T, ns string, r *Reader, text string) {
	t.Helper()
	testbed.NeedCommand(t, "nft")
	for i, g := range slices.Backward(r.Groups()) {
		log := fmt.Sprintf("counter log prefix %q group %d queue-threshold 65535 snaplen 65535", testPrefix, g.Number)
		text = strings.ReplaceAll(text, fmt.Sprintf("G%d", i), log)
	}
	cmd := exec.Command("ip", "netns", "exec", ns, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s\n%s", err, out, text)
	}
}

// matched is what the counters of all log rules in a namespace say together.
func matched(t *testing.T, ns string) (packets uint64) {
	t.Helper()
	for _, m := range regexp.MustCompile(`counter packets (\d+)[^\n]*log prefix`).FindAllStringSubmatch(testbed.RunIn(t, ns, "nft", "list", "ruleset"), -1) {
		n, err := strconv.ParseUint(m[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		packets += n
	}
	return packets
}

// kept is a packet with memory of its own.
type kept struct {
	Packet
	frame    []byte
	original uint32
}

// silence is how long nothing comes when all has come: the kernel's batches wait for tens of
// milliseconds at most, and the rest is for a machine that is busy with other things.
const silence = time.Second

// collect reads packets until io.EOF, or, with a patience, until none came for that long.
func collect(t *testing.T, r *Reader, link LinkType, patience time.Duration) (out []kept) {
	t.Helper()
	var p Packet
	var scratch [MaxHead]byte
	for {
		if patience > 0 {
			r.SetDeadline(time.Now().Add(patience))
		}
		err := next(r, &p)
		if errors.Is(err, io.EOF) || patience > 0 && errors.Is(err, os.ErrDeadlineExceeded) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		k := kept{Packet: p}
		head, body, original, ok := p.Frame(link, &scratch)
		if !ok {
			t.Fatalf("no frame of link type %d: %+v", link, p)
		}
		k.frame, k.original = append(bytes.Clone(head), body...), original
		k.Payload, k.HWAddr, k.HWHeader, k.L2Header = bytes.Clone(p.Payload), bytes.Clone(p.HWAddr), bytes.Clone(p.HWHeader), bytes.Clone(p.L2Header)
		out = append(out, k)
	}
}

// startTcpdump captures in a namespace; the function it gives waits until tcpdump has
// written as many packets as wanted (it can be slow), ends it and reads its file.
// Immediate mode gives each packet a slot of the snaplen: the buffer must hold enough of them for a busy machine.
func startTcpdump(t *testing.T, ns, device, link string, args ...string) func(want int) []pcapng.Packet {
	t.Helper()
	testbed.NeedCommand(t, "tcpdump")
	path := filepath.Join(t.TempDir(), "judge.pcap")
	cmd := exec.Command("ip", append([]string{"netns", "exec", ns, "tcpdump", "-Z", "root", "-i", device, "-y", link, "-s", "70000", "-B", "131072",
		"--immediate-mode", "-U", "--time-stamp-precision=nano", "-w", path}, args...)...)
	stderr := new(testbed.Buffer)
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	for start := time.Now(); !strings.Contains(stderr.String(), "listening on"); time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > time.Minute {
			t.Fatalf("tcpdump does not start: %s", stderr)
		}
	}
	return func(want int) []pcapng.Packet {
		t.Helper()
		for start := time.Now(); len(readPcap(t, path)) < want && time.Since(start) < time.Minute; {
			time.Sleep(50 * time.Millisecond)
		}
		time.Sleep(50 * time.Millisecond) // more than wanted would be wrong too
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatalf("tcpdump: %v: %s", err, stderr)
		}
		return readPcap(t, path)
	}
}

// readPcap reads what of a classic pcap file is there.
func readPcap(t *testing.T, path string) (out []pcapng.Packet) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	in, err := pcapng.NewClassicReader(f)
	for err == nil {
		var p pcapng.Packet
		if p, err = in.Next(); err == nil {
			p.Body = bytes.Clone(p.Body)
			out = append(out, p)
		}
	}
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatal(err)
	}
	return out
}

// deviceIndex is an interface's index in a namespace.
func deviceIndex(t *testing.T, ns, name string) (index uint32) {
	t.Helper()
	testbed.In(t, ns, func() error {
		dev, err := net.InterfaceByName(name)
		if err == nil {
			index = uint32(dev.Index)
		}
		return err
	})
	return index
}

// TestKernelContents compares packets of UDP, TCP and ICMP, of both families, with what
// tcpdump sees on the same device: what arrives byte for byte with its SLL2 header and its
// timestamp, what leaves byte for byte.
func TestKernelContents(t *testing.T) {
	p := testbed.NewPair(t)
	r := openIn(t, p.B, Config{Stamped: 2, Clocked: 1})
	groups := r.Groups()
	if len(groups) != 3 || groups[0].Class != Stamped || groups[0].CPU != 0 || groups[1].CPU != 1 || groups[2].Class != Clocked || groups[2].CPU != -1 {
		t.Fatalf("groups %+v", groups)
	}
	nft(t, p.B, r, `table inet t {
		chain arriving {
			type filter hook prerouting priority -450
			meta l4proto { tcp, udp, icmp } meta cpu 0 G0
			meta l4proto { tcp, udp, icmp } meta cpu != 0 G1
			icmpv6 type { echo-request, echo-reply } G0
		}
		chain leaving {
			type filter hook output priority -450
			meta l4proto { tcp, udp, icmp } meta mark set 77 G2
			icmpv6 type { echo-request, echo-reply } G2
		}
	}`)
	judge := startTcpdump(t, p.B, "any", "LINUX_SLL2", "tcp or udp or icmp or (icmp6 and (ip6[40] == 128 or ip6[40] == 129))")
	before := time.Now().UnixNano()
	sent, err := testbed.SendAll(p, 20)
	if err != nil {
		t.Fatal(err)
	}
	got := collect(t, r, LinkSLL2, silence)
	after := time.Now().UnixNano()
	want := judge(len(got))
	if len(got) != len(want) || len(got) < len(sent) {
		t.Fatalf("%d packets, tcpdump has %d, %d payloads were sent", len(got), len(want), len(sent))
	}
	vb := deviceIndex(t, p.B, "vb")
	arrived, left := map[string]int64{}, map[string]int{} // frame → time; no two are alike
	for _, w := range want {
		if w.Body[10] == outgoing {
			left[string(w.Body[sll2Header:])]++
		} else {
			arrived[string(w.Body)] = w.Time
		}
	}
	last := int64(0)
	for i, g := range got {
		if g.Time < last {
			t.Errorf("packet %d is %v older than the one before", i, time.Duration(last-g.Time))
		}
		last = g.Time
		if g.Time < before-1000 || g.Time > after {
			t.Errorf("packet %d: time %d is not between %d and %d", i, g.Time, before, after)
		}
		if g.Dropped != 0 || g.Cut || int(g.original) != len(g.frame) {
			t.Errorf("packet %d: %d of %d bytes, %d lost before", i, len(g.frame), g.original, g.Dropped)
		}
		switch g.Hook {
		case HookPrerouting:
			// The same stamp, in microseconds. TCP segments from a local sender still carry the
			// sender's stamp, which is of another clock: both readers then take the time at which
			// they see the packet.
			theirs, ok := arrived[string(g.frame)]
			if same := g.Time/1000 == theirs/1000; !ok || !same && (g.frame[sll2Header+9] != 6 && g.frame[sll2Header+6] != 6 || g.Time < theirs-1000) {
				t.Errorf("packet %d is not what tcpdump saw: %d, %d, %x", i, g.Time, theirs, g.frame)
			}
			delete(arrived, string(g.frame))
			if !g.KernelTime || g.In != vb || g.Out != 0 || g.Group > 1 || g.Direction() != Inbound || g.HasUID {
				t.Errorf("packet %d: %+v", i, g.Packet)
			}
		case HookOutput:
			if left[string(g.Payload)]--; left[string(g.Payload)] < 0 {
				t.Errorf("packet %d is not what tcpdump saw: %x", i, g.Payload)
			}
			if g.KernelTime || g.Out != vb || g.In != 0 || g.Group != 2 || g.Direction() != Outbound || g.HWHeader != nil || g.HWAddr != nil {
				t.Errorf("packet %d: %+v", i, g.Packet)
			}
			if g.HasUID && g.UID != uint32(os.Getuid()) {
				t.Errorf("packet %d: owner %d", i, g.UID)
			}
		default:
			t.Errorf("packet %d: hook %d", i, g.Hook)
		}
		if (g.Family == FamilyIPv6) != (g.Protocol == etherIPv6) || g.Payload[0]>>4 == 6 != (g.Family == FamilyIPv6) {
			t.Errorf("packet %d: family %d, ethertype %#x", i, g.Family, g.Protocol)
		}
	}
	for _, s := range r.Stats().Groups {
		if s.Lost() != 0 || s.Foreign != 0 || s.Garbage != 0 {
			t.Errorf("account %+v", s)
		}
	}
}

// TestKernelNetdev compares whole Ethernet frames at ingress and egress with tcpdump's.
func TestKernelNetdev(t *testing.T) {
	p := testbed.NewPair(t)
	r := openIn(t, p.B, Config{Stamped: 1})
	nft(t, p.B, r, `table netdev t {
		chain arriving { type filter hook ingress device "vb" priority 0; G0; }
		chain leaving { type filter hook egress device "vb" priority 0; G0; }
	}`)
	judge := startTcpdump(t, p.B, "vb", "EN10MB")
	if _, err := testbed.SendAll(p, 5); err != nil { // with ARP and neighbour discovery
		t.Fatal(err)
	}
	for _, end := range []struct{ ns, device string }{{p.A, "va"}, {p.B, "vb"}} { // tags from a socket, at ingress and egress
		for _, tags := range []string{"81000064", "88a8006481000005"} {
			frame := unhex(t, "02000000000102000000000a"+tags+"0800"+"4500001c00010000401100000a0900010a090002"+"0007000700080000"+"00000000000000000000")
			sendFrame(t, end.ns, end.device, frame)
		}
	}
	got := slices.DeleteFunc(collect(t, r, LinkEthernet, silence), func(k kept) bool { return unasked(k.frame) })
	packets := slices.DeleteFunc(judge(len(got)), func(p pcapng.Packet) bool { return unasked(p.Body) })
	want := map[string]int{}
	for _, w := range packets {
		want[string(w.Body)]++
	}
	if len(got) != len(packets) {
		t.Errorf("%d packets, tcpdump has %d", len(got), len(packets))
	}
	vb := deviceIndex(t, p.B, "vb")
	ways := map[Direction]int{}
	for i, g := range got {
		if want[string(g.frame)]--; want[string(g.frame)] < 0 {
			t.Errorf("packet %d is not what tcpdump saw: %x", i, g.frame)
		}
		if g.Interface() != vb || !g.KernelTime {
			t.Errorf("packet %d: %+v", i, g.Packet)
		}
		ways[g.Direction()]++
	}
	if ways[Inbound] == 0 || ways[Outbound] == 0 || ways[DirectionUnknown] != 0 {
		t.Errorf("directions %v", ways)
	}
}

// sendFrame sends a frame through a packet socket.
func sendFrame(t *testing.T, ns, device string, frame []byte) {
	t.Helper()
	to := unix.SockaddrLinklayer{Ifindex: int(deviceIndex(t, ns, device)), Protocol: binary.NativeEndian.Uint16(frame[12:])}
	testbed.In(t, ns, func() error {
		socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(socket) }()
		return unix.Sendto(socket, frame, 0, &to)
	})
}

// unasked tells frames that a host sends when it likes: multicast listener reports (they
// have a hop-by-hop header), router solicitations, and whether anybody has its new
// link-local address (neighbour solicitations from no address).
func unasked(frame []byte) bool {
	if be.Uint16(frame[12:]) != etherIPv6 {
		return false
	}
	return frame[20] == 0 || frame[20] == 58 && (frame[54] == 133 || frame[54] == 135 && [16]byte(frame[22:38]) == [16]byte{})
}

// TestKernelSnaplen sees cut packets and their true lengths.
func TestKernelSnaplen(t *testing.T) {
	p := testbed.NewPair(t)
	r := openIn(t, p.B, Config{Stamped: 1, CopyRange: 60})
	nft(t, p.B, r, `table inet t { chain arriving { type filter hook prerouting priority -450; meta l4proto udp G0; }; }`)
	for _, to := range []netip.Addr{testbed.B4, testbed.B6} {
		s := testbed.Stream{From: p.A, To: p.B, Destination: netip.AddrPortFrom(to, 5000), Count: 3, Size: 900}
		if _, err := testbed.SendUDP(s); err != nil {
			t.Fatal(err)
		}
		s.Size = 10
		if _, err := testbed.SendUDP(s); err != nil {
			t.Fatal(err)
		}
	}
	got := collect(t, r, LinkRaw, silence)
	if len(got) != 12 {
		t.Fatalf("%d packets", len(got))
	}
	for i, g := range got {
		length := []int{928, 38, 948, 58}[i/3]
		if len(g.frame) != min(60, length) || int(g.original) != length || g.Cut != (length >= 60) {
			t.Errorf("packet %d: %d of %d bytes, cut %v; want %d", i, len(g.frame), g.original, g.Cut, length)
		}
	}
}

// TestKernelGSO takes a TCP stream in segments of up to 64 KiB, as the kernel carries
// them, and puts it together again.
func TestKernelGSO(t *testing.T) {
	p := testbed.NewPair(t)
	r := openIn(t, p.B, Config{Stamped: 1})
	nft(t, p.B, r, `table inet t { chain arriving { type filter hook prerouting priority -450; tcp dport 5001 G0; }; }`)
	data := make([]byte, 8<<20)
	for i := range data {
		data[i] = byte(i * i >> 7)
	}
	var l net.Listener
	testbed.In(t, p.B, func() (err error) {
		l, err = net.Listen("tcp", "10.9.0.2:5001")
		return err
	})
	defer func() { _ = l.Close() }()
	sunk := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = io.Copy(io.Discard, c)
			_ = c.Close()
		}
		sunk <- err
	}()
	testbed.In(t, p.A, func() error {
		c, err := net.Dial("tcp", "10.9.0.2:5001")
		if err != nil {
			return err
		}
		if _, err := c.Write(data); err != nil {
			return err
		}
		return c.Close()
	})
	if err := <-sunk; err != nil {
		t.Fatal(err)
	}
	stream := make([]byte, len(data))
	longest, first := 0, uint32(0)
	for i, g := range collect(t, r, LinkRaw, silence) {
		longest = max(longest, len(g.frame))
		if g.Dropped != 0 || int(g.original) != len(g.frame) || g.Cut {
			t.Fatalf("segment %d: %d of %d bytes, %d lost before", i, len(g.frame), g.original, g.Dropped)
		}
		tcp := g.frame[20:]
		at := be.Uint32(tcp[4:])
		if tcp[13]&2 != 0 { // SYN
			first = at + 1
			continue
		}
		copy(stream[min(int(at-first), len(stream)):], tcp[tcp[12]>>4*4:])
	}
	if sha256.Sum256(stream) != sha256.Sum256(data) {
		t.Error("the stream is not what was sent")
	}
	if longest < 60_000 {
		t.Errorf("the longest packet has %d bytes: no GSO packets were seen", longest)
	}
}
