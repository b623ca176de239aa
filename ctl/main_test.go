package ctl

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"capd/ctl/wire"
	"capd/testbed"
)

// TestMain lets the test binary be capctl itself, for what only a process of its own
// can show: signals, terminals, other users.
func TestMain(m *testing.M) {
	if os.Getenv("CAPCTL_TEST_RUN") == "1" {
		os.Exit(Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(testbed.Alone(m))
}

// process is a capctl of its own.
type process struct {
	*exec.Cmd
	started chan struct{}
}

// capctl prepares a process that speaks to a socket.
func capctl(socket string, args ...string) process {
	cmd := process{exec.Command("/proc/self/exe", args...), make(chan struct{})}
	cmd.Env = append(os.Environ(), "CAPCTL_TEST_RUN=1", "CAPD_SOCKET="+socket, "SSH_CONNECTION=", "COLUMNS=", "TERM=xterm", "LANG=C.UTF-8", "LC_ALL=", "NO_COLOR=")
	return cmd
}

// onSeeing is a writer that calls a function when it has seen a text.
type onSeeing struct {
	mu   sync.Mutex
	text string
	do   func()
	buf  bytes.Buffer
}

func (o *onSeeing) Write(p []byte) (int, error) {
	o.mu.Lock()
	o.buf.Write(p)
	seen := o.do != nil && strings.Contains(o.buf.String(), o.text)
	do := o.do
	if seen {
		o.do = nil
	}
	o.mu.Unlock()
	if seen {
		do()
	}
	return len(p), nil
}

func (o *onSeeing) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// output runs the process and gives what it printed and its exit code.
func (p process) output(t *testing.T) (stdout string, exit int) {
	t.Helper()
	var out bytes.Buffer
	if p.Stdout == nil {
		p.Stdout = &out
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	close(p.started)
	if err := p.Wait(); p.ProcessState.ExitCode() < 0 {
		t.Fatal(err)
	}
	return out.String(), p.ProcessState.ExitCode()
}

// interrupt sends a real SIGINT.
func interrupt(t *testing.T, cmd process) func() {
	return func() {
		<-cmd.started
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Error(err)
		}
	}
}

func object(t *testing.T, name string) []byte {
	return []byte(readFile(t, filepath.Join("testdata/objects", name)))
}

const runningID = "0f8c3b1e5d7a4c2290ab61f4e8d3c705"

func TestInterruptStopsAndWaits(t *testing.T) {
	for _, test := range []struct {
		name, after string
		exit        int
	}{
		{"delivered", "complete.json", 0},
		{"lossy", "lossy.json", 8},
		{"failed", "failed.json", 7},
	} {
		t.Run(test.name, func(t *testing.T) {
			capd := newFakeCapd(t)
			capd.answer("POST /v1/captures", reply{status: 201, body: object(t, "running.json")})
			capd.answer("GET /v1/captures/"+runningID, reply{status: 200, body: object(t, "running.json")})
			cmd := capctl(capd.socket, "start", "--wait", "udp")
			stderr := &onSeeing{text: "running", do: interrupt(t, cmd)}
			cmd.Stderr = stderr
			capd.hook("POST /v1/captures/"+runningID+"/stop", func(w http.ResponseWriter, _ *http.Request) {
				capd.answer("GET /v1/captures/"+runningID, reply{status: 200, body: object(t, "delivering.json")}, reply{status: 200, body: object(t, test.after)})
				_, _ = w.Write(object(t, "delivering.json"))
			})
			stdout, got := cmd.output(t)
			if got != test.exit {
				t.Fatalf("exit code %d: %s", got, stderr)
			}
			if stdout != runningID+"\n" {
				t.Errorf("stdout: %q", stdout)
			}
			if n := len(capd.sent("POST /v1/captures/" + runningID + "/stop")); n != 1 {
				t.Errorf("stopped %d times", n)
			}
			if !strings.Contains(stderr.String(), "stopping; Ctrl-C again") {
				t.Errorf("stderr: %s", stderr)
			}
		})
	}
}

func TestSecondInterruptLeaves(t *testing.T) {
	capd := newFakeCapd(t)
	capd.answer("POST /v1/captures", reply{status: 201, body: object(t, "running.json")})
	capd.answer("GET /v1/captures/"+runningID, reply{status: 200, body: object(t, "running.json")})
	cmd := capctl(capd.socket, "start", "--wait", "--json", "udp")
	stderr := &onSeeing{text: "running", do: interrupt(t, cmd)}
	cmd.Stderr = stderr
	capd.hook("POST /v1/captures/"+runningID+"/stop", func(w http.ResponseWriter, _ *http.Request) {
		interrupt(t, cmd)()
		_, _ = w.Write(object(t, "delivering.json"))
	})
	stdout, got := cmd.output(t)
	if got != 1 || !strings.Contains(stderr.String(), "capd goes on with it") {
		t.Fatalf("exit code %d: %s", got, stderr)
	}
	var c wire.Capture
	if err := json.Unmarshal([]byte(stdout), &c); err != nil || c.ID != runningID {
		t.Errorf("stdout: %v: %s", err, stdout)
	}
}

func TestInterruptElsewhere(t *testing.T) {
	capd := newFakeCapd(t)
	for _, args := range [][]string{{"start", "udp"}, {"start", "--wait", "udp"}, {"list"}, {"destination", "check", "soc"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			cmd := capctl(capd.socket, args...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			for _, what := range []string{"POST /v1/captures", "GET /v1/captures", "POST /v1/destinations/soc/check"} {
				capd.hook(what, func(_ http.ResponseWriter, r *http.Request) { interrupt(t, cmd)(); <-r.Context().Done() })
			}
			_, got := cmd.output(t)
			if got != 1 || !strings.Contains(stderr.String(), "capctl: interrupted") {
				t.Fatalf("exit code %d: %s", got, stderr.String())
			}
		})
	}
}

func TestInterruptedDownloadLeavesNothing(t *testing.T) {
	capd := newFakeCapd(t)
	capd.answer("GET /v1/captures/local", reply{status: 200, body: object(t, "kept.json")})
	dir := t.TempDir()
	cmd := capctl(capd.socket, "download", "local", "-o", dir)
	capd.hook("GET /v1/captures/77ab00000000000000000000000000aa/files/0001.pcapng", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "first")
		_ = http.NewResponseController(w).Flush()
		interrupt(t, cmd)()
		<-r.Context().Done()
	})
	_, got := cmd.output(t)
	if got != 1 {
		t.Fatalf("exit code %d", got)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// openTerminal makes a pseudoterminal (pty(7)) of a width.
func openTerminal(t *testing.T, columns uint16) (ours, theirs *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		testbed.Lacking(t, "pseudoterminals: "+err.Error())
	}
	t.Cleanup(func() { ours.Close() })
	if err := unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { theirs.Close() })
	if err := unix.IoctlSetWinsize(int(ours.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns}); err != nil {
		t.Fatal(err)
	}
	return ours, theirs
}

func TestTerminal(t *testing.T) {
	capd := newFakeCapd(t)
	capd.answer("GET /v1/captures", reply{status: 200, body: object(t, "list.json")})
	capd.answer("GET /v1/captures/local", reply{status: 200, body: object(t, "kept.json")})
	run := func(args ...string) (string, int) {
		ours, theirs := openTerminal(t, 72)
		cmd := capctl(capd.socket, args...)
		cmd.Stdout = theirs
		_, exit := cmd.output(t)
		theirs.Close()
		out, _ := io.ReadAll(ours) // ends in EIO once the other side is closed
		return string(out), exit
	}
	out, exit := run("list")
	if exit != 0 || !strings.Contains(out, "\x1b[32mrunning\x1b[0m") {
		t.Errorf("exit code %d, no colours: %q", exit, out)
	}
	for _, line := range strings.Split(out, "\r\n") {
		line = strings.NewReplacer("\x1b[0m", "", "\x1b[1m", "", "\x1b[31m", "", "\x1b[32m", "").Replace(line)
		if columnsOf(line) > 72 {
			t.Errorf("too wide: %q", line)
		}
	}
	if out, exit := run("download", "local", "-o", "-"); exit != 2 || strings.Contains(out, "first") {
		t.Errorf("exit code %d: %q", exit, out)
	}
}

func TestSocketOfAnotherUser(t *testing.T) {
	testbed.NeedRoot(t)
	capd := newFakeCapd(t) // its folder is root's alone
	dir, err := os.MkdirTemp("", "capctl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	binary, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "capctl")
	if err := os.WriteFile(program, binary, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := capctl(capd.socket, "list")
	cmd.Path = program
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	_, got := cmd.output(t)
	if got != 3 || !strings.Contains(stderr.String(), "permission denied\nhint: the socket and every directory above it") {
		t.Fatalf("exit code %d: %s", got, stderr.String())
	}
}
