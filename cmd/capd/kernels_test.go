package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"capd/ctl/wire"
	"capd/testbed"
)

// These tests run a capd that takes its kernel for a poorer one (docs/kernels.md): what it
// does then is real, the kernel is not.

// findings gives what capctl doctor finds, which has to end with the exit code.
func findings(t *testing.T, d *testbed.Daemon, exit int) wire.Doctor {
	t.Helper()
	r := d.Capctl("doctor", "--json")
	var report wire.Doctor
	if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil || r.Code != exit {
		t.Fatalf("capctl doctor: exit %d, not %d, %v: %s%s", r.Code, exit, err, r.Stdout, r.Stderr)
	}
	return report
}

func warned(c wire.Capture, code string) bool {
	return slices.ContainsFunc(c.Warnings, func(w wire.Warning) bool { return w.Code == code })
}

// Without tables that have an owner, a firewall reload costs a second of a capture and a
// warning, a killed capd's rules go at its next start, and rules that cannot be put back
// end a capture with whole files.
func TestKernelWithoutOwner(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemonWith(t, testbed.DaemonOptions{NS: p.B, Lacking: "owner"})
	report := findings(t, d, 0)
	if level(report, "kernel.owner") != wire.LevelWarning {
		t.Errorf("doctor says nothing of it: %+v", report)
	}
	if _, status := d.Call("GET", wire.PathStatus, ""); !strings.Contains(status, `"owner":false`) {
		t.Errorf("status says nothing of it: %s", status)
	}
	bin := testbed.BuildLacking(t, "owner")
	cmd := exec.Command("ip", "netns", "exec", p.B, filepath.Join(bin, "capd"), "--config", os.DevNull)
	cmd.Env = append(os.Environ(), "CAPD_SOCKET="+filepath.Join(t.TempDir(), "s"), "CAPD_STATE_DIR="+t.TempDir()+"/state")
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "is another capd running") {
		t.Errorf("a second capd: %v: %s", err, out)
	}

	// A firewall reload.
	ids := []string{d.Must("start", "udp port 5000"), d.Must("start", "-i", "vb", "udp port 5000")}
	sent := talk(t, p, 20)
	testbed.RunIn(t, p.B, "nft", "flush ruleset")
	for _, id := range ids {
		d.Await(id, "warned", func(c wire.Capture) bool { return warned(c, "rules_restored") })
	}
	sent = append(sent, talk(t, p, 20)...)
	for _, id := range ids {
		c, packets := stopped(t, d, id)
		testbed.WantPackets(t, packets, sent, 1)
		if c.StopReason != wire.StopRequested || c.Error != nil || c.Packets.Captured != uint64(len(sent)) {
			t.Errorf("%s: %+v, %+v", c.StopReason, c.Error, c.Packets)
		}
	}
	noRules(t, p.B)

	// A crash.
	id := d.Must("start", "udp port 5000")
	talk(t, p, 20)
	d.Kill()
	if left := testbed.RunIn(t, p.B, "nft", "list ruleset"); !strings.Contains(left, "log prefix") {
		t.Fatalf("the kernel has removed the rules of a killed capd:\n%s", left)
	}
	d.Start()
	noRules(t, p.B)
	if c := d.Show(id); c.StopReason != wire.StopInterrupted {
		t.Errorf("the capture of a killed capd: %s", c.StopReason)
	}

	// Somebody else's table in the place of capd's.
	id = d.Must("start", "udp port 5000")
	sent = talk(t, p, 20)
	d.Await(id, "capturing", func(c wire.Capture) bool { return c.Packets.Captured == uint64(len(sent)) })
	testbed.RunIn(t, p.B, "nft", "flush ruleset; add table inet capd; add chain inet capd theirs")
	d.Await(id, "ended", func(c wire.Capture) bool { return c.Status != wire.StatusRunning })
	c, packets := stopped(t, d, id)
	testbed.WantPackets(t, packets, sent, 1)
	if c.StopReason != wire.StopError || c.Error == nil || !strings.Contains(c.Error.Message, "somebody else has removed capd's rules") {
		t.Errorf("%s: %+v", c.StopReason, c.Error)
	}
	if r := d.Capctl("start"); r.Code == 0 || !strings.Contains(r.Stderr, "inet capd") {
		t.Errorf("start beside somebody else's table: exit %d: %s", r.Code, r.Stderr)
	}
	d.Stop()
	if got := testbed.RunIn(t, p.B, "nft", "list ruleset"); got != "table inet capd {\n\tchain theirs {\n\t}\n}\n" {
		t.Errorf("their table was touched:\n%s", got)
	}
	noPanic(t, d)
}

// What a kernel cannot do is refused where it is asked for, with the feature, its module
// and the mend, and costs nothing else.
func TestKernelLacks(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemonWith(t, testbed.DaemonOptions{NS: p.B, Lacking: "egress,sample,flow,rate,ipsec,vrf,timeout"})
	refused := func(feature, mend string, args ...string) {
		t.Helper()
		r := d.Capctl(append([]string{"start"}, args...)...)
		if r.Code != 1 || !strings.Contains(r.Stderr, feature) || !strings.Contains(r.Stderr, "hint: ") || !strings.Contains(r.Stderr, mend) {
			t.Errorf("start %q: exit %d: %s", args, r.Code, r.Stderr)
		}
	}
	refused("lacks rate", "max_packet_rate = 0", "udp port 5000")
	d.Configure("[limits]\nmax_packet_rate = 0\n")
	d.Stop()
	d.Start()
	refused("lacks egress", "--hook input,forward,output", "-i", "vb", "udp port 5000")
	refused("lacks sample", "--sample-by flow", "--sample", "10", "udp port 5000")
	refused("lacks flow", "--sample-by packet", "--sample", "10", "--sample-by", "flow", "udp port 5000")
	noRules(t, p.B)

	// What the mends say.
	ids := []string{d.Must("start", "udp port 5000"), d.Must("start", "-i", "vb", "--hook", "ingress", "udp port 5000"),
		d.Must("start", "-i", "vb", "--hook", "input,forward,output", "udp port 5000")}
	sent := talk(t, p, 20)
	for i, id := range ids {
		c, packets := stopped(t, d, id)
		testbed.WantPackets(t, packets, sent, 1)
		if !warned(c, "no_dead_man_switch") || warned(c, "seen_twice") != (i == 0) {
			t.Errorf("capture %d is warned of %+v", i, c.Warnings)
		}
	}
	report := findings(t, d, 0)
	for _, f := range []string{"egress", "sample", "flow", "rate", "ipsec", "vrf", "timeout"} {
		if level(report, "kernel."+f) != wire.LevelWarning {
			t.Errorf("doctor says nothing of %s: %+v", f, report)
		}
	}
	d.Kill()
	noRules(t, p.B) // they had an owner
}

// A capd whose rules nothing would end is none.
func TestKernelWithNeither(t *testing.T) {
	bin := testbed.BuildLacking(t, "owner,timeout")
	cmd := exec.Command("ip", "netns", "exec", testbed.NewNS(t), filepath.Join(bin, "capd"), "--config", os.DevNull)
	cmd.Env = append(os.Environ(), "CAPD_SOCKET="+filepath.Join(t.TempDir(), "s"), "CAPD_STATE_DIR="+t.TempDir()+"/state")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "timeout") || !strings.Contains(string(out), "there is no capture") {
		t.Errorf("capd: %v: %s", err, out)
	}
}
