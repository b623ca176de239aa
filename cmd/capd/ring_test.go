package main

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"capd/ctl/wire"
	"capd/testbed"
)

// spooled counts the files and bytes that a capture has on the disk.
func spooled(t *testing.T, d *testbed.Daemon, id string) (files int, bytes int64) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(d.StateDir(), "spool", id, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if info, err := os.Stat(path); err == nil {
			files, bytes = files+1, bytes+info.Size()
		}
	}
	return files, bytes
}

// kept gives the files of a capture that were not removed.
func kept(c wire.Capture) (list []wire.File) {
	for _, f := range c.Files {
		if f.Status != wire.FileRemoved {
			list = append(list, f)
		}
	}
	return list
}

// A ring keeps the newest packets, whole and in order, and says what it let go.
func TestRingKeepsTheNewest(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	for _, format := range []string{"pcapng", "pcap"} {
		t.Run(format, func(t *testing.T) {
			const length, size = 3, 128 << 10
			id := d.Must("start", "--ring", "3", "--segment-size", "128KiB", "--hook", "prerouting", "--format", format, "udp port 5000")
			var sent []testbed.Message
			for range 10 {
				m, err := testbed.SendUDP(testbed.Stream{From: p.A, To: p.B, Source: netip.AddrPortFrom(testbed.A4, 0),
					Destination: netip.AddrPortFrom(testbed.B4, 5000), Count: 200, Size: 1000})
				if err != nil {
					t.Fatal(err)
				}
				sent = append(sent, m...)
				d.Await(id, "as long as its ring", func(c wire.Capture) bool { return len(kept(c)) <= length })
			}
			d.Must("stop", id)
			c := d.Show(id)
			checkCounts(t, c)
			if c.Status != wire.StatusComplete || c.StopReason != wire.StopRequested || c.Packets.Captured != uint64(len(sent)) {
				t.Errorf("%s, %s, %d of %d packets", c.Status, c.StopReason, c.Packets.Captured, len(sent))
			}
			if *c.ByteLimit != length*size || c.Removed == nil || c.Removed.Files < 10 {
				t.Errorf("byte_limit %d, removed %+v", *c.ByteLimit, c.Removed)
			}
			left := kept(c)
			if files, bytes := spooled(t, d, id); files != length || bytes > length*size || len(left) != length {
				t.Errorf("%d files of %d bytes on the disk, %d in the list, want %d of at most %d", files, bytes, len(left), length, size)
			}
			var packets []testbed.Packet
			for i, path := range files(t, d, id) {
				judgeFile(t, path, left[i].Packets)
				packets = append(packets, testbed.TsharkPackets(t, path, "")...)
			}
			if len(packets) < 2*size/1200 {
				t.Errorf("the ring holds only %d packets", len(packets))
			}
			testbed.WantPackets(t, packets, sent[len(sent)-len(packets):], 1)
			d.Must("rm", id)
		})
	}
}

// Where the spool is full before the ring is, the oldest goes too, and the capture goes on.
func TestRingInAFullSpool(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "[limits]\nspool_size = \"24mb\"\nmax_packet_rate = 0\n")
	id := d.Must("start", "--ring", "20", "--segment-size", "2mb", "--hook", "prerouting")
	if _, err := testbed.Inject(p.B, testbed.InjectOptions{Interface: "vb", Count: 60000, Length: 1400, Rate: 30000}); err != nil {
		t.Fatal(err)
	}
	if c := d.Show(id); c.Status != wire.StatusRunning {
		t.Errorf("the capture has ended: %s %+v", c.StopReason, c.Error)
	}
	d.Must("stop", id)
	c := d.Show(id)
	checkCounts(t, c)
	if c.Packets.Captured+*c.Packets.Lost < 60000 || c.Packets.LostBy.Spool > 0 || c.Removed == nil {
		t.Errorf("packets %+v, removed %+v", c.Packets, c.Removed)
	}
	if files, bytes := spooled(t, d, id); bytes > 24e6 || files < 5 || files >= 20 {
		t.Errorf("%d files of %d bytes are in a spool of 24 MB", files, bytes)
	}
	for i, path := range files(t, d, id) {
		judgeFile(t, path, kept(c)[i].Packets)
	}
}

// While a destination is away, a ring lets its oldest undelivered segment go; what was
// kept arrives, and the manifest says what did not.
func TestRingOfUndelivered(t *testing.T) {
	for _, to := range destinations(t) {
		t.Run(to.name, func(t *testing.T) {
			d := testbed.StartDaemon(t, "", profiles([]destination{to}, ""))
			id := d.Must("start", "-d", to.name, "--ring", "4", "--segment-size", "128KiB", "-f", writeRequest(t))
			to.stop()
			sent := talkTo(t, 3000)
			d.Await(id, "too long for its ring", func(c wire.Capture) bool {
				return c.Removed != nil && c.Removed.Files >= 5 && len(kept(c)) <= 4
			})
			d.Must("stop", id)
			to.start()
			d.Must("retry", id)
			c := d.Await(id, "complete", isComplete)
			checkCounts(t, c)
			there := found(t, to.root)
			if left := kept(c); len(there) != len(left)+2 || c.Packets.Captured != uint64(len(sent)) {
				t.Errorf("at the destination: %v; in the list: %+v", there, left)
			}
			var packets []testbed.Packet
			for _, f := range kept(c) {
				judgeFile(t, there[f.Name], f.Packets)
				packets = append(packets, testbed.TsharkPackets(t, there[f.Name], "")...)
			}
			// A segment that is being sent is spared, so these need not be the very last.
			arrived := map[string]bool{}
			for _, p := range packets {
				arrived[p.Key()] = true
			}
			if !arrived[sent[len(sent)-1].Key()] || uint64(len(packets))+c.Removed.Packets != uint64(len(sent)) {
				t.Errorf("%d packets arrived and %d were let go of %d", len(packets), c.Removed.Packets, len(sent))
			}
			testbed.WantPackets(t, packets, slices.DeleteFunc(sent, func(m testbed.Message) bool { return !arrived[m.Key()] }), 1)
			text, err := os.ReadFile(there["manifest.json"])
			if err != nil {
				t.Fatal(err)
			}
			var m struct{ Capture wire.Capture }
			if err := json.Unmarshal(text, &m); err != nil || m.Capture.Removed == nil || *m.Capture.Removed != *c.Removed {
				t.Errorf("%v; the manifest says %+v, the record %+v", err, m.Capture.Removed, c.Removed)
			}
		})
	}
}

// What makes no sense of a ring is refused, with the field and the mend.
func TestRingIsRefused(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	for _, c := range []struct{ body, want string }{
		{`{"ring": 10001}`, "10001"},
		{`{"ring": 10000, "segment_size": "100mb"}`, "max_byte_limit"},
		{`{"ring": 4, "segment_size": "10mb", "byte_limit": "20mb"}`, "byte_limit"},
		{`{"ring": 100, "byte_limit": "1mb"}`, "byte_limit"},
	} {
		status, body := d.Call("POST", wire.PathCaptures, c.body)
		if status != 422 || !strings.Contains(body, `"field":"ring"`) || !strings.Contains(body, c.want) {
			t.Errorf("%s: %d %s", c.body, status, body)
		}
	}
	id := d.Must("start", "--ring", "4", "-b", "20mb")
	if c := d.Show(id); *c.SegmentSize != 5e6 || *c.ByteLimit != 20e6 {
		t.Errorf("four segments in 20 MB: segment_size %d", *c.SegmentSize)
	}
}
