// Package ansible_test runs the collection's modules, its filter and ansible-playbook against
// a real capd. What the role does to a system with systemd is tested by contrib/ansible/test.
package ansible_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"

	"capd/ctl/wire"
	"capd/testbed"
)

func TestMain(m *testing.M) { os.Exit(testbed.Alone(m)) }

// python is the one that has Debian's ansible modules, whatever else is in PATH.
const python = "/usr/bin/python3"

// collections is a folder in which Ansible finds the collection.
func collections(t *testing.T) string {
	t.Helper()
	testbed.NeedRoot(t)
	testbed.NeedCommand(t, "ansible-playbook", python)
	dir := t.TempDir()
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "ansible_collections/capd"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(here, filepath.Join(dir, "ansible_collections/capd/capd")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// args are a task's options.
type args map[string]any

// answer is what a module says.
type answer struct {
	Changed    bool
	Failed     bool
	Msg        string
	Hint       string
	Capture    *wire.Capture
	Actions    []string
	Downloaded []string
	Warnings   []string
	OK         bool
	Steps      []wire.CheckStep
	Diff       struct {
		Before, After any
	}
}

// box is a capd and the modules that command it.
type box struct {
	*testbed.Daemon
	t       *testing.T
	library string
	check   bool     // run modules in check mode
	wrap    []string // a command that becomes the module
}

func newBox(t *testing.T, toml string) *box {
	t.Helper()
	library := collections(t)
	return &box{Daemon: testbed.StartDaemon(t, "", toml), t: t, library: library}
}

// module runs a module as Ansible does: options in, an answer out.
func (b *box) module(name string, a args) answer {
	b.t.Helper()
	options := args{"socket": b.Socket, "executable": filepath.Join(testbed.Build(b.t), "capctl"),
		"_ansible_check_mode": b.check, "_ansible_diff": true}
	for k, v := range a {
		options[k] = v
	}
	in, err := json.Marshal(map[string]any{"ANSIBLE_MODULE_ARGS": options})
	if err != nil {
		b.t.Fatal(err)
	}
	argv := append(append([]string{}, b.wrap...), python, "-B", filepath.Join("plugins/modules", name+".py"))
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "PYTHONPATH="+b.library, "SSH_CONNECTION=")
	cmd.Stdin = bytes.NewReader(in)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, runErr := cmd.Output()
	var got answer
	if err := json.Unmarshal(out, &got); err != nil {
		b.t.Fatalf("%s %v: %v, %v: %s%s", name, a, runErr, err, out, &stderr)
	}
	return got
}

// capture runs capd_capture, which has to succeed.
func (b *box) capture(a args) answer {
	b.t.Helper()
	got := b.module("capd_capture", a)
	if got.Failed {
		b.t.Fatalf("capd_capture %v: %s", a, got.Msg)
	}
	return got
}

// refused runs a module that has to fail, with a message that matches.
func (b *box) refused(name string, a args, want string) answer {
	b.t.Helper()
	got := b.module(name, a)
	if !got.Failed || !regexp.MustCompile(want).MatchString(got.Msg) {
		b.t.Fatalf("%s %v: failed %v: %q, want %q", name, a, got.Failed, got.Msg, want)
	}
	return got
}

// did tests whether something was done, and what.
func did(t *testing.T, got answer, want ...string) {
	t.Helper()
	if strings.Join(got.Actions, " ") != strings.Join(want, " ") || got.Changed != (len(want) > 0) {
		t.Fatalf("did %v (changed %v), want %v", got.Actions, got.Changed, want)
	}
}

// names are the captures that capd knows.
func (b *box) names() (out []string) {
	b.t.Helper()
	var list []wire.Capture
	if err := json.Unmarshal([]byte(b.Must("--json", "list", "--all")), &list); err != nil {
		b.t.Fatal(err)
	}
	for _, c := range list {
		out = append(out, c.Name)
	}
	return out
}

func ping(t *testing.T, count int) {
	t.Helper()
	testbed.Run(t, "ping", "-q", "-i", "0.01", "-c", fmt.Sprint(count), "127.0.0.1")
}

func TestCaptureIsIdempotent(t *testing.T) {
	b := newBox(t, "")
	wanted := args{"name": "dns", "filter": "udp  port 53", "time_limit": "10m", "byte_limit": "10mb", "hooks": []string{"output", "prerouting"},
		"labels": args{"ticket": 1234}, "exclude": []args{{"source": "192.0.2.7", "source_port": 5000}}, "filter_v1": args{"protocol": "udp"}}

	b.check = true
	got := b.capture(wanted)
	did(t, got, "start")
	if after, _ := got.Diff.After.(map[string]any); after["byte_limit"] != "10mb" || got.Capture != nil || len(b.names()) != 0 {
		t.Errorf("check mode: diff %v, capture %v, captures %v", got.Diff, got.Capture, b.names())
	}
	b.refused("capd_capture", args{"name": "dns", "filter": "udp prot 53"}, `filter: column 5: "prot"`)
	b.check = false

	first := b.capture(wanted)
	did(t, first, "start")
	if !strings.Contains(b.Ruleset(), "dns") {
		t.Errorf("no rule bears the capture's name:\n%s", b.Ruleset())
	}
	same := args{"name": "dns", "filter": "udp port 53", "time_limit": 600, "byte_limit": 10000000, "hooks": []string{"prerouting", "output"},
		"labels": args{"ticket": "1234"}, "exclude": []args{{"source": "192.0.2.7", "source_port": 5000}}}
	for _, again := range []args{wanted, same, {"name": "dns"}} {
		got := b.capture(again)
		did(t, got)
		if got.Capture.ID != first.Capture.ID || got.Capture.Status != wire.StatusRunning {
			t.Errorf("%v: %s %s", again, got.Capture.ID, got.Capture.Status)
		}
	}

	for field, value := range map[string]any{"filter": "tcp", "time_limit": "11m", "byte_limit": "10MiB", "hooks": []string{"output"},
		"labels": args{"ticket": "1"}, "headers_only": true, "packet_limit": 5, "exclude": []args{{"source": "192.0.2.8"}}} {
		b.refused("capd_capture", args{"name": "dns", field: value}, "capture dns is running with other settings: "+field+" is ")
	}
	if c := b.Show("dns"); c.ID != first.Capture.ID || c.Status != wire.StatusRunning {
		t.Fatalf("after refusals: %s %s", c.ID, c.Status)
	}
	other := b.capture(args{"name": "dns", "filter": "tcp", "replace": true})
	did(t, other, "stop", "start")
	if other.Capture.ID == first.Capture.ID || other.Capture.Filter != "tcp" {
		t.Errorf("replaced by %s: %s", other.Capture.ID, other.Capture.Filter)
	}

	b.check = true
	did(t, b.capture(args{"name": "dns", "state": "stopped"}), "stop")
	did(t, b.capture(args{"name": "dns", "state": "absent"}), "stop", "remove", "remove")
	b.check = false
	if c := b.Show("dns"); c.Status != wire.StatusRunning {
		t.Fatalf("check mode stopped the capture: %s", c.Status)
	}
	stopped := b.capture(args{"name": "dns", "state": "stopped", "wait": true})
	did(t, stopped, "stop")
	if stopped.Capture.Status != wire.StatusComplete || stopped.Capture.StopReason != wire.StopRequested {
		t.Errorf("stopped: %s, %s", stopped.Capture.Status, stopped.Capture.StopReason)
	}
	did(t, b.capture(args{"name": "dns", "state": "stopped"}))
	did(t, b.capture(args{"name": "dns", "filter": "tcp"})) // it was taken
	did(t, b.capture(args{"name": "dns", "filter": "tcp", "again": true}), "start")
	did(t, b.capture(args{"name": "dns", "state": "absent"}), "stop", "remove", "remove", "remove")
	did(t, b.capture(args{"name": "dns", "state": "absent"}))
	did(t, b.capture(args{"name": "dns", "state": "stopped"}))
	if names := b.names(); len(names) != 0 {
		t.Errorf("captures are left: %v", names)
	}
}

func TestCaptureIsAwaitedAndDownloaded(t *testing.T) {
	b := newBox(t, "")
	folder := t.TempDir()
	wanted := args{"name": "pings", "filter": "icmp[icmptype] == icmp-echo", "hooks": []string{"input"}, "packet_limit": 20}
	did(t, b.capture(wanted), "start")
	wanted["wait"], wanted["download"] = true, folder

	wanted["wait_timeout"] = 1
	late := b.refused("capd_capture", wanted, "after 1 s capture pings is not finished but running")
	if late.Capture.Status != wire.StatusRunning {
		t.Errorf("after the time-out: %s", late.Capture.Status)
	}
	wanted["wait_timeout"] = 120
	ping(t, 20)
	got := b.capture(wanted)
	did(t, got, "download")
	if len(got.Downloaded) != 1 || filepath.Dir(got.Downloaded[0]) != filepath.Join(folder, got.Capture.ID) {
		t.Fatalf("downloaded %v", got.Downloaded)
	}
	if packets := testbed.Tshark(t, got.Downloaded[0], "icmp", "icmp.seq"); len(packets) != 20 || got.Capture.Packets.Captured != 20 {
		t.Errorf("%d packets in the file, %d captured", len(packets), got.Capture.Packets.Captured)
	}
	did(t, b.capture(wanted))
	if err := os.Remove(got.Downloaded[0]); err != nil {
		t.Fatal(err)
	}
	b.check = true
	did(t, b.capture(wanted), "download")
	b.check = false
	did(t, b.capture(wanted), "download")

	b.refused("capd_capture", args{"name": "x", "download": folder}, "download needs wait=true")
	b.refused("capd_capture", args{"name": "x", "state": "absent", "download": folder}, "exclude each other")
	b.refused("capd_capture", args{"name": "x", "snaplen": -1}, "snaplen")
	b.refused("capd_capture", args{"name": "x", "wait_timeout": 0}, "wait_timeout is 0")
}

// destination is a profile that delivers to an sshd.
func destination(s *testbed.SSHD, key string) string {
	return fmt.Sprintf("[destination.soc]\ntype = %q\naddress = %q\nuser = %q\nprivate_key = %q\nknown_hosts = %q\npath = %q\n",
		"sftp", s.Address, s.User, key, s.KnownHosts, "{id}/{file}")
}

func TestCaptureIsDelivered(t *testing.T) {
	testbed.NeedRoot(t)
	sshd := testbed.NewSSHD(t)
	key := filepath.Join(t.TempDir(), "key") // one that the server does not know, until it is exchanged
	testbed.Run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
	b := newBox(t, destination(sshd, key))
	wanted := args{"name": "sent", "filter": "icmp", "hooks": []string{"input"}, "packet_limit": 10, "destination": "soc"}
	b.refused("capd_capture", wanted, "(?s)soc.*Hint: ")

	wanted["check_destination"] = false
	did(t, b.capture(wanted), "start")
	ping(t, 10)
	b.Await("sent", "undelivered", func(c wire.Capture) bool {
		return c.Status == wire.StatusFailed || c.Status == wire.StatusDelivering && len(c.Files) == 1 && c.Files[0].Error != ""
	})
	b.refused("capd_capture", args{"name": "sent", "state": "absent", "wait_timeout": 1}, "not delivered")
	failed := b.Show("sent").Status == wire.StatusFailed
	if !failed {
		b.refused("capd_capture", args{"name": "sent", "state": "started", "wait": true, "wait_timeout": 1}, "not finished but delivering")
	}

	right, err := os.ReadFile(sshd.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, right, 0o600); err != nil {
		t.Fatal(err)
	}
	wanted["wait"], wanted["fail_on_loss"] = true, true
	got := b.capture(wanted)
	if failed {
		did(t, got, "retry")
	}
	if c := got.Capture; c.Status != wire.StatusComplete || len(c.Files) != 1 || c.Files[0].Verified != wire.VerifiedReadback {
		t.Fatalf("delivered: %+v", c)
	}
	if _, err := os.Stat(filepath.Join(sshd.Root, got.Capture.ID, wire.SignatureName)); err != nil {
		t.Error(err)
	}
	wanted["download"] = t.TempDir()
	b.refused("capd_capture", wanted, "is delivered to soc, so there is nothing to download")
	did(t, b.capture(args{"name": "sent", "state": "absent"}), "remove")
}

func TestUndeliveredIsRemovedOnlyByForce(t *testing.T) {
	testbed.NeedRoot(t)
	sshd := testbed.NewSSHD(t)
	b := newBox(t, destination(sshd, sshd.PrivateKey))
	sshd.Stop()
	did(t, b.capture(args{"name": "kept", "filter": "icmp", "destination": "soc", "check_destination": false, "packet_limit": 5}), "start")
	ping(t, 5)
	b.Await("kept", "ended", func(c wire.Capture) bool { return c.Status == wire.StatusDelivering || c.Status == wire.StatusFailed })
	b.refused("capd_capture", args{"name": "kept", "state": "absent", "wait_timeout": 1}, "not delivered")
	did(t, b.capture(args{"name": "kept", "state": "absent", "force": true}), "remove")
	if names := b.names(); len(names) != 0 {
		t.Errorf("captures are left: %v", names)
	}
}

func TestDestinationCheck(t *testing.T) {
	testbed.NeedRoot(t)
	sshd := testbed.NewSSHD(t)
	b := newBox(t, destination(sshd, sshd.PrivateKey))
	got := b.module("capd_destination_check", args{"name": "soc"})
	if got.Failed || got.Changed || !got.OK || len(got.Steps) < 3 {
		t.Fatalf("%+v", got)
	}
	b.refused("capd_destination_check", args{"name": "nowhere"}, `no destination "nowhere"`)
	b.refused("capd_destination_check", args{"name": "soc", "attempts": 0}, "attempts is 0: at least 1")
	sshd.Stop()
	down := b.refused("capd_destination_check", args{"name": "soc", "attempts": 2, "pause": 0}, "destination soc does not work: .* failed: .*Hint: ")
	if last := down.Steps[len(down.Steps)-1]; last.OK || down.OK || down.Hint == "" || last.Hint != down.Hint {
		t.Errorf("%+v", down)
	}
	b.check = true
	if got := b.module("capd_destination_check", args{"name": "soc"}); got.Failed || got.Steps != nil || !got.OK {
		t.Errorf("in check mode: %+v", got)
	}
	b.refused("capd_destination_check", args{"name": "nowhere"}, "there is no destination nowhere; there is: soc")
}

// Ansible's own connection is in no capture, although sudo has taken SSH_CONNECTION away.
func TestOwnConnectionIsExcluded(t *testing.T) {
	b := newBox(t, "")
	b.wrap = []string{"env", "SSH_CONNECTION=192.0.2.9 50022 192.0.2.1 22", "sh", "-c", `env -u SSH_CONNECTION "$@"; true`, "sh"}
	got := b.capture(args{"name": "all"})
	want := []wire.Flow{{Source: "192.0.2.9", SourcePort: 50022, Destination: "192.0.2.1", DestinationPort: 22}}
	if !reflect.DeepEqual(got.Capture.Exclude, want) {
		t.Errorf("excluded: %+v", got.Capture.Exclude)
	}
	b.wrap = nil
	did(t, b.capture(args{"name": "all"}))
}

func TestNoDaemon(t *testing.T) {
	b := newBox(t, "")
	b.Stop()
	for _, state := range []string{"started", "stopped", "absent"} {
		got := b.refused("capd_capture", args{"name": "x", "state": state}, regexp.QuoteMeta(b.Socket))
		if got.Hint == "" {
			t.Errorf("no hint: %s", got.Msg)
		}
	}
	b.refused("capd_capture", args{"name": "x", "executable": "/nonexistent/capctl"}, "/nonexistent/capctl")
}

// The modules within ansible-playbook: check mode, diff, and a second run.
func TestPlaybook(t *testing.T) {
	b := newBox(t, "")
	playbook := filepath.Join(t.TempDir(), "play.yml")
	text := `
- hosts: localhost
  connection: local
  gather_facts: false
  module_defaults:
    capd.capd.capd_capture:
      socket: ` + b.Socket + `
      executable: ` + filepath.Join(testbed.Build(t), "capctl") + `
      name: ticket
  tasks:
    - capd.capd.capd_capture: {filter: icmp, hooks: [input], packet_limit: 10, labels: {ticket: NET-1}}
    - ansible.builtin.command: ping -q -c 10 -i 0.01 127.0.0.1
      changed_when: false
    - capd.capd.capd_capture: {filter: icmp, hooks: [input], packet_limit: 10, wait: true}
      register: result
      when: not ansible_check_mode
    - ansible.builtin.assert: {that: result.capture.packets.captured == 10}
      when: not ansible_check_mode
`
	if err := os.WriteFile(playbook, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(flags ...string) string {
		t.Helper()
		cmd := exec.Command("ansible-playbook", append(flags, "-i", "localhost,", playbook)...)
		cmd.Env = append(os.Environ(), "ANSIBLE_COLLECTIONS_PATH="+b.library, "ANSIBLE_NOCOLOR=1", "ANSIBLE_NOCOWS=1", "HOME="+t.TempDir(), "LC_ALL=C.UTF-8")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	dry := run("--check", "--diff")
	if !strings.Contains(dry, `+    "filter": "icmp"`) || !strings.Contains(dry, "changed=1") || len(b.names()) != 0 {
		t.Errorf("check mode, captures %v:\n%s", b.names(), dry)
	}
	for i, changed := range []string{"changed=1 ", "changed=0 "} {
		if out := run(); !strings.Contains(out, changed) || len(b.names()) != 1 {
			t.Errorf("run %d, captures %v:\n%s", i+1, b.names(), out)
		}
	}
}

func TestToTOML(t *testing.T) {
	library := collections(t)
	filter := func(in string) (string, error) {
		cmd := exec.Command(python, "-B", "-c", `
import json, sys
from ansible_collections.capd.capd.plugins.filter.to_toml import to_toml
sys.stdout.write(to_toml(json.load(sys.stdin)))`)
		cmd.Env = append(os.Environ(), "PYTHONPATH="+library, "PYTHONIOENCODING=utf-8")
		cmd.Stdin = strings.NewReader(in)
		out, err := cmd.Output()
		return string(out), err
	}
	for _, in := range []string{
		`{}`,
		`{"limits": {"max_captures": 8, "retention": "3d"}, "access": {"control_group": "", "group": {"noc": {"destinations": ["soc"], "require_sealed": true}}}}`,
		`{"type": "sftp", "a b": "quote \" backslash \\ tab \t newline \n delete \u007f é 😀", "empty": [], "nested": [[1, 2], ["x"]], "f": 0.5, "e": {}}`,
		`{"outer": {"inner": {"k": -9007199254740993}, "after": false}, "": 1}`,
	} {
		out, err := filter(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		var want, got any
		table := map[string]any{}
		if _, err := toml.Decode(out, &table); err != nil {
			t.Errorf("%s: %v:\n%s", in, err, out)
			continue
		}
		back, err := json.Marshal(table)
		if err != nil {
			t.Fatal(err)
		}
		for _, side := range []struct {
			text string
			to   *any
		}{{in, &want}, {string(back), &got}} {
			d := json.NewDecoder(strings.NewReader(side.text))
			d.UseNumber()
			if err := d.Decode(side.to); err != nil {
				t.Fatal(err)
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s became\n%s", in, out)
		}
	}
	for _, in := range []string{`[]`, `{"a": [{"b": 1}]}`} {
		if out, err := filter(in); err == nil {
			t.Errorf("%s was taken: %s", in, out)
		}
	}
	if out, err := filter(`{"limits": {"max_captures": null, "retention": "1d"}}`); err != nil || out != "[limits]\nretention = \"1d\"\n" {
		t.Errorf("null: %v: %s", err, out)
	}
}
