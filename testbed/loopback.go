package testbed

import (
	"io/fs"
	"net"
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
// it listens meanwhile. Their payloads are Payload's of the stream.
func TalkToLoopback(t testing.TB, port int, stream string, count, size int) {
	t.Helper()
	to := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}
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
	for i := range count {
		if _, err := c.Write(Payload(stream, i, size)); err != nil {
			t.Fatal(err)
		}
	}
}
