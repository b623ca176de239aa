package testbed

import (
	"bufio"
	"bytes"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestTrafficAndJudges sends everything that SendAll knows past tcpdump, and has the
// judges read tcpdump's file: what was sent is there, once, and nothing else.
func TestTrafficAndJudges(t *testing.T) {
	NeedCommand(t, "tcpdump", "tshark", "capinfos")
	p := NewPair(t)
	file := filepath.Join(t.TempDir(), "all.pcap")
	cmd := exec.Command("ip", "netns", "exec", p.B, "tcpdump", "-i", "vb", "-U", "--immediate-mode", "-Z", "root", "-w", file,
		"udp port 5000 or tcp port 5001 or icmp or (icmp6 and ip6[40] >= 128 and ip6[40] <= 129)")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stderr)
	for lines.Scan() && !strings.Contains(lines.Text(), "listening on") {
	}
	const count = 5
	sent, err := SendAll(p, count)
	if err != nil {
		t.Error(err)
	}
	if len(sent) != 10*count {
		t.Errorf("%d messages, want %d", len(sent), 10*count)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) { // the last packets are on their way to tcpdump
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(sent, func(m Message) bool { return !bytes.Contains(data, m.Payload) }) || time.Now().After(deadline) {
			break
		}
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Error(err)
	}
	for lines.Scan() {
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}

	packets := TsharkPackets(t, file, "")
	WantPackets(t, packets, sent, 1)
	info := Capinfos(t, file)
	if info.Packets != len(packets) || info.Type != "pcap" || info.Encapsulation != "ether" || info.Snaplen != "262144" || !info.Ordered {
		t.Errorf("capinfos: %+v, tshark: %d packets", info, len(packets))
	}
	if got := Tcpdump(t, file); len(got) != len(packets) {
		t.Errorf("tcpdump reads %d packets, tshark %d", len(got), len(packets))
	}
	want := netip.AddrPortFrom(B6, 5001)
	if !slices.ContainsFunc(packets, func(p Packet) bool { return p.Destination == want && p.Protocol == "tcp" }) {
		t.Errorf("no packet to %s", want)
	}
}

// TestPayload sees that payloads have their size and differ.
func TestPayload(t *testing.T) {
	for _, size := range []int{0, 5, 30, 1400} {
		if got := len(Payload("udp 10.9.0.2:5000", 3, size)); got != size {
			t.Errorf("size %d gave %d bytes", size, got)
		}
	}
	if string(Payload("x", 1, 64)) == string(Payload("x", 2, 64)) {
		t.Error("messages 1 and 2 are the same")
	}
}
