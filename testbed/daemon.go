package testbed

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"capd/ctl/wire"
)

// binaries is where Build put capd and capctl, once a test process, by what the kernel is
// taken to lack.
var binaries struct {
	sync.Mutex
	dirs map[string]string
}

// Build compiles capd and capctl as they are released (static) and gives their folder.
// A test package that uses it calls Main from its TestMain, which deletes the folder.
func Build(t testing.TB) string {
	t.Helper()
	return BuildLacking(t, "")
}

// BuildLacking is Build of a capd that takes its kernel for one that lacks features, by the names
// that its status has for them, separated by commas.
func BuildLacking(t testing.TB, lacking string) string {
	t.Helper()
	binaries.Lock()
	defer binaries.Unlock()
	if dir := binaries.dirs[lacking]; dir != "" {
		return dir
	}
	dir, err := os.MkdirTemp("", "capd-bin-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-C", RepositoryRoot(t), "-o", dir, "-ldflags=-X=capd/nft.lacking="+lacking, "capd/cmd/capd", "capd/cmd/capctl")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		os.RemoveAll(dir)
		t.Fatalf("build capd: %v\n%s", err, out)
	}
	if binaries.dirs == nil {
		binaries.dirs = map[string]string{}
	}
	binaries.dirs[lacking] = dir
	return dir
}

// Main runs a package's tests and deletes what Build made.
func Main(m *testing.M) int {
	defer func() {
		for _, dir := range binaries.dirs {
			os.RemoveAll(dir)
		}
	}()
	return m.Run()
}

// aloneVariable marks the process that Alone starts.
const aloneVariable = "CAPD_TEST_ALONE"

// Alone is Main in a network namespace of the package's own, with lo up: capd, its servers
// and the traffic of a test can then be on loopback although other packages' tests run a
// capd in the machine's own namespace, where there can be only one. Without root it is Main.
func Alone(m *testing.M) int {
	if os.Geteuid() != 0 || os.Getenv(aloneVariable) != "" {
		return Main(m)
	}
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	args := append([]string{"--net", "sh", "-ec", `ip link set lo up; exec "$@"`, "sh", self}, os.Args[1:]...)
	cmd := exec.Command("unshare", args...)
	cmd.Env = append(os.Environ(), aloneVariable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}

// Daemon is a capd process of its own inside a namespace.
type Daemon struct {
	NS     string
	Dir    string // holds capd.toml, the state and the socket
	Socket string
	Log    *Buffer

	t      testing.TB
	bin    string
	env    []string
	prefix []string
	cmd    *exec.Cmd
}

// Buffer is a bytes.Buffer for several goroutines.
type Buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// String gives what was written so far.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// Reset forgets it.
func (b *Buffer) Reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf.Reset()
}

// StartDaemon starts capd in a namespace ("" = this one: where it has to reach servers
// on this machine's loopback, which is all that such a test may capture) with a configuration of its own; socket and
// state_dir are added by the environment. It returns when capd answers. The daemon is
// stopped when the test ends, and its log shown if the test failed.
func StartDaemon(t testing.TB, ns, toml string) *Daemon {
	t.Helper()
	return StartDaemonWith(t, DaemonOptions{NS: ns, TOML: toml})
}

// DaemonOptions say how capd is started.
type DaemonOptions struct {
	NS     string   // as for StartDaemon
	TOML   string   // capd.toml
	Env    []string // NAME=VALUE, beside the test's own
	Prefix []string // a command that becomes capd, such as setpriv with its options
	UID    int      // whom its folder belongs to
	// Lacking names features (as capd's status does, separated by commas) that it is to take
	// the kernel for lacking.
	Lacking string
}

// StartDaemonWith is StartDaemon with more to choose.
func StartDaemonWith(t testing.TB, o DaemonOptions) *Daemon {
	t.Helper()
	bin := BuildLacking(t, o.Lacking)
	dir, err := os.MkdirTemp("", "capd-test-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d := &Daemon{NS: o.NS, Dir: dir, Socket: filepath.Join(dir, "capd.sock"), Log: new(Buffer), t: t, bin: bin, env: o.Env, prefix: o.Prefix}
	d.Configure(o.TOML)
	for _, path := range []string{dir, filepath.Join(dir, "capd.toml")} {
		if err := os.Chown(path, o.UID, -1); o.UID != 0 && err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		d.Stop()
		if t.Failed() {
			t.Logf("capd's log:\n%s", d.Log)
		}
	})
	d.Start()
	return d
}

// Configure writes capd.toml.
func (d *Daemon) Configure(toml string) {
	d.t.Helper()
	if err := os.WriteFile(filepath.Join(d.Dir, "capd.toml"), []byte(toml), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

// StateDir is where capd keeps captures.
func (d *Daemon) StateDir() string { return filepath.Join(d.Dir, "state") }

// Start starts a daemon that was stopped or killed.
func (d *Daemon) Start() {
	d.t.Helper()
	args := append(slices.Clone(d.prefix), filepath.Join(d.bin, "capd"), "--config", filepath.Join(d.Dir, "capd.toml"))
	if d.NS != "" {
		args = append([]string{"ip", "netns", "exec", d.NS}, args...)
	}
	d.cmd = exec.Command(args[0], args[1:]...)
	d.cmd.Env = append(os.Environ(), "CAPD_SOCKET="+d.Socket, "CAPD_STATE_DIR="+d.StateDir())
	d.cmd.Env = append(d.cmd.Env, d.env...)
	d.cmd.Stdout, d.cmd.Stderr = d.Log, d.Log
	d.cmd.WaitDelay = 5 * time.Second
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	deadline := time.Now().Add(2 * time.Minute)
	for {
		conn, err := net.Dial("unix", d.Socket)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("capd does not answer: %v\n%s", err, d.Log)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// PID is the daemon's process (ip netns exec becomes it).
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Signal sends a signal to the daemon.
func (d *Daemon) Signal(s os.Signal) {
	d.t.Helper()
	if err := d.cmd.Process.Signal(s); err != nil {
		d.t.Fatal(err)
	}
}

// Kill ends the daemon as a crash would, and waits until it is gone.
func (d *Daemon) Kill() {
	d.t.Helper()
	d.Signal(syscall.SIGKILL)
	_ = d.cmd.Wait()
	d.cmd = nil
}

// Stop ends the daemon in order and gives its exit code. A daemon that is not running
// gives 0.
func (d *Daemon) Stop() int {
	d.t.Helper()
	if d.cmd == nil {
		return 0
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	stuck := time.AfterFunc(60*time.Second, func() { _ = d.cmd.Process.Signal(syscall.SIGABRT) })
	_ = d.cmd.Wait()
	stuck.Stop()
	code := d.cmd.ProcessState.ExitCode()
	d.cmd = nil
	return code
}

// Result is what a command said.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// Capctl runs capctl against the daemon.
func (d *Daemon) Capctl(args ...string) Result {
	d.t.Helper()
	cmd := d.Command(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if cmd.ProcessState == nil {
		d.t.Fatalf("capctl %s: %v", strings.Join(args, " "), err)
	}
	return Result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// Command is a capctl that has not been started.
func (d *Daemon) Command(args ...string) *exec.Cmd {
	return exec.Command(filepath.Join(d.bin, "capctl"), append([]string{"--socket", d.Socket}, args...)...)
}

// Must is Capctl for a command that has to succeed; it gives stdout without the last
// newline.
func (d *Daemon) Must(args ...string) string {
	d.t.Helper()
	r := d.Capctl(args...)
	if r.Code != 0 {
		d.t.Fatalf("capctl %s: exit code %d\n%s%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return strings.TrimSuffix(r.Stdout, "\n")
}

// HTTP is a client whose every request goes to the daemon's socket.
func (d *Daemon) HTTP() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, ExpectContinueTimeout: time.Second,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", d.Socket)
		},
	}}
}

// Call sends a request to the daemon and gives the status and the body.
func (d *Daemon) Call(method, path, body string) (int, string) {
	d.t.Helper()
	req, err := http.NewRequest(method, "http://capd"+path, strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	req.Header.Set("Expect", "100-continue") // a body that is refused is not sent
	resp, err := d.HTTP().Do(req)
	if err != nil {
		d.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp.StatusCode, string(data)
}

// Show gives a capture as the daemon tells it.
func (d *Daemon) Show(ref string) wire.Capture {
	d.t.Helper()
	status, body := d.Call("GET", wire.PathCaptures+"/"+ref, "")
	if status != http.StatusOK {
		d.t.Fatalf("show %s: %d %s", ref, status, body)
	}
	var c wire.Capture
	if err := json.Unmarshal([]byte(body), &c); err != nil {
		d.t.Fatal(err)
	}
	return c
}

// Await polls until the capture satisfies ok, and gives it. It fails the test after three
// minutes.
func (d *Daemon) Await(ref string, what string, ok func(wire.Capture) bool) wire.Capture {
	d.t.Helper()
	deadline := time.Now().Add(3 * time.Minute)
	for {
		c := d.Show(ref)
		if ok(c) {
			return c
		}
		if time.Now().After(deadline) {
			text, _ := json.MarshalIndent(c, "", " ")
			d.t.Fatalf("capture %s does not become %s:\n%s", ref, what, text)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Ruleset is what `nft list ruleset` prints in the daemon's namespace.
func (d *Daemon) Ruleset() string {
	d.t.Helper()
	if d.NS == "" {
		return Run(d.t, "nft", "list", "ruleset")
	}
	return RunIn(d.t, d.NS, "nft", "list", "ruleset")
}
