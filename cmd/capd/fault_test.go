package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"capd/ctl/wire"
	"capd/testbed"
)

// What is promised for each fault stands in docs/reliability.md, beside the name of the
// test that shows it.

// talk sends count datagrams from a pair's A to its B and gives them.
func talk(t *testing.T, p testbed.Pair, count int) []testbed.Message {
	t.Helper()
	sent, err := testbed.SendUDP(testbed.Stream{From: p.A, To: p.B, Source: netip.AddrPortFrom(testbed.A4, 0),
		Destination: netip.AddrPortFrom(testbed.B4, 5000), Count: count})
	if err != nil {
		t.Fatal(err)
	}
	return sent
}

// stopped stops a capture, holds it against the contract and gives it with its packets.
func stopped(t *testing.T, d *testbed.Daemon, id string) (c wire.Capture, packets []testbed.Packet) {
	t.Helper()
	d.Must("stop", id)
	c = d.Show(id)
	checkCounts(t, c)
	for i, path := range files(t, d, id) {
		judgeFile(t, path, c.Files[i].Packets)
		packets = append(packets, testbed.TsharkPackets(t, path, "")...)
	}
	return c, packets
}

// noRules holds a namespace to having no rule of capd's.
func noRules(t *testing.T, ns string) {
	t.Helper()
	if rules := testbed.RunIn(t, ns, "nft", "list ruleset"); strings.Contains(rules, "log prefix") {
		t.Errorf("rules are left:\n%s", rules)
	}
}

// Firewall managers replace their rules as they please: a capture goes on, and theirs
// are as they want them.
func TestFirewallReloads(t *testing.T) {
	testbed.NeedCommand(t, "iptables-nft-restore", "iptables-nft")
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	id := d.Must("start", "udp port 5000")
	sent := talk(t, p, 20)
	rules := filepath.Join(t.TempDir(), "nftables.conf")
	if err := os.WriteFile(rules, []byte("flush ruleset\ntable inet filter { chain input { type filter hook input priority 0; policy accept; tcp dport 22 accept; }; }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	restore := func() {
		cmd := exec.Command("ip", "netns", "exec", p.B, "iptables-nft-restore")
		cmd.Stdin = strings.NewReader("*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n-A INPUT -p tcp --dport 22 -j ACCEPT\nCOMMIT\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("iptables-nft-restore: %v: %s", err, out)
		}
	}
	for _, reload := range []func(){
		func() { testbed.RunIn(t, p.B, "nft", "-f", rules) }, // systemctl reload nftables
		restore,
		func() { testbed.RunIn(t, p.B, "iptables-nft", "-F") },
		func() { testbed.RunIn(t, p.B, "nft", "flush ruleset") },
	} {
		reload()
		sent = append(sent, talk(t, p, 20)...)
	}
	_, packets := stopped(t, d, id)
	testbed.WantPackets(t, packets, sent, 1)
	noRules(t, p.B)
}

// An interface that goes takes nothing with it but its own packets.
func TestInterfaceGoes(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	here := d.Must("start", "-i", "vb", "udp port 5000")
	anywhere := d.Must("start", "udp port 5000")
	sent := talk(t, p, 20)
	testbed.Run(t, "ip", "-n", p.B, "link", "del", "vb")
	testbed.Run(t, "ip", "link", "add", "va", "netns", p.A, "type", "veth", "peer", "name", "vb", "netns", p.B)
	for _, end := range [][3]string{{p.A, "va", "10.9.0.1/24"}, {p.B, "vb", "10.9.0.2/24"}} {
		testbed.Run(t, "ip", "-n", end[0], "addr", "add", end[2], "dev", end[1])
		testbed.Run(t, "ip", "-n", end[0], "link", "set", end[1], "up")
	}
	later := talk(t, p, 20)
	_, packets := stopped(t, d, anywhere)
	testbed.WantPackets(t, packets, append(sent, later...), 1)
	c, packets := stopped(t, d, here)
	checkCounts(t, c)
	testbed.WantPackets(t, packets, append(sent, later...), 1) // it is taken up again when it comes back
	noRules(t, p.B)
}

// An interface that is moved to another namespace is one that goes.
func TestInterfaceMovesAway(t *testing.T) {
	p := testbed.NewPair(t)
	other := testbed.NewNS(t)
	d := testbed.StartDaemon(t, p.B, "")
	id := d.Must("start", "-i", "vb", "udp port 5000")
	sent := talk(t, p, 20)
	testbed.Run(t, "ip", "-n", p.B, "link", "set", "vb", "netns", other)
	testbed.Run(t, "ip", "-n", other, "addr", "add", "10.9.0.2/24", "dev", "vb")
	testbed.Run(t, "ip", "-n", other, "link", "set", "vb", "up")
	talk(t, testbed.Pair{A: p.A, B: other}, 20) // not this capd's any more
	_, packets := stopped(t, d, id)
	testbed.WantPackets(t, packets, sent, 1)
	if len(packets) != len(sent) {
		t.Errorf("%d packets, %d were sent while the interface was here", len(packets), len(sent))
	}
	noRules(t, p.B)
}

// Somebody else fills the disk: the capture ends with what it has, whole, and says why.
func TestDiskIsFilledByOthers(t *testing.T) {
	disk := testbed.NewLoopDisk(t, 1<<30)
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, fmt.Sprintf("[limits]\nspool_size = \"900mb\"\nmin_free_space = \"50mb\"\n[spool]\ndir = %q\n", disk.Dir+"/spool"))
	id := d.Must("start", "--hook", "prerouting", "--segment-size", "5mb")
	inject := func(count int) {
		t.Helper()
		if _, err := testbed.Inject(p.B, testbed.InjectOptions{Interface: "vb", Count: count, Length: 1400}); err != nil {
			t.Fatal(err)
		}
	}
	inject(2000)
	filler, err := os.Create(filepath.Join(disk.Dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer filler.Close()
	if err := unix.Fallocate(int(filler.Fd()), 0, 0, 850<<20); err != nil {
		t.Fatal(err)
	}
	c := d.Await(id, "ended", func(c wire.Capture) bool {
		inject(2000)
		return c.Status != wire.StatusRunning
	})
	checkCounts(t, c)
	if c.StopReason != wire.StopNoSpace || c.Error == nil || !strings.Contains(c.Error.Message, "min_free_space") {
		t.Errorf("%s: %+v", c.StopReason, c.Error)
	}
	for i, path := range files(t, d, id) {
		judgeFile(t, path, c.Files[i].Packets)
	}
	// What the capture had been granted and did not fill is free again: fill that too.
	if more := disk.Free() - 40<<20; more > 0 {
		if err := unix.Fallocate(int(filler.Fd()), 0, 850<<20, more); err != nil {
			t.Fatal(err)
		}
	}
	if r := d.Capctl("start"); r.Code != 6 || !strings.Contains(r.Stderr, "min_free_space") {
		t.Errorf("start on a full disk: exit %d: %s", r.Code, r.Stderr)
	}
	noRules(t, p.B)
	if err := os.Remove(filler.Name()); err != nil {
		t.Fatal(err)
	}
	_ = filler.Close()
	d.Must("stop", d.Must("start")) // there is room again
}

// A disk that dies under a capture ends it; what was captured and cannot be written is
// lost, and counted as that.
func TestDiskDies(t *testing.T) {
	for name, fault := range map[string]func(*testbed.LoopDisk){
		"every write fails":  (*testbed.LoopDisk).Die,
		"it turns read-only": (*testbed.LoopDisk).TurnReadOnly,
	} {
		t.Run(name, func(t *testing.T) { diskDies(t, fault) })
	}
}

func diskDies(t *testing.T, fault func(*testbed.LoopDisk)) {
	disk := testbed.NewLoopDisk(t, 1<<30)
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, fmt.Sprintf("[limits]\nspool_size = \"900mb\"\n[spool]\ndir = %q\n", disk.Dir+"/spool"))
	id := startInjected(t, d)
	f := &flood{t: t, ns: p.B}
	f.inject(onOne(3000, 1400))
	d.Await(id, "capturing", func(c wire.Capture) bool { return c.Packets.Captured == f.count })
	fault(disk)
	c := d.Await(id, "ended", func(c wire.Capture) bool {
		if c.Status == wire.StatusRunning {
			f.inject(onOne(500, 1400))
		}
		return c.Status == wire.StatusFailed || c.Status == wire.StatusComplete
	})
	checkCounts(t, c)
	if *c.Packets.Matched > f.count || c.Packets.LostBy.Write == 0 || c.StopReason != wire.StopError || c.Error == nil {
		t.Errorf("%d injected: %s, %+v, %+v", f.count, c.StopReason, c.Packets, c.Error)
	}
	noRules(t, p.B)
	if r := d.Capctl("start"); r.Code == 0 || !strings.Contains(r.Stderr, "capctl: ") {
		t.Errorf("start on a dead disk: exit %d: %s", r.Code, r.Stderr)
	}
	if r := d.Capctl("list"); r.Code != 0 {
		t.Errorf("list beside a dead disk: exit %d: %s", r.Code, r.Stderr)
	}
}

// capd's folder on a disk that nobody may write to, or none at all: it says so and ends.
func TestStateDirectoryIsReadOnly(t *testing.T) {
	disk := testbed.NewLoopDisk(t, 1<<30)
	testbed.Run(t, "mount", "-o", "remount,ro", disk.Dir)
	bin := testbed.Build(t)
	cmd := exec.Command("ip", "netns", "exec", testbed.NewNS(t), filepath.Join(bin, "capd"), "--config", os.DevNull)
	cmd.Env = append(os.Environ(), "CAPD_SOCKET="+filepath.Join(t.TempDir(), "s"), "CAPD_STATE_DIR="+disk.Dir+"/state")
	out, err := cmd.CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("read-only file system")) || !bytes.Contains(out, []byte(disk.Dir+"/state")) {
		t.Errorf("capd on a read-only disk: %v: %s", err, out)
	}
}

// A state folder that somebody deletes under a running capd costs what was in it and
// nothing else.
func TestStateDirectoryVanishes(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	id := d.Must("start", "udp port 5000")
	talk(t, p, 10)
	if err := os.RemoveAll(d.StateDir()); err != nil {
		t.Fatal(err)
	}
	talk(t, p, 10)
	r := d.Capctl("stop", id)
	if r.Code != 0 && !strings.HasPrefix(r.Stderr, "capctl: ") {
		t.Errorf("stop: exit %d: %s", r.Code, r.Stderr)
	}
	noRules(t, p.B)
	if r := d.Capctl("start"); r.Code != 0 && (!strings.HasPrefix(r.Stderr, "capctl: ") || !strings.Contains(r.Stderr, d.StateDir())) {
		t.Errorf("start: exit %d: %s", r.Code, r.Stderr)
	}
	noPanic(t, d)
	d.Stop()
	d.Start()
	d.Must("stop", d.Must("start"))
}

// Without file descriptors nothing can be started, what runs goes on, and it mends itself.
func TestNoFileDescriptors(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	id := d.Must("start", "udp port 5000")
	sent := talk(t, p, 20)
	var old unix.Rlimit
	if err := unix.Prlimit(d.PID(), unix.RLIMIT_NOFILE, nil, &old); err != nil {
		t.Fatal(err)
	}
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.PID()))
	if err != nil {
		t.Fatal(err)
	}
	// From one for the connection that asks, on to where a start succeeds: whatever call of
	// it finds none left, the answer says so.
	refused := 0
	for more := uint64(1); ; more++ {
		if err := unix.Prlimit(d.PID(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(len(open)) + more, Max: old.Max}, nil); err != nil {
			t.Fatal(err)
		}
		r := d.Capctl("start", "udp port 5001")
		if r.Code == 0 {
			d.Must("stop", strings.TrimSpace(r.Stdout))
			break
		}
		refused++
		if !strings.HasPrefix(r.Stderr, "capctl: ") || !strings.Contains(r.Stderr, "too many open files") || !strings.Contains(r.Stderr, "LimitNOFILE=") {
			t.Errorf("start with %d descriptors: exit %d: %s", more, r.Code, r.Stderr)
		}
		if more == 100 {
			t.Fatal("no start succeeds with 100 descriptors more than before")
		}
	}
	if refused == 0 {
		t.Error("a start needs no descriptor")
	}
	sent = append(sent, talk(t, p, 20)...)
	if err := unix.Prlimit(d.PID(), unix.RLIMIT_NOFILE, &old, nil); err != nil {
		t.Fatal(err)
	}
	_, packets := stopped(t, d, id)
	testbed.WantPackets(t, packets, sent, 1)
	d.Must("stop", d.Must("start"))
	noPanic(t, d)
	noRules(t, p.B)
}

// Under a memory limit of the kernel's (which is first shown to bite) a flood is captured
// or ends with a reason: capd is not killed.
func TestMemoryLimit(t *testing.T) {
	group := newMemoryGroup(t, 192<<20)
	// It bites: who takes more is killed.
	_ = exec.Command("sh", "-c", "echo $$ > "+group.dir+"/cgroup.procs && head -c 400000000 /dev/zero | tail").Run()
	if n := group.kills(); n == 0 {
		testbed.Lacking(t, "a memory limit that bites")
	}
	before := group.kills()

	t.Setenv("TMPDIR", "/var/tmp") // on a disk: the files of a tmpfs count as the group's memory
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "[limits]\nmax_packet_rate = 0\n[ring]\nsize = \"64MiB\"\nreceive_buffer = \"32MiB\"\n")
	if err := os.WriteFile(group.dir+"/cgroup.procs", fmt.Append(nil, d.PID()), 0o600); err != nil {
		t.Fatal(err)
	}
	id := startInjected(t, d)
	f := &flood{t: t, ns: p.B}
	for range 20 {
		f.inject(onOne(20_000, 1400))
	}
	d.Must("stop", id)
	c := d.Show(id)
	checkCounts(t, c)
	if *c.Packets.Matched != f.count || c.Packets.Captured == 0 {
		t.Errorf("%d injected: %+v", f.count, c.Packets)
	}
	if n := group.kills(); n != before {
		t.Errorf("%d processes were killed under the limit", n-before)
	}
	noPanic(t, d)
}

// memoryGroup is a control group with a memory limit, of whichever version is mounted.
type memoryGroup struct {
	t            *testing.T
	dir          string
	file, before string // what counts kills, and what stands before the number there
}

func newMemoryGroup(t *testing.T, limit int) *memoryGroup {
	t.Helper()
	name := "capd-test-" + rand.Text() // not what a killed run may have left
	g, limitFile := &memoryGroup{t, "/sys/fs/cgroup/memory/" + name, "memory.oom_control", "oom_kill "}, "memory.limit_in_bytes"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		g, limitFile = &memoryGroup{t, "/sys/fs/cgroup/" + name, "memory.events", "oom_kill "}, "memory.max"
	}
	testbed.NeedRoot(t)
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		testbed.Lacking(t, fmt.Sprintf("a memory control group: %v", err))
	}
	t.Cleanup(func() {
		deadline := time.Now().Add(time.Minute)
		for os.Remove(g.dir) != nil {
			if time.Now().After(deadline) {
				t.Errorf("%s stays", g.dir)
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	if err := os.WriteFile(filepath.Join(g.dir, limitFile), fmt.Append(nil, limit), 0o600); err != nil {
		testbed.Lacking(t, fmt.Sprintf("a memory limit: %v", err))
	}
	// With swap nobody would be killed, and the limit shown not to bite. Version 1 limits both
	// together; neither file is there where the kernel has no swap.
	for name, value := range map[string]int{"memory.swap.max": 0, "memory.memsw.limit_in_bytes": limit} {
		if err := os.WriteFile(filepath.Join(g.dir, name), fmt.Append(nil, value), 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			t.Fatal(err)
		}
	}
	return g
}

// kills is how often the kernel had to kill in the group.
func (g *memoryGroup) kills() (n int) {
	g.t.Helper()
	text, err := os.ReadFile(filepath.Join(g.dir, g.file))
	if err != nil {
		g.t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), g.before)
	if _, err := fmt.Sscan(after, &n); err != nil {
		g.t.Fatalf("%s: %v: %s", g.file, err, text)
	}
	return n
}

// noPanic holds capd's log to having none.
func noPanic(t *testing.T, d *testbed.Daemon) {
	t.Helper()
	if log := d.Log.String(); strings.Contains(log, "panic") || strings.Contains(log, "goroutine ") {
		t.Errorf("capd panicked:\n%s", log)
	}
}
