package main

import (
	"bytes"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"capd/ctl/wire"
	"capd/testbed"
)

// as runs capctl as the user nobody with one more group, and gives what it said.
func as(t *testing.T, d *testbed.Daemon, group string, args ...string) testbed.Result {
	t.Helper()
	g, err := user.LookupGroup(group)
	if err != nil {
		t.Fatal(err)
	}
	gid, err := strconv.ParseUint(g.Gid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	cmd := d.Command(args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534, Groups: []uint32{uint32(gid)}}}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return testbed.Result{Stdout: strings.TrimSuffix(stdout.String(), "\n"), Stderr: stderr.String(), Code: cmd.ProcessState.ExitCode()}
}

// TestAccessGroup holds members of a group to its limits, from the configuration to the
// capture, and finds what they did in the capture's record and in the journal.
func TestAccessGroup(t *testing.T) {
	testbed.NeedRoot(t)
	const limits = "[access.group.users]\nmax_snaplen = 96\nmax_time_limit = '1m'\nrequire_labels = ['ticket']\n"
	d := testbed.StartDaemon(t, testbed.NewNS(t), limits)
	d.Must("start", "-q", "-n", "roots")
	d.Must("stop", "roots")

	for _, c := range []struct {
		args string
		code int
		want string // on stderr
	}{
		{"start", 4, "labels.ticket: captures of the group users carry this label"},
		{"start --label ticket=N1 -s 0", 4, "which is 96 bytes"},
		{"start --label ticket=N1 -t 5m", 4, "time_limit: 5m is longer"},
		{"stop roots", 4, "may not stop captures of others"},
		{"download roots -o /tmp", 4, "may not read packets of others"},
		{"rm roots", 4, "may not remove captures of others"},
	} {
		if r := as(t, d, "users", strings.Fields(c.args)...); r.Code != c.code || !strings.Contains(r.Stderr, c.want) {
			t.Errorf("capctl %s: exit code %d: %s, want %d %s", c.args, r.Code, r.Stderr, c.code, c.want)
		}
	}
	r := as(t, d, "users", "start", "-q", "--label", "ticket=N1", "-n", "mine")
	if r.Code != 0 {
		t.Fatalf("a start within the limits: %+v", r)
	}
	if c := d.Show(r.Stdout); *c.Snaplen != 96 || *c.TimeLimit != 60e9 || c.RequestedBy.UID != 65534 {
		t.Errorf("the capture: snaplen %d, time limit %s, by %+v", *c.Snaplen, *c.TimeLimit, c.RequestedBy)
	}
	if r := as(t, d, "users", "stop", "mine"); r.Code != 0 {
		t.Errorf("stop one's own: %+v", r)
	}
	if r := as(t, d, "users", "download", "mine", "-o", "-"); r.Code != 0 || r.Stdout == "" {
		t.Errorf("download one's own: %d %s", r.Code, r.Stderr)
	}
	c := d.Await(r.Stdout, "read and noted", func(c wire.Capture) bool { return len(c.Actions) == 3 })
	done := []string{}
	for _, a := range c.Actions {
		done = append(done, a.Action+" "+a.Result)
		if a.By.UID != 65534 || a.By.PID == 0 || a.Time.IsZero() {
			t.Errorf("in the record: %+v", a)
		}
	}
	if want := []string{"start ok", "stop ok", "download ok"}; !slices.Equal(done, want) {
		t.Errorf("in the record: %q, want %q", done, want)
	}
	for _, want := range []string{
		"action=stop result=forbidden reason=\"user nobody (uid 65534) may not stop captures of others\" uid=65534 user=nobody",
		"action=download result=ok reason=\"\" uid=65534 user=nobody",
	} {
		if !strings.Contains(d.Log.String(), want) {
			t.Errorf("the journal lacks %s", want)
		}
	}

	// The record outlives the daemon; limits follow a reload.
	if code := d.Stop(); code != 0 {
		t.Errorf("capd's exit code: %d", code)
	}
	d.Configure("")
	d.Start()
	if c := d.Show("mine"); len(c.Actions) != 3 {
		t.Errorf("after a restart: %+v", c.Actions)
	}
	if r := as(t, d, "users", "list"); r.Code != 4 {
		t.Errorf("without the group in the configuration: %+v", r)
	}
}
