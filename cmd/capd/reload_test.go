package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"capd/ctl/wire"
	"capd/testbed"
)

// SIGHUP takes over what can be taken over; a bad configuration changes nothing.
func TestReload(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	past := d.Must("start", "-q", "-n", "past")
	d.Must("stop", past)
	id := d.Must("start")
	reload := func(toml, logged string) {
		t.Helper()
		before := strings.Count(d.Log.String(), logged)
		d.Configure(toml)
		d.Signal(syscall.SIGHUP)
		deadline := time.Now().Add(time.Minute)
		for strings.Count(d.Log.String(), logged) == before {
			if time.Now().After(deadline) {
				t.Fatalf("the log does not say %q", logged)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	const good = "[destination.one]\ntype = \"sftp\"\naddress = \"127.0.0.1:22\"\nuser = \"x\"\nprivate_key = \"/k\"\nknown_hosts = \"/h\"\n"
	reload("[limits]\nmax_time_limit = \"1m\"\nmax_packet_rate = 700\n"+good, "was read again")
	if out := d.Must("destination", "list"); !strings.Contains(out, "one") {
		t.Errorf("destinations: %s", out)
	}
	if r := d.Capctl("start", "-t", "2m"); r.Code != 6 {
		t.Errorf("beyond the new limit: exit code %d: %s", r.Code, r.Stderr)
	}
	if rules := d.Ruleset(); !strings.Contains(rules, "rate over 700/second") || strings.Count(rules, "rate over") != 1 {
		t.Errorf("the running capture has another rate than the new 700/second:\n%s", rules)
	}
	reload("[limits]\nmax_time_limt = \"1h\"\n", "is refused, the old one stays")
	if out := d.Must("destination", "list"); !strings.Contains(out, "one") {
		t.Errorf("destinations after a bad configuration: %s", out)
	}
	if c := d.Show(id); c.Status != wire.StatusRunning {
		t.Errorf("a reload ended the capture: %+v", c)
	}

	// A shorter retention counts for what is finished already, and for nothing that runs.
	reload("[limits]\nretention = \"1s\"\nmax_captures = 3\n", "was read again")
	deadline := time.Now().Add(60 * time.Second)
	for strings.Contains(d.Must("list", "--all"), "past") {
		if time.Now().After(deadline) {
			t.Fatal("the new retention is over, and the capture is still there")
		}
		time.Sleep(50 * time.Millisecond)
	}
	if c := d.Show(id); c.Status != wire.StatusRunning {
		t.Errorf("a shorter retention ended the capture: %+v", c)
	}
	if !strings.Contains(d.Log.String(), "in=limits.max_captures") {
		t.Error("the log does not say that max_captures waits for a restart")
	}
}

// Whoever edits a profile, or gives it a name that is not read, and looks whether it works,
// is told that capd goes by something else; and not what the file says.
func TestConfigurationOnDisk(t *testing.T) {
	d := testbed.StartDaemon(t, "", "")
	dir := filepath.Join(d.Dir, "destinations.d")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const profile = "# %s\ntype = \"sftp\"\naddress = \"127.0.0.1:%d\"\nuser = \"x\"\nprivate_key = \"/k\"\nknown_hosts = \"/h\"\n"
	reload := func() {
		t.Helper()
		before := strings.Count(d.Log.String(), "was read again")
		d.Signal(syscall.SIGHUP)
		if !eventually(func() bool { return strings.Count(d.Log.String(), "was read again") > before }) {
			t.Fatalf("no reload: %s", d.Log)
		}
	}
	says := func(exit int, want string, args ...string) {
		t.Helper()
		r := d.Capctl(args...)
		if out := r.Stdout + r.Stderr; r.Code != exit || want != "" && !strings.Contains(out, want) || want == "" && strings.Contains(out, "on the disk") {
			t.Errorf("%q: exit code %d, want %d; it does not say %q: %s", args, r.Code, exit, want, out)
		}
	}
	check := []string{"destination", "check", "soc"}
	write("soc.toml", fmt.Sprintf(profile, "new", 1))
	says(5, "its profile is new on the disk: systemctl reload capd", check...)
	says(0, "was changed on the disk since capd read it", "doctor", "--json")
	reload()
	says(7, "", check...)
	write("soc.toml", fmt.Sprintf(profile, "another comment is no change", 1))
	says(7, "", check...)
	write("soc.toml", fmt.Sprintf(profile, "edited", 2))
	says(7, "! profile", check...)
	says(7, "systemctl reload capd, then check again", check...)
	says(1, "was changed on the disk since capd read it", "doctor", "--json") // and it does not work
	write("soc.toml", "no profile: s3cret\n")
	says(7, "the configuration on the disk has mistakes", check...)
	says(1, "the configuration on the disk has mistakes", "doctor", "--json")
	if r := d.Capctl(check...); strings.Contains(r.Stdout+r.Stderr, "s3cret") {
		t.Errorf("the file's text is in the answer: %s%s", r.Stdout, r.Stderr)
	}
	if err := os.Remove(filepath.Join(dir, "soc.toml")); err != nil {
		t.Fatal(err)
	}
	says(7, "it is not in the configuration on the disk any more", check...)

	// A name that is not read.
	write("soc.conf", fmt.Sprintf(profile, "", 1))
	reload()
	want := filepath.Join(dir, "soc.conf") + " is not read: a profile is a file NAME.toml"
	if !strings.Contains(d.Log.String(), want) {
		t.Errorf("the log does not say %q: %s", want, d.Log)
	}
	says(0, want, "doctor", "--json")
	out, err := exec.Command(filepath.Join(testbed.Build(t), "capd"), "--check-config", "--config", filepath.Join(d.Dir, "capd.toml")).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "capd: warning: "+want) {
		t.Errorf("--check-config: %v: %s", err, out)
	}
}

// A start that fails under systemd leaves no connection at the socket that systemd holds:
// whoever waits is told so at once, and systemd does not start capd for it again and again.
// With a bad configuration it says what to do then.
func TestFailedStartUnderSystemd(t *testing.T) {
	t.Run("bad configuration", func(t *testing.T) {
		failedStart(t, "[limits]\nmax_capturs = 3\n", exitConfig, "max_capturs", "max_captures", "when that is mended: systemctl restart capd")
	})
	t.Run("no spool", func(t *testing.T) { // worth another try: not exitConfig
		failedStart(t, fmt.Sprintf("[daemon]\nstate_dir = %q\n[spool]\ndir = \"/proc/away\"\n", t.TempDir()), 1, "/proc/away", "no such file or directory")
	})
}

// failedStart starts capd as systemd does, while a client waits.
func failedStart(t *testing.T, toml string, exit int, says ...string) {
	t.Helper()
	dir := t.TempDir()
	bad := filepath.Join(dir, "capd.toml")
	if err := os.WriteFile(bad, []byte(toml), 0o600); err != nil {
		t.Fatal(err)
	}
	socket, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "capd.sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	passed, err := socket.File()
	if err != nil {
		t.Fatal(err)
	}
	defer passed.Close()
	waiting, err := net.Dial("unix", socket.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()

	// LISTEN_PID is capd's own (sd_listen_fds(3)); it is the shell's, which becomes capd.
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" --config "$1"`, filepath.Join(testbed.Build(t), "capd"), bad)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET=/nowhere")
	cmd.ExtraFiles = []*os.File{passed}
	out, err := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code != exit {
		t.Errorf("exit code %d (%v), want %d", code, err, exit)
	}
	for _, want := range says {
		if !strings.Contains(string(out), want) {
			t.Errorf("it does not say %q: %s", want, out)
		}
	}
	if err := socket.SetDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if c, err := socket.Accept(); err == nil {
		c.Close()
		t.Error("the connection still waits at the socket")
	}
}
