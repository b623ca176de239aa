package ctl

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"capd/ctl/remote"
	"capd/ctl/wire"
	"capd/testbed"
)

// fleet is some boxes: each a capd in a namespace of its own, reached through an sshd of
// its own.
type fleet struct {
	t     *testing.T
	boxes []*testbed.Daemon
	dir   string
	ssh   []*testbed.SSHD
}

// newFleet starts edge-1, edge-2, …, and a configuration for ssh and capctl that knows
// them, and edge-down, where nothing listens.
func newFleet(t *testing.T, n int) *fleet {
	t.Helper()
	testbed.NeedRoot(t)
	testbed.NeedCommand(t, "ssh")
	f := &fleet{t: t, dir: t.TempDir()}
	bin := testbed.Build(t)
	var config, hosts strings.Builder
	hosts.WriteString("# the boxes of this test\nedge:")
	for i := range n {
		name := fmt.Sprintf("edge-%d", i+1)
		d := testbed.StartDaemon(t, testbed.NewNS(t), "[daemon]\nhost = \""+name+"\"\n")
		s := testbed.NewSSHD(t, "ForceCommand none", fmt.Sprintf("SetEnv PATH=%s:/usr/bin:/bin CAPD_SOCKET=%s", bin, d.Socket))
		host, port, err := net.SplitHostPort(s.Address)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&config, "Host %s\nHostName %s\nPort %s\nUser %s\nIdentityFile %s\nUserKnownHostsFile %s\nIdentitiesOnly yes\n",
			name, host, port, s.User, s.PrivateKey, s.KnownHosts)
		fmt.Fprintf(&hosts, " %s", name)
		f.boxes, f.ssh = append(f.boxes, d), append(f.ssh, s)
	}
	config.WriteString("Host edge-down\nHostName 127.0.0.1\nPort 9\n")
	hosts.WriteString("\nall-of-them: @edge edge-down\n")
	put(t, filepath.Join(f.dir, "ssh_config"), []byte(config.String()))
	put(t, filepath.Join(f.dir, "hosts"), []byte(hosts.String()))
	return f
}

// command is a capctl on the user's machine.
func (f *fleet) command(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(testbed.Build(f.t), "capctl"), args...)
	cmd.Env = append(os.Environ(), f.environment()...)
	return cmd
}

func (f *fleet) environment() []string {
	return []string{"CAPCTL_SSH=ssh -F " + filepath.Join(f.dir, "ssh_config"), "CAPCTL_HOSTS=" + filepath.Join(f.dir, "hosts"),
		"CAPD_SOCKET=/nowhere", "SSH_CONNECTION="}
}

func (f *fleet) capctl(exit int, args ...string) (stdout, stderr string) {
	f.t.Helper()
	cmd := f.command(args...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run()
	if got := cmd.ProcessState.ExitCode(); got != exit {
		f.t.Fatalf("capctl %s: exit code %d, not %d\n%s%s", strings.Join(args, " "), got, exit, &out, &errs)
	}
	return out.String(), errs.String()
}

// completes repeats a completion until it gives what is wanted: it leaves out boxes that do
// not answer in time, and a machine with much to do has slow ones.
func (f *fleet) completes(want, not string, args ...string) {
	f.t.Helper()
	var out string
	for range 40 {
		if out, _ = f.capctl(0, args...); strings.Contains(out, want) && (not == "" || !strings.Contains(out, not)) {
			return
		}
	}
	f.t.Errorf("%v: %q, not %q without %q", args, out, want, not)
}

func TestFleet(t *testing.T) {
	f := newFleet(t, 3)
	ping := func() {
		for _, d := range f.boxes {
			testbed.RunIn(t, d.NS, "ping", "-q", "-c", "3", "-i", "0.1", "127.0.0.1")
		}
	}
	request := filepath.Join(f.dir, "request.json")
	put(t, request, []byte(`{"filter_v1": {"protocol": 1}}`))

	// One box: as on this machine, and the SSH connection is left out.
	one, stderr := f.capctl(0, "-H", "edge-2", "start", "-n", "lone", "-f", request)
	if !strings.Contains(stderr, "your SSH connection (127.0.0.1:") {
		t.Errorf("%s", stderr)
	}
	if c := f.boxes[1].Show("lone"); c.ID != strings.TrimSpace(one) || len(c.Exclude) != 1 || c.Exclude[0].DestinationPort == 0 || len(c.Labels) != 0 {
		t.Errorf("%s: %+v", one, c)
	}
	f.capctl(0, "-H", "edge-2", "stop", "lone")
	if _, stderr := f.capctl(5, "-H", "edge-1", "show", "lone"); !strings.HasPrefix(stderr, "capctl: no capture has") {
		t.Errorf("%s", stderr)
	}

	// Several: one name and one label, each told.
	name, stderr := f.capctl(0, "-H", "@edge", "start", "-f", request)
	name = strings.TrimSpace(name)
	for i, d := range f.boxes {
		c := d.Show(name)
		if c.Labels["fleet"] != name || c.Status != wire.StatusRunning || c.Exclude[0].DestinationPort == 0 {
			t.Errorf("%+v", c)
		}
		if want := fmt.Sprintf("edge-%d: %s\n", i+1, c.ID); !strings.Contains(stderr, want) {
			t.Errorf("no %q in %s", want, stderr)
		}
	}
	ping()
	out, _ := f.capctl(0, "-H", "edge-1", "-H", "edge-2", "-H", "edge-3", "list")
	rows := strings.Split(strings.TrimSpace(out), "\n")
	if len(rows) != 5 || !strings.HasPrefix(rows[0], "HOST    ID") || !strings.HasPrefix(rows[1], "edge-1  ") || strings.Count(out, name) != 3 {
		t.Errorf("%s", out)
	}

	// One is away: told, not hidden, and the others go on.
	out, stderr = f.capctl(3, "-H", "@all-of-them", "stop", name)
	if strings.Count(out, "matched 6 = captured 6") != 3 || !strings.HasPrefix(out, "edge-1: ") || strings.Count(out, "\n") != 3 {
		t.Errorf("%s", out)
	}
	if !strings.Contains(stderr, "capctl: edge-down: capd cannot be reached: ssh: ") || !strings.Contains(stderr, "hint: does this work: ssh edge-down true") || !strings.Contains(stderr, "1 of 4 hosts failed") {
		t.Errorf("%s", stderr)
	}
	out, stderr = f.capctl(3, "-H", "@edge", "-H", "edge-down", "--json", "show", name)
	var results []hostResult
	if err := json.Unmarshal([]byte(out), &results); err != nil || len(results) != 4 || stderr != "" {
		t.Fatalf("%v: %s%s", err, out, stderr)
	}
	for i, r := range results[:3] {
		var c wire.Capture
		if err := json.Unmarshal(r.Result, &c); err != nil || c.Host != fmt.Sprintf("edge-%d", i+1) || r.Host != c.Host || r.ExitCode != 0 || r.Error != nil {
			t.Errorf("%v: %+v", err, r)
		}
	}
	if r := results[3]; r.ExitCode != 3 || r.Error == nil || r.Error.Code != "unreachable" || r.Error.Hint == "" || r.Result != nil {
		t.Errorf("%+v", r)
	}

	// What is collected is merged, each interface under its host.
	collected := filepath.Join(f.dir, "collected")
	out, _ = f.capctl(0, "-H", "@edge", "download", name, "-o", collected)
	for _, want := range []string{"edge-1/0001.pcapng", "edge-3/0001.pcapng"} {
		if !strings.Contains(out, filepath.Join(collected, want)) {
			t.Errorf("no %s: %s", want, out)
		}
	}
	all := filepath.Join(f.dir, "all.pcapng")
	f.capctl(0, "merge", "-o", all, collected)
	names := map[string]int{}
	for _, p := range testbed.TsharkPackets(t, all, "") {
		names[p.Interface]++
	}
	if names["edge-1/lo"] != 6 || names["edge-2/lo"] != 6 || names["edge-3/lo"] != 6 || !testbed.Capinfos(t, all).Ordered {
		t.Errorf("%v", names)
	}

	// No manifest is beside them: the files tell of their clocks, and with -H the boxes do.
	if text := testbed.Run(t, "capinfos", all); strings.Count(text, "synchronized") < 6 || strings.Contains(text, "clock offset ") ||
		!strings.Contains(text, "of edge-2: capd capture=") {
		t.Errorf("%s", text)
	}
	_, stderr = f.capctl(0, "-H", "edge-1", "-H", "edge-down", "merge", "-f", "-o", all, collected)
	if text := testbed.Run(t, "capinfos", all); strings.Count(text, "clock offset ") != 2 || strings.Count(text, "synchronized") < 6 ||
		!strings.Contains(stderr, "edge-down: its clock cannot be asked: ") {
		t.Errorf("%s%s", text, stderr)
	}

	// A capture that one box alone has; the request from stdin for each; --wait.
	if _, stderr := f.capctl(5, "-H", "@edge", "rm", "lone"); strings.Count(stderr, "no capture has") != 2 || !strings.Contains(stderr, "edge-2: removed lone") {
		t.Errorf("%s", stderr)
	}
	cmd := f.command("-H", "@edge", "start", "--wait", "-n", "timed", "-t", "1", "-f", "-")
	cmd.Stdin = strings.NewReader(`{"filter_v1": {"protocol": 17}}`)
	waited, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(waited), "kept here: 0 packets") != 3 || !strings.Contains(string(waited), "timed\n") {
		t.Errorf("%v: %s", err, waited)
	}
	if f.boxes[2].Show("timed").FilterV1.Protocol != "17" && f.boxes[2].Show("timed").FilterV1.Protocol != "udp" {
		t.Errorf("%+v", f.boxes[2].Show("timed"))
	}
	// Live, as one stream; it ends with the captures.
	live := f.command("-q", "-H", "@edge", "start", "-n", "live", "-w", "-", "-c", "6", "-f", request)
	packets, err := live.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := live.Start(); err != nil {
		t.Fatal(err)
	}
	for _, d := range f.boxes {
		for d.Capctl("show", "live").Code != 0 {
			time.Sleep(20 * time.Millisecond) // the test's own time limit bounds this
		}
		d.Await("live", "running", func(c wire.Capture) bool { return c.Status == wire.StatusRunning })
	}
	ping()
	streamed := filepath.Join(f.dir, "live.pcapng")
	text, err := io.ReadAll(packets)
	if err != nil {
		t.Fatal(err)
	}
	put(t, streamed, text)
	if err := live.Wait(); err != nil {
		t.Errorf("%v", err)
	}
	clear(names)
	for _, p := range testbed.TsharkPackets(t, streamed, "") {
		names[p.Interface]++
	}
	if names["edge-1/lo"] != 6 || names["edge-2/lo"] != 6 || names["edge-3/lo"] != 6 || !testbed.Capinfos(t, streamed).Ordered {
		t.Errorf("%v", names)
	}
	if text := testbed.Run(t, "capinfos", streamed); strings.Count(text, "clock offset ") != 3 || strings.Contains(text, "clock offset unknown") {
		t.Errorf("each interface should tell its host's clock: %s", text)
	}

	// Who has seen enough ends them all.
	enough := f.command("-H", "@edge", "start", "-n", "enough", "-w", "-", "-f", request)
	packets, err = enough.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := enough.Start(); err != nil {
		t.Fatal(err)
	}
	for _, d := range f.boxes {
		for d.Capctl("show", "enough").Code != 0 {
			time.Sleep(20 * time.Millisecond)
		}
	}
	packets.Close()
	if err := enough.Wait(); err != nil {
		t.Errorf("%v", err)
	}
	for _, d := range f.boxes {
		d.Await("enough", "finished", func(c wire.Capture) bool { return finished(c) })
	}

	// Completion asks the box, and knows the groups. Of several it gives what each of them
	// has, but for those that do not answer in time.
	testbed.RunIn(t, f.boxes[1].NS, "ip", "link", "add", "only-here", "type", "veth", "peer", "name", "peer")
	f.boxes[0].Must("-q", "start", "-n", "alone", "-f", request)
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	for _, c := range []struct{ hosts, line, want, not string }{
		{"edge-2", "show enou", "enough\tcomplete", ""},
		{"edge-2", "start -i on", "only-here\n", "lo\n"},
		{"edge-2", "explain --interface ", "lo\nonly-here\npeer\n", ""},
		{"edge-2", "start --hook prerouting,e", "prerouting,egress\n", ""},
		{"@all-of-them ops@" + mute.Addr().String(), "start -i ", "lo\n", "only-here"},
		{"@all-of-them ops@" + mute.Addr().String(), "show ", "enough\tcomplete", "alone"},
	} {
		args := []string{"__complete"}
		for _, host := range strings.Fields(c.hosts) {
			args = append(args, "-H", host)
		}
		f.completes(c.want, c.not, append(args, strings.Split(c.line, " ")...)...)
	}
	f.boxes[0].Must("-q", "stop", "alone")
	if out, _ := f.capctl(0, "__complete", "-H", "edge-down", "start", "-i", ""); !strings.HasPrefix(out, ":") {
		t.Errorf("of a box that is away: %s", out)
	}
	if out, _ := f.capctl(0, "__complete", "-H", "@"); !strings.Contains(out, "@edge\tgroup") || !strings.Contains(out, "@all\t") {
		t.Errorf("%s", out)
	}

	// All at once on one screen; the terminal is 80×24.
	f.capctl(0, "-q", "-H", "@edge", "start", "-n", "watched", "-f", request)
	term := newTerminal(t, 80, 24, f.environment(), f.command("-H", "@all-of-them", "watch").Args...)
	lines := term.await("all boxes", has("4 boxes", "3 running", "edge-down: capd does not answer, trying again", "HOST", "watched (", "q quit"))
	if text := strings.Join(lines, "\n"); strings.Count(text, "\n  edge-")+strings.Count(text, "▸ edge-") < 3 {
		t.Errorf("%s", text)
	}
	term.keys("s")
	term.await("a question", has("? y or n"))
	term.keys("y")
	term.await("one less", has("2 running", "stopped watched ("))
	term.keys("q")
	term.await("the end", has("left with 0"))

	f.capctl(2, "-H", "@edge", "verify", f.dir)
	f.capctl(2, "-H", "@nobody", "list")
	f.capctl(2, "-H", "-oProxyCommand=x", "list")
}

// Ctrl-C at the terminal reaches ssh too; the captures are stopped through it all the same.
func TestFleetInterrupted(t *testing.T) {
	f := newFleet(t, 2)
	request := filepath.Join(f.dir, "request.json")
	put(t, request, []byte(`{"filter_v1": {"protocol": 1}}`))
	cmd := f.command("-H", "@edge", "start", "--wait", "-n", "long", "-f", request)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p := process{cmd, make(chan struct{})}
	stderr := &onSeeing{text: "edge-2: running"}
	both := &onSeeing{text: "edge-1: running", do: func() {
		stderr.mu.Lock()
		stderr.do = func() { <-p.started; _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
		stderr.mu.Unlock()
		_, _ = stderr.Write(nil)
	}}
	cmd.Stderr = writers{stderr, both}
	if _, exit := p.output(t); exit != 0 {
		t.Fatalf("exit code %d: %s", exit, stderr)
	}
	for _, d := range f.boxes {
		if c := d.Show("long"); c.Status != wire.StatusComplete || c.StopReason != wire.StopRequested {
			t.Errorf("%+v", c)
		}
	}
}

type writers []*onSeeing

func (w writers) Write(p []byte) (int, error) {
	for _, one := range w {
		_, _ = one.Write(p)
	}
	return len(p), nil
}

// Why a box cannot be reached is told with what mends it.
func TestRemoteFailures(t *testing.T) {
	f := newFleet(t, 1)
	f.boxes[0].Stop()
	if _, stderr := f.capctl(3, "-H", "edge-1", "list"); !strings.Contains(stderr, "capctl: capd cannot be reached at ") || !strings.Contains(stderr, ": there is no such socket\nhint: is capd running?") {
		t.Errorf("no capd: %s", stderr)
	}
	none := f.command("-H", "edge-1", "list")
	none.Env = append(none.Env, "CAPCTL_SSH=no-such-ssh -v")
	if out, _ := none.CombinedOutput(); none.ProcessState.ExitCode() != 3 || !strings.Contains(string(out), "there is no program no-such-ssh here to reach edge-1 with\nhint: install an SSH client here") {
		t.Errorf("no ssh here: %d: %s", none.ProcessState.ExitCode(), out)
	}
	for _, test := range []struct{ script, want string }{
		{"echo Permission denied. >&2; exit 255", "ssh: Permission denied.\nhint: does this work: ssh edge-1 true"},
		{"exit 127", "there is no capctl on edge-1"},
		{"echo 'capctl: unknown command: capctl dial-stdio' >&2; exit 2", "knows no dial-stdio --greet"},
		{"yes hello | head -c 1000000", "what answers is no capctl dial-stdio"},
		{"echo 'capctl: no' >&2; exit 3", "capd cannot be reached: no\n"},
	} {
		program := filepath.Join(f.dir, "ssh")
		if err := os.WriteFile(program, []byte("#!/bin/sh\n"+test.script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := f.command("-H", "edge-1", "list")
		cmd.Env = append(cmd.Env, "CAPCTL_SSH="+program)
		out, _ := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != 3 || !strings.Contains(string(out), test.want) {
			t.Errorf("%s: %d: %s", test.script, cmd.ProcessState.ExitCode(), out)
		}
	}
}

func TestHostsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts")
	put(t, path, []byte("# mine\nedge: edge-1 ops@edge-2:2222 # two\n  [2001:db8::1]:22\ncore: core-1 @edge\n\nloop: @loop\nempty:\n"))
	file, err := remote.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	hosts, err := file.Expand([]string{"core-1", "@core", "edge-1"})
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	for _, h := range hosts {
		texts = append(texts, h.String())
	}
	if got := strings.Join(texts, " "); got != "core-1 edge-1 ops@edge-2:2222 [2001:db8::1]:22" {
		t.Error(got)
	}
	if got := remote.Labels(append(hosts, remote.Host{Name: "edge-1", Port: 23})); !slices.Equal(got, []string{"core-1", "edge-1", "edge-2", "2001:db8::1", "edge-1:23"}) {
		t.Error(got)
	}
	for _, names := range []string{"@loop", "@empty", "@none", "", "a b", "-oX", "@", "x@", "@all", "h:0", "h:99999", "a/b", "me@-x"} {
		if hosts, err := file.Expand([]string{names}); err == nil {
			t.Errorf("%q is taken for %v", names, hosts)
		}
	}
	for _, text := range []string{"edge", "  edge-1", "all: x", "a b: c", "e: -x", "e: x@"} {
		put(t, path, []byte(text))
		if _, err := remote.ReadFile(path); err == nil || !strings.Contains(err.Error(), "line 1") {
			t.Errorf("%q: %v", text, err)
		}
	}
	if file, err := remote.ReadFile(path + ".none"); err != nil || len(file.Groups()) != 0 {
		t.Errorf("%v", err)
	}
}

func FuzzHosts(f *testing.F) {
	f.Add("edge: edge-1 ops@edge-2:2222\n [::1]:22\ncore: @edge")
	f.Add(":]")
	f.Add("me@[fe80::1%eth0]:22")
	f.Fuzz(func(t *testing.T, text string) {
		if h, err := remote.ParseHost(text); err == nil {
			again, err := remote.ParseHost(h.String())
			if err != nil || again != h || strings.HasPrefix(h.Name, "-") || h.Name == "" {
				t.Errorf("%q: %+v, %+v, %v", text, h, again, err)
			}
		}
	})
}
