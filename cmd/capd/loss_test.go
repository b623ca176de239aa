package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"capd/ctl/wire"
	"capd/testbed"
)

// A receive buffer that holds a fraction of what comes while capd is stopped. What is
// lost before a packet that arrives is told by the sequence numbers, and stands on that
// packet; what is lost last only the rule's counter knows.
func TestLossWhileStopped(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, overloaded)
	check := func(t *testing.T, id string, f *flood, short bool) wire.LostBy {
		t.Helper()
		d.Must("stop", id)
		c := shown(t, d, id)
		a := checkLoss(t, c, files(t, d, id), f.count)
		if *c.Packets.Lost == 0 || c.Packets.Captured == 0 {
			t.Errorf("nothing was lost, or all: %+v", c.Packets)
		}
		if *c.Packets.Limited == 0 {
			if last := checkPlaces(t, f, a); f.count-last != c.Packets.LostBy.Tail {
				t.Errorf("the last packet in the files is number %d of %d, lost at the tail: %d", last, f.count, c.Packets.LostBy.Tail)
			}
		} else if short {
			t.Errorf("limited %d: the dead-man switch must hold for a stop of two seconds", *c.Packets.Limited)
		}
		d.Must("rm", id)
		return c.Packets.LostBy
	}
	t.Run("packets come after it", func(t *testing.T) {
		f := &flood{t: t, ns: p.B}
		id := startInjected(t, d)
		f.inject(onOne(5000, 60))
		short := frozen(t, d, func() {
			for range 20 {
				f.inject(onOne(10_000, 60))
			}
		})
		d.Await(id, "read", func(c wire.Capture) bool {
			f.inject(onOne(1, 60))
			return *c.Packets.Lost > 0 // by a packet after the loss
		})
		f.inject(onOne(500, 60))
		if by := check(t, id, f, short); by.Sequence == 0 || by.Tail != 0 {
			t.Errorf("lost by %+v, want all by sequence", by)
		}
	})
	t.Run("nothing comes after it", func(t *testing.T) {
		f := &flood{t: t, ns: p.B}
		id := startInjected(t, d)
		f.inject(onOne(5000, 60))
		short := frozen(t, d, func() {
			f.inject(onOne(100_000, 60))
			// The room that is left in the receive buffer is too small for a full batch. Batches
			// of one packet may fit, but not forty: those after the last that fits are the tail.
			for range 40 {
				time.Sleep(15 * time.Millisecond)
				f.inject(onOne(1, 3000))
			}
			time.Sleep(200 * time.Millisecond) // the kernel holds a batch for 10 ms and some
		})
		if by := check(t, id, f, short); short && by.Tail == 0 {
			t.Errorf("lost by %+v, want some at the tail", by)
		}
	})
	t.Run("in the midst of it", func(t *testing.T) {
		f := &flood{t: t, ns: p.B}
		id := startInjected(t, d)
		var flooding sync.WaitGroup
		enough := make(chan struct{})
		flooding.Go(func() {
			for {
				select {
				case <-enough:
					return
				default:
					f.inject(onOne(5000, 60))
				}
			}
		})
		d.Await(id, "flooded", func(c wire.Capture) bool { return c.Packets.Captured > 1000 })
		short := frozen(t, d, func() {})
		before := shown(t, d, id).Packets.Captured
		d.Await(id, "going on", func(c wire.Capture) bool { return *c.Packets.Lost > 0 && c.Packets.Captured > before+5000 })
		close(enough)
		flooding.Wait()
		check(t, id, f, short)
	})
}

// The disk takes nothing for a while: the write blocks fill, then the ring, then the
// receive buffer, and then packets are lost and counted. A frozen file system is what a
// disk that hangs looks like from above.
func TestLossWhileTheDiskStalls(t *testing.T) {
	disk := testbed.NewLoopDisk(t, 1<<30)
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, strings.ReplaceAll(overloaded, "30gb", "900mb")+fmt.Sprintf("[spool]\ndir = %q\n", disk.Dir+"/spool"))
	t.Cleanup(disk.Thaw) // before capd is stopped
	f := &flood{t: t, ns: p.B}
	id := startInjected(t, d)
	f.inject(onOne(2000, 1400))
	disk.Freeze()
	d.Await(id, "lossy", func(c wire.Capture) bool {
		f.inject(onOne(10_000, 1400))
		return *c.Packets.Lost > 0 || *c.Packets.Matched > c.Packets.Captured+100_000
	})
	while := shown(t, d, id)
	disk.Thaw()
	d.Await(id, "going on", func(c wire.Capture) bool {
		f.inject(onOne(100, 1400))
		return c.Packets.Captured > while.Packets.Captured && *c.Packets.Lost > 0
	})
	d.Must("stop", id)
	c := shown(t, d, id)
	a := checkLoss(t, c, files(t, d, id), f.count)
	if last := checkPlaces(t, f, a); f.count-last != c.Packets.LostBy.Tail {
		t.Errorf("the last packet in the files is number %d of %d, lost at the tail: %d", last, f.count, c.Packets.LostBy.Tail)
	}
	if c.Packets.LostBy.Sequence == 0 || c.Error != nil || c.StopReason != wire.StopRequested {
		t.Errorf("%s, %+v, %+v", c.StopReason, c.Error, c.Packets)
	}
}

// TestLossBesideAForeignRule: a rule of somebody else that logs to a capture's groups takes
// of their numbers, so that gaps in them are not all the capture's loss.
func TestLossBesideAForeignRule(t *testing.T) {
	p := testbed.NewPair(t)
	testbed.NeedCommand(t, "nft")
	d := testbed.StartDaemon(t, p.B, overloaded)
	f := &flood{t: t, ns: p.B}
	id := startInjected(t, d)
	groups := map[string]bool{}
	for _, m := range regexp.MustCompile(`log prefix "capd:[0-9a-f]+" group (\d+)`).FindAllStringSubmatch(testbed.RunIn(t, p.B, "nft", "list", "ruleset"), -1) {
		groups[m[1]] = true
	}
	if len(groups) == 0 {
		t.Fatal("the capture has no log rule")
	}
	testbed.RunIn(t, p.B, "nft", "add", "table", "inet", "foreign")
	testbed.RunIn(t, p.B, "nft", "add", "chain", "inet", "foreign", "in", "{ type filter hook prerouting priority 0; }")
	for g := range groups {
		testbed.RunIn(t, p.B, "nft", "add", "rule", "inet", "foreign", "in", "ip", "saddr", "10.9.0.1", "log", "prefix", "foreign", "group", g)
	}
	f.inject(onOne(5000, 60))
	frozen(t, d, func() {
		for range 20 {
			f.inject(onOne(10_000, 60))
		}
	})
	d.Await(id, "read", func(c wire.Capture) bool {
		f.inject(onOne(1, 60))
		return *c.Packets.Lost > 0
	})
	d.Must("stop", id)
	c := shown(t, d, id)
	checkCounts(t, c)
	inFiles := uint64(0)
	for _, path := range files(t, d, id) {
		inFiles += uint64(testbed.Capinfos(t, path).Packets)
	}
	if missing := f.count - *c.Packets.Limited - inFiles; *c.Packets.Seen != f.count || c.Packets.Captured != inFiles || *c.Packets.Lost != missing || missing == 0 {
		t.Errorf("of %d frames injected capinfos finds %d, so that %d are missing; the capture says %+v", f.count, inFiles, missing, c.Packets)
	}
	if len(c.Warnings) != 1 || c.Warnings[0].Code != "foreign_packets" {
		t.Errorf("warnings %+v, want foreign_packets", c.Warnings)
	}
}

// More than the box can take: every CPU injects whole packets at full speed, and capd has
// to wait for its turn, because it is the least important process.
func TestLossAtFullSpeed(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, overloaded)
	f := &flood{t: t, ns: p.B}
	id := startInjected(t, d)
	niceness(t, d.PID(), 19)
	for round := 0; *shown(t, d, id).Packets.Lost == 0; round++ {
		if round == 10 {
			t.Fatalf("%d frames at full speed from %d CPUs, and nothing was lost", f.count, runtime.NumCPU())
		}
		var injecting sync.WaitGroup
		for cpu := range runtime.NumCPU() {
			injecting.Go(func() { f.inject(testbed.InjectOptions{Count: 150_000, Length: 1400, Pin: true, CPU: cpu}) })
		}
		injecting.Wait()
	}
	niceness(t, d.PID(), 0)
	d.Must("stop", id)
	c := shown(t, d, id)
	checkLoss(t, c, files(t, d, id), f.count)
}

// The loss of a delivered capture stands in its manifest.
func TestLossIsDelivered(t *testing.T) {
	sshd := testbed.NewSSHD(t)
	p := testbed.NewPair(t)
	testbed.NewRelay(t, p.B, netip.MustParseAddrPort(sshd.Address), sshd.Address)
	d := testbed.StartDaemon(t, p.B, overloaded+fmt.Sprintf("[destination.soc]\ntype = \"sftp\"\naddress = %q\nuser = %q\nprivate_key = %q\nknown_hosts = %q\npath = \"{file}\"\n",
		sshd.Address, sshd.User, sshd.PrivateKey, sshd.KnownHosts))
	f := &flood{t: t, ns: p.B}
	id := startInjected(t, d, "-d", "soc", "--segment-size", "1mb")
	f.inject(onOne(5000, 60))
	frozen(t, d, func() { f.inject(onOne(100_000, 60)) })
	f.inject(onOne(5000, 60))
	d.Must("stop", id)
	d.Await(id, "complete", isComplete)
	c := shown(t, d, id)
	there := found(t, sshd.Root)
	var paths []string
	for _, file := range c.Files {
		paths = append(paths, there[file.Name])
	}
	if checkLoss(t, c, paths, f.count); *c.Packets.Lost == 0 || len(paths) < 3 {
		t.Errorf("%d files, %+v", len(paths), c.Packets)
	}
	text, err := os.ReadFile(there["manifest.json"])
	if err != nil {
		t.Fatal(err)
	}
	var manifest struct{ Capture wire.Capture }
	if err := json.Unmarshal(text, &manifest); err != nil {
		t.Fatal(err)
	}
	got, _ := json.Marshal(manifest.Capture.Packets)
	want, _ := json.Marshal(c.Packets)
	if string(got) != string(want) {
		t.Errorf("the manifest tells of %s, show of %s", got, want)
	}
}
