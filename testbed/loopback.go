package testbed

import (
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
)

// FilesBelow maps the base names of the files below a folder to their paths.
func FilesBelow(t testing.TB, root string) map[string]string {
	t.Helper()
	names := map[string]string{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			names[e.Name()] = path
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TalkToLoopback sends count datagrams of size bytes to a UDP port of 127.0.0.1, at which
// it listens meanwhile, and gives them. Their payloads are Payload's of the stream.
func TalkToLoopback(t testing.TB, port int, stream string, count, size int) []Message {
	t.Helper()
	payloads := make([][]byte, count)
	for i := range payloads {
		payloads[i] = Payload(stream, i, size)
	}
	return SendToLoopback(t, port, payloads)
}

// SendToLoopback is TalkToLoopback with other payloads.
func SendToLoopback(t testing.TB, port int, payloads [][]byte) (sent []Message) {
	t.Helper()
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port)))
	l, err := net.ListenUDP("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.DialUDP("udp", nil, to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, p := range payloads {
		if _, err := c.Write(p); err != nil {
			t.Fatal(err)
		}
		sent = append(sent, Message{Protocol: "udp", Source: c.LocalAddr().(*net.UDPAddr).AddrPort(), Destination: to.AddrPort(), Payload: p})
	}
	return sent
}
