//go:build clock

// These tests set the machine's wall clock, for some seconds. They have a build tag, so
// that they never run beside others: contrib/test runs them last, alone.

package main

import (
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"capd/ctl/wire"
	"capd/testbed"
)

// wrong is by how much the clock is set: more than the limits and the retention of the
// captures here.
const wrong = 5 * time.Minute

const clockConfig = "[limits]\nretention = \"2m\"\n"

// sending is what a test sends, and what the wall clock said around it.
type sending struct {
	sent        []testbed.Message
	from, until time.Time
}

func sendNow(t *testing.T, p testbed.Pair, count int) sending {
	t.Helper()
	s := sending{from: time.Now().Round(0)}
	s.sent = talk(t, p, count)
	s.until = time.Now().Round(0)
	return s
}

// wantStamps holds packets to the clock as it was when they were sent.
func wantStamps(t *testing.T, packets []testbed.Packet, sendings ...sending) {
	t.Helper()
	const around = time.Minute // far less than wrong
	for i, s := range sendings {
		within := 0
		for _, p := range packets {
			seconds, err := strconv.ParseFloat(p.Time, 64)
			if err != nil {
				t.Fatal(err)
			}
			at := time.Unix(0, int64(seconds*1e9))
			if at.After(s.from.Add(-around)) && at.Before(s.until.Add(around)) && slices.ContainsFunc(s.sent, func(m testbed.Message) bool { return m.Key() == p.Key() }) {
				within++
			}
		}
		if within != len(s.sent) {
			t.Errorf("part %d: %d of %d packets carry the time at which they were sent", i, within, len(s.sent))
		}
	}
}

// steps gives by how much the clock was set, as a record tells it.
func steps(t *testing.T, c wire.Capture) []time.Duration {
	t.Helper()
	var told []time.Duration
	for _, w := range c.Warnings {
		if w.Code != "clock_set" {
			continue
		}
		_, rest, _ := strings.Cut(w.Message, " set by ")
		by, _, _ := strings.Cut(rest, " ")
		step, err := time.ParseDuration(by)
		if err != nil {
			t.Fatalf("%q: %v", w.Message, err)
		}
		told = append(told, step.Round(time.Second))
	}
	return told
}

// awaitSteps waits until a record tells of so many steps of the clock.
func awaitSteps(t *testing.T, d *testbed.Daemon, id string, count int) {
	t.Helper()
	d.Await(id, "aware of the step", func(c wire.Capture) bool { return len(steps(t, c)) >= count })
}

// wantAge holds capctl list to saying how old a capture is, by the clock as it is.
func wantAge(t *testing.T, d *testbed.Daemon, id, age string) {
	t.Helper()
	for line := range strings.Lines(d.Must("list")) {
		if fields := strings.Fields(line); fields[0] == id[:8] {
			if fields[3] != age {
				t.Errorf("the age should be %s: %q", age, line)
			}
			return
		}
	}
	t.Errorf("capctl list does not show %s", id)
}

func TestClockIsSet(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, clockConfig)
	kept := d.Must("start", "-c", "5", "udp port 5000")
	talk(t, p, 5)
	d.Await(kept, "complete", isComplete)
	id := d.Must("start", "-t", "2m", "--segment-time", "2m", "udp port 5000")
	clock := testbed.NewClock(t)

	parts := []sending{sendNow(t, p, 20)}
	clock.Set(wrong)
	parts = append(parts, sendNow(t, p, 20))
	awaitSteps(t, d, id, 1)
	if c := d.Show(id); c.Status != wire.StatusRunning {
		t.Errorf("a step of the clock ended a capture: %s, %s", c.Status, c.StopReason)
	}
	wantAge(t, d, id, "5m")
	clock.Set(0)
	parts = append(parts, sendNow(t, p, 20))
	awaitSteps(t, d, id, 2)
	clock.Set(-wrong)
	short := d.Must("start", "-t", "1s", "udp port 5001")
	parts = append(parts, sendNow(t, p, 20))
	awaitSteps(t, d, id, 3)
	wantAge(t, d, id, "0s")
	clock.Set(0)
	awaitSteps(t, d, id, 4)
	d.Await(short, "at its time limit", func(c wire.Capture) bool { return c.StopReason == wire.StopTimeLimit })

	c, packets := stopped(t, d, id)
	var sent []testbed.Message
	for _, s := range parts {
		sent = append(sent, s.sent...)
	}
	testbed.WantPackets(t, packets, sent, 1)
	wantStamps(t, packets, parts...)
	if got, want := steps(t, c), []time.Duration{wrong, -wrong, -wrong, wrong}; !slices.Equal(got, want) {
		t.Errorf("the record tells of the steps %v, want %v", got, want)
	}
	if *c.Packets.Lost != 0 || *c.Packets.Limited != 0 || len(c.Files) != 1 {
		t.Errorf("packets %+v in %d files", c.Packets, len(c.Files))
	}
	noRules(t, p.B)

	// A capd that starts while the clock is wrong deletes nothing that it might regret.
	clock.Set(wrong)
	d.Stop()
	d.Start()
	time.Sleep(3 * time.Second)
	for _, id := range []string{kept, id} {
		if c := d.Show(id); c.Status != wire.StatusComplete || len(files(t, d, id)) != 1 {
			t.Errorf("with the clock ahead of the retention %s is %s", id, c.Status)
		}
	}
}

// TestMachineSleeps comes close to a virtual machine that is suspended: capd stands still
// for longer than its dead-man switch, and the clock is ahead when it goes on.
func TestMachineSleeps(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, clockConfig)
	id := d.Must("start", "-t", "2m", "udp port 5000")
	clock := testbed.NewClock(t)
	before := sendNow(t, p, 20)
	d.Await(id, "captured", func(c wire.Capture) bool { return c.Packets.Captured == 20 })
	d.Signal(syscall.SIGSTOP)
	awaitStopped(t, d.PID())
	clock.Set(wrong)
	for deadline := time.Now().Add(time.Minute); strings.Contains(testbed.RunIn(t, p.B, "nft", "list", "set", "inet", "capd", "alive"), "elements"); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the dead-man switch does not trip")
		}
	}
	asleep := talk(t, p, 20)
	d.Signal(syscall.SIGCONT)
	awaitSteps(t, d, id, 1)
	after := sendNow(t, p, 20)
	c, packets := stopped(t, d, id)
	testbed.WantPackets(t, packets, append(before.sent, after.sent...), 1)
	wantStamps(t, packets, before, after)
	if *c.Packets.Limited != uint64(len(asleep)) || *c.Packets.Lost != 0 {
		t.Errorf("held back %d, lost %d of %d that came meanwhile", *c.Packets.Limited, *c.Packets.Lost, len(asleep))
	}
	noRules(t, p.B)
}
