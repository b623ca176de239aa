package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"capd/testbed"
)

// TestMain makes a client of this program where a test runs it as somebody else.
func TestMain(m *testing.M) {
	if socket := os.Getenv("CAPD_TEST_SOCKET"); socket != "" {
		os.Exit(callAs(socket, os.Args[1], os.Args[2], os.Getenv("CAPD_TEST_LOGIN")))
	}
	os.Exit(m.Run())
}

// callAs makes one call and prints "STATUS BODY".
func callAs(socket, method, path, login string) int {
	if login != "" {
		if err := os.WriteFile("/proc/self/loginuid", []byte(login), 0); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}}
	req, err := http.NewRequest(method, "http://capd"+path, nil)
	if err == nil {
		var resp *http.Response
		if resp, err = client.Do(req); err == nil {
			defer resp.Body.Close()
			text, _ := io.ReadAll(resp.Body)
			fmt.Printf("%d %s", resp.StatusCode, text)
			return 0
		}
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// someone is a user to call as.
type someone struct {
	uid, gid uint32
	groups   []uint32
	login    string // loginuid to take first; only for root
}

// caller is this test's program where every user can run it.
func caller(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "capd-caller-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "caller")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(path, text, 0o755), os.Chmod(path, 0o755)); err != nil {
		t.Fatal(err)
	}
	return path
}

// doAs makes a call as somebody else.
func (s *served) doAs(program string, who someone, method, path string) (status int, body string) {
	s.t.Helper()
	cmd := exec.Command(program, method, path)
	cmd.Dir = "/"
	cmd.Env = []string{"CAPD_TEST_SOCKET=" + s.socket, "CAPD_TEST_LOGIN=" + who.login}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: who.uid, Gid: who.gid, Groups: who.groups}}
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			s.t.Fatalf("call as %+v: %v: %s", who, err, exit.Stderr)
		}
		s.t.Fatalf("call as %+v: %v", who, err)
	}
	code, body, _ := strings.Cut(string(out), " ")
	status, _ = strconv.Atoi(code)
	return status, strings.TrimSuffix(body, "\n")
}

// gid gives the number of a group that the machine has.
func gid(t *testing.T, name string) uint32 {
	t.Helper()
	g, err := user.LookupGroup(name)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseUint(g.Gid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

// TestRights has processes of other users call, and holds what each may do. The groups
// are ones that every system has.
func TestRights(t *testing.T) {
	testbed.NeedRoot(t)
	program := caller(t)
	d := fakeWithFiles(t)
	s := serve(t, d, Access{ControlGroup: "adm", ViewGroup: "users"})
	adm, users := gid(t, "adm"), gid(t, "users")
	nobody := uint32(65534)
	if u, err := user.LookupId("65534"); err != nil || u.Username != "nobody" {
		testbed.Lacking(t, "the user nobody (65534)")
	}
	many := make([]uint32, 300) // more than SO_PEERGROUPS' first buffer takes
	for i := range many {
		many[i] = 100000 + uint32(i)
	}
	reads := []string{"GET /v1/captures", "GET /v1/captures/voip", "GET /v1/destinations", "GET /v1/status", "GET /metrics", "POST /v1/explain", "GET /client/v4/accounts/a/pcaps", "GET /client/v4/accounts/a/pcaps/voip", "GET /client/v4/accounts/a/pcaps/ownership"}
	changes := []string{"POST /v1/captures", "POST /v1/captures/voip/stop", "POST /v1/captures/voip/retry", "DELETE /v1/captures/voip", "GET /v1/captures/voip/files/0001.pcapng",
		"POST /v1/destinations/soc/check", "POST /client/v4/accounts/a/pcaps", "PUT /client/v4/accounts/a/pcaps/voip/stop", "GET /client/v4/accounts/a/pcaps/voip/download",
		"POST /client/v4/accounts/a/pcaps/ownership", "POST /client/v4/accounts/a/pcaps/ownership/validate", "DELETE /client/v4/accounts/a/pcaps/ownership/x"}
	for _, c := range []struct {
		name          string
		who           someone
		reads, change bool
	}{
		{"root", someone{}, true, true},
		{"root without groups of its own", someone{gid: nobody}, true, true},
		{"a stranger", someone{uid: nobody, gid: nobody}, false, false},
		{"a stranger in root's group", someone{uid: nobody, gid: 0}, false, false},
		{"control by the first group", someone{uid: nobody, gid: adm}, true, true},
		{"control by another group", someone{uid: nobody, gid: nobody, groups: []uint32{users, adm}}, true, true},
		{"control by the last of many", someone{uid: nobody, gid: nobody, groups: append(slices.Clone(many), adm)}, true, true},
		{"many groups and none that counts", someone{uid: nobody, gid: nobody, groups: many}, false, false},
		{"view by the first group", someone{uid: nobody, gid: users}, true, false},
		{"view by another group", someone{uid: nobody, gid: nobody, groups: []uint32{users}}, true, false},
	} {
		for _, set := range []struct {
			calls []string
			may   bool
		}{{reads, c.reads}, {changes, c.change}} {
			for _, text := range set.calls {
				method, path, _ := strings.Cut(text, " ")
				status, body := s.doAs(program, c.who, method, path)
				if (status != 403) != set.may {
					t.Errorf("%s: %s: %d %s", c.name, text, status, body)
				}
			}
		}
	}

	stranger := someone{uid: nobody, gid: nobody}
	for _, c := range []struct {
		access       Access
		method, path string
		want         string
	}{
		{Access{ControlGroup: "adm", ViewGroup: "users"}, "POST", "/v1/captures", `{"error":{"code":"forbidden","message":"user nobody (uid 65534) may not start captures: that takes root or the group adm","hint":"as root: usermod -aG adm nobody; then log in again"}}`},
		{Access{ControlGroup: "adm", ViewGroup: "users"}, "GET", "/v1/captures", `{"error":{"code":"forbidden","message":"user nobody (uid 65534) may not list captures: that takes root or the group adm or users","hint":"as root: usermod -aG users nobody; then log in again"}}`},
		{Access{ControlGroup: "", ViewGroup: "users"}, "GET", "/v1/status", `{"error":{"code":"forbidden","message":"user nobody (uid 65534) may not see the status: that takes root or the group users","hint":"as root: usermod -aG users nobody; then log in again"}}`},
		{Access{ControlGroup: "", ViewGroup: ""}, "GET", "/v1/captures/voip/files/0001.pcapng", `{"error":{"code":"forbidden","message":"user nobody (uid 65534) may not read packets: that takes root","hint":"run it as root, with sudo"}}`},
		{Access{ControlGroup: "adm", ViewGroup: ""}, "PUT", "/client/v4/accounts/a/pcaps/voip/stop", `{"success":false,"errors":[{"code":1403,"message":"user nobody (uid 65534) may not stop captures: that takes root or the group adm (as root: usermod -aG adm nobody; then log in again)"}],"messages":[],"result":null}`},
	} {
		s.handler.SetAccess(c.access)
		if status, body := s.doAs(program, stranger, c.method, c.path); status != 403 || body != c.want {
			t.Errorf("%s %s: %d %s\nwant %s", c.method, c.path, status, body, c.want)
		}
	}
	if lines := s.journal.lines("action=stop result=forbidden reason=\"user nobody (uid 65534) may not stop captures: that takes root or the group adm\" uid=65534 user=nobody"); len(lines) == 0 || !strings.Contains(lines[0], "capture=voip") {
		t.Errorf("a refused stop is not in the journal: %q", s.journal.lines("audit"))
	}

	s.handler.SetAccess(Access{ControlGroup: "no-such-group", ViewGroup: "users"})
	for range 3 {
		if status, body := s.doAs(program, stranger, "GET", "/v1/status"); status != 403 {
			t.Errorf("a group that does not exist lets in: %s", body)
		}
	}
	if lines := s.journal.lines("level=WARN"); len(lines) != 1 || !strings.Contains(lines[0], "group=no-such-group") {
		t.Errorf("the warning: %q", lines)
	}
}

// TestLogin holds that who logged in before sudo is in the record.
func TestLogin(t *testing.T) {
	testbed.NeedRoot(t)
	d := &fakeDaemon{}
	s := serve(t, d, Access{})
	if _, err := os.ReadFile("/proc/self/loginuid"); err != nil {
		testbed.Lacking(t, "a kernel with loginuids (CONFIG_AUDIT)")
	}
	s.doAs(caller(t), someone{login: "4294967295"}, "POST", "/v1/captures") // none: proc_pid_loginuid(5)
	if _, by := d.lastRequest(); by.LoginUID != nil || by.User != "root" || by.PID <= 0 {
		t.Errorf("without a login: %+v", by)
	}
	s.doAs(caller(t), someone{login: "1234"}, "POST", "/v1/captures")
	if _, by := d.lastRequest(); by.LoginUID == nil || *by.LoginUID != 1234 {
		t.Errorf("with a login: %+v", by)
	}
	if lines := s.journal.lines("login_uid=1234"); len(lines) != 1 {
		t.Errorf("the journal: %q", lines)
	}
}

// TestNoPeer holds that a connection that has no credentials may do nothing.
func TestNoPeer(t *testing.T) {
	h := New(&fakeDaemon{}, Access{}, (&journal{}).logger())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := NewServer(h, (&journal{}).logger())
	done := make(chan struct{})
	go func() { defer close(done); server.Serve(l) }()
	defer func() { server.Close(); <-done }()
	resp, err := http.Get("http://" + l.Addr().String() + "/v1/status")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 403 {
		t.Errorf("over TCP: %d", resp.StatusCode)
	}
}

func TestListenMode(t *testing.T) {
	before := unix.Umask(0o077)
	defer unix.Umask(before)
	path := filepath.Join(t.TempDir(), "run", "capd.sock")
	// Whoever looks at any moment sees no socket, or one with the right mode.
	var stop atomic.Bool
	seen := make(chan fs.FileMode, 1)
	go func() {
		wrong := fs.FileMode(0)
		for !stop.Load() {
			if info, err := os.Lstat(path); err == nil && info.Mode() != fs.ModeSocket|0o666 {
				wrong = info.Mode()
			}
		}
		seen <- wrong
	}()
	for range 300 {
		l, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	stop.Store(true)
	if wrong := <-seen; wrong != 0 {
		t.Errorf("there was a socket with the mode %v", wrong)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket stays: %v", err)
	}
	if info, err := os.Stat(filepath.Dir(path)); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("its folder: %v %v", info, err)
	}
	if now := unix.Umask(0o077); now != 0o077 {
		t.Errorf("the process's umask is %#o now", now)
	}
}

func TestListenStale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "capd.sock")
	dead, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	dead.(*net.UnixListener).SetUnlinkOnClose(false)
	if _, err := Listen(path); !errors.Is(err, errInUse) {
		t.Errorf("somebody else listens: %v", err)
	}
	dead.Close()
	l, err := Listen(path)
	if err != nil {
		t.Fatalf("a dead one's socket: %v", err)
	}
	if _, err := Listen(path); !errors.Is(err, errInUse) || err.Error() != "listen at "+path+": another capd answers there" {
		t.Errorf("another capd listens: %v", err)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the first is disturbed: %v", err)
	}
	conn.Close()
	l.Close()

	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("a file is there: %v", err)
	}
	if text, _ := os.ReadFile(path); string(text) != "mine" {
		t.Errorf("the file is touched")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if l, err = Listen(path); err != nil {
		t.Fatalf("after failures: %v", err)
	}
	l.Close()
}
