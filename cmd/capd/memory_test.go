package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"capd/ctl/wire"
	"capd/testbed"
)

// noPacketOnDisk looks for test packets in everything that capd has written.
func noPacketOnDisk(t *testing.T, d *testbed.Daemon, marks ...string) {
	t.Helper()
	for name, data := range testbed.Tree(t, d.Dir) {
		for _, mark := range marks {
			if bytes.Contains(data, []byte(mark)) {
				t.Errorf("%s holds packets", name)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(d.StateDir(), "spool")); !os.IsNotExist(err) {
		t.Errorf("there is a folder for segments: %v", err)
	}
}

const inMemory = "[spool]\nkind = \"memory\"\n"

// With a spool in memory packets go straight out, and none is ever on the disk.
func TestMemorySpoolDelivers(t *testing.T) {
	for _, to := range destinations(t) {
		t.Run(to.name, func(t *testing.T) {
			d := testbed.StartDaemon(t, "", inMemory+profiles([]destination{to}, ""))
			id := d.Must("start", "-d", to.name, "--segment-size", "64KiB", "-f", writeRequest(t))
			sent := talkTo(t, 500)
			noPacketOnDisk(t, d, "capd delivery")
			d.Must("stop", id)
			c := d.Await(id, "complete", isComplete)
			checkDelivered(t, d, c, to)
			noPacketOnDisk(t, d, "capd delivery")
			var packets []testbed.Packet
			there := found(t, to.root)
			for _, f := range c.Files {
				packets = append(packets, testbed.TsharkPackets(t, there[f.Name], "")...)
			}
			testbed.WantPackets(t, packets, sent, 1)
		})
	}
}

// At the bound packets are lost, which is counted; the capture goes on, and takes packets
// again when there is room.
func TestMemorySpoolIsBounded(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, inMemory+"[limits]\nspool_size = \"40mb\"\nmax_packet_rate = 0\n")
	first := d.Must("start", "--hook", "prerouting")
	flood := func(count int) {
		t.Helper()
		if _, err := testbed.Inject(p.B, testbed.InjectOptions{Interface: "vb", Count: count, Length: 1400, Rate: 30000}); err != nil {
			t.Fatal(err)
		}
	}
	flood(60000)
	if c := d.Show(first); c.Status != wire.StatusRunning {
		t.Errorf("the capture has ended: %s %+v", c.StopReason, c.Error)
	}
	d.Must("stop", first)
	c := d.Show(first)
	checkCounts(t, c)
	if c.Packets.LostBy.Spool == 0 || c.Packets.Captured == 0 || c.Packets.Captured+*c.Packets.Lost < 60000 || c.Bytes.Written > 40e6 || c.Bytes.Written < 20e6 {
		t.Errorf("%d bytes in a spool of 40 MB, packets %+v", c.Bytes.Written, c.Packets)
	}
	for i, path := range files(t, d, first) {
		judgeFile(t, path, c.Files[i].Packets)
	}
	noPacketOnDisk(t, d, "\x2a\x2b\x2c\x2d\x2e\x2f\x30\x31\x32\x33") // byte i of a frame is i
	d.Must("rm", first)
	second := d.Must("start", "--hook", "prerouting")
	flood(5000)
	d.Must("stop", second)
	c = d.Show(second)
	checkCounts(t, c)
	if c.Packets.LostBy.Spool != 0 || c.Packets.Captured < 5000 {
		t.Errorf("with room again: %+v", c.Packets)
	}
}

// What was in memory only is lost with capd, and the record says so.
func TestMemorySpoolEndsWithCapd(t *testing.T) {
	to := destinations(t)[0]
	d := testbed.StartDaemon(t, "", inMemory+profiles([]destination{to}, ""))
	local := d.Must("start", "-f", writeRequest(t))
	running := d.Must("start", "-d", to.name, "-f", writeRequest(t))
	stuck := d.Must("start", "-d", to.name, "--segment-size", "64KiB", "-f", writeRequest(t))
	to.stop()
	talkTo(t, 300)
	d.Must("stop", local, stuck)
	d.Kill()
	d.Start()
	for _, id := range []string{running, stuck} {
		c := d.Show(id)
		if c.Status != wire.StatusFailed || c.Error == nil || c.Error.Code != wire.CodeInterrupted || !strings.Contains(c.Error.Message, "memory") {
			t.Errorf("after a kill: %s %+v", c.Status, c.Error)
		}
		if r := d.Capctl("retry", id); r.Code == 0 || !strings.Contains(r.Stderr, "memory") {
			t.Errorf("retry: %+v", r)
		}
		d.Must("rm", "--force", id)
	}
	c := d.Show(local)
	if c.Removed == nil || c.Removed.Packets != 300 || len(c.Files) != 1 || c.Files[0].Status != wire.FileRemoved || !strings.Contains(c.Files[0].Error, "memory") {
		t.Errorf("a capture that was kept in memory: %+v", c)
	}
	if r := d.Capctl("download", "-o", t.TempDir(), local); r.Code == 0 {
		t.Errorf("download of what is lost: %+v", r)
	}
}
