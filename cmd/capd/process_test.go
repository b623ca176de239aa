package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"capd/ctl/wire"
	"capd/testbed"
)

// Users of the two processes in tests; nothing else on the machine has them.
const (
	capdUID    = 64101
	deliverUID = 64102
)

// asUser is a command that becomes another as a user with one capability or none.
func asUser(uid int, capability string) []string {
	args := []string{"setpriv", fmt.Sprintf("--reuid=%d", uid), fmt.Sprintf("--regid=%d", uid), "--clear-groups"}
	if capability != "" {
		return append(args, "--inh-caps=+"+capability, "--ambient-caps=+"+capability, "--")
	}
	return append(args, "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--")
}

// startDeliver starts a delivery process with a user of its own, and gives its id and
// its end.
func startDeliver(t *testing.T, socket string) (pid int, kill func()) {
	t.Helper()
	args := append(asUser(deliverUID, ""), filepath.Join(testbed.Build(t), "capd"), "deliver", "--listen", socket, "--peer-uid", fmt.Sprint(capdUID))
	cmd := exec.Command(args[0], args[1:]...)
	log := new(testbed.Buffer)
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		if t.Failed() {
			t.Logf("the delivery process's log:\n%s", log)
		}
	})
	for !strings.Contains(log.String(), "waiting for capd") {
		select {
		case <-ended:
			t.Fatalf("the delivery process ended: %s", log)
		case <-time.After(5 * time.Millisecond):
		}
	}
	return cmd.Process.Pid, func() { cmd.Process.Kill(); <-ended }
}

// ownedBy copies a file into a folder that everybody may look into, for one user alone.
func ownedBy(t *testing.T, dir, path string, uid int) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, filepath.Base(path))
	if err := os.WriteFile(to, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(to, uid, uid); err != nil {
		t.Fatal(err)
	}
	return to
}

// openFolder is a folder that everybody may look into and that belongs to a user.
func openFolder(t *testing.T, uid int) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "capd-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, uid, -1); err != nil {
		t.Fatal(err)
	}
	return dir
}

// As it is packaged: capd has CAP_NET_ADMIN and no key, the delivery process has the keys
// and no capability, and each has a user of its own.
func TestTheDeliveryProcessHasAUserOfItsOwn(t *testing.T) {
	testbed.NeedRoot(t)
	testbed.NeedCommand(t, "setpriv")
	sshd := testbed.NewSSHD(t)
	s3 := testbed.NewS3(t, testbed.S3Options{TLS: true})
	keys := openFolder(t, deliverUID)
	list := []destination{
		{"soc", fmt.Sprintf("type = \"sftp\"\naddress = %q\nuser = %q\nprivate_key = %q\nhost_key = %q\npath = \"in/{host}/{id}/{file}\"\n",
			sshd.Address, sshd.User, ownedBy(t, keys, sshd.PrivateKey, deliverUID), sshd.HostKey), sshd.Root, "readback", sshd.Start, sshd.Stop, nil},
		{"evidence", fmt.Sprintf("type = \"s3\"\nendpoint = %q\nregion = %q\nbucket = %q\npath_style = true\nca_file = %q\naccess_key_id = %q\nsecret_access_key_file = %q\n",
			s3.Endpoint, s3.Region, s3.Bucket, ownedBy(t, keys, s3.CAFile, deliverUID), s3.AccessKeyID, ownedBy(t, keys, s3.SecretFile, deliverUID)),
			filepath.Join(s3.Root, s3.Bucket), "checksum", s3.Start, s3.Stop, nil},
	}
	socket := filepath.Join(openFolder(t, deliverUID), "deliver.sock")
	d := testbed.StartDaemonWith(t, testbed.DaemonOptions{TOML: profiles(list, ""), UID: capdUID,
		Env: []string{"CAPD_DELIVER_SOCKET=" + socket}, Prefix: asUser(capdUID, "net_admin")})
	// It is not there yet: captures run all the same, and wait for it.
	waiting := d.Must("start", "--no-check", "-d", "soc", "-f", writeRequest(t))
	talkTo(t, 20)
	pid, kill := startDeliver(t, socket)
	for _, to := range list {
		if out := d.Must("destination", "check", to.name); strings.Contains(out, "✗") {
			t.Errorf("check: %s", out)
		}
		id := d.Must("start", "-d", to.name, "-f", writeRequest(t))
		talkTo(t, 100)
		d.Must("stop", id)
		c := d.Await(id, "complete", func(c wire.Capture) bool {
			noInternetSockets(t, d)
			return isComplete(c)
		})
		checkDelivered(t, d, c, to)
		for _, path := range found(t, to.root) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Its end touches no capture, and the next one takes over.
	kill()
	talkTo(t, 20)
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
		t.Error("the delivery process was not killed")
	}
	if r := d.Capctl("destination", "check", "soc"); r.Code != 7 || !strings.Contains(r.Stdout+r.Stderr, "delivery process") {
		t.Errorf("check while the process is away: exit code %d, %s%s", r.Code, r.Stdout, r.Stderr)
	}
	if c := d.Show(waiting); c.Status != wire.StatusRunning {
		t.Errorf("the capture is %s", c.Status)
	}
	startDeliver(t, socket)
	d.Must("stop", waiting)
	c := d.Await(waiting, "complete", isComplete)
	checkDelivered(t, d, c, list[0])
	if c.Packets.Captured != 240 {
		t.Errorf("%d packets of 240 are in the capture", c.Packets.Captured)
	}
	// What belongs to whom: neither process may read the other's.
	for _, name := range []string{"user_key", "secret"} {
		if out, err := runAs(capdUID, "cat", filepath.Join(keys, name)); err == nil {
			t.Errorf("capd's user may read %s: %d bytes", name, len(out))
		}
	}
	if out, err := runAs(deliverUID, "ls", filepath.Join(d.StateDir(), "spool")); err == nil {
		t.Errorf("the delivery process may look into the spool: %s", out)
	}
	if r, err := runAs(deliverUID, filepath.Join(testbed.Build(t), "capctl"), "--socket", d.Socket, "list"); err == nil {
		t.Errorf("the delivery process may command capd: %s", r)
	}
}

func runAs(uid int, command ...string) ([]byte, error) {
	args := append(asUser(uid, ""), command...)
	return exec.Command(args[0], args[1:]...).CombinedOutput()
}

// From its first instruction to its last capd asks the kernel for no internet socket.
func TestCapdMakesNoInternetSocket(t *testing.T) {
	testbed.NeedRoot(t)
	testbed.NeedCommand(t, "strace", "setpriv")
	sshd, folder := testbed.NewSSHD(t), openFolder(t, deliverUID)
	toml := fmt.Sprintf("[destination.soc]\ntype = \"sftp\"\naddress = %q\nuser = %q\nprivate_key = %q\nhost_key = %q\n",
		sshd.Address, sshd.User, ownedBy(t, folder, sshd.PrivateKey, deliverUID), sshd.HostKey)
	socket, calls := filepath.Join(folder, "deliver.sock"), filepath.Join(folder, "calls")
	startDeliver(t, socket)
	// -D: capd itself is the child, strace looks on from elsewhere.
	d := testbed.StartDaemonWith(t, testbed.DaemonOptions{TOML: toml, UID: capdUID, Env: []string{"CAPD_DELIVER_SOCKET=" + socket},
		Prefix: append([]string{"strace", "-D", "-f", "-qq", "-e", "trace=socket,socketpair", "-o", calls}, asUser(capdUID, "net_admin")...)})
	id := d.Must("start", "-d", "soc", "-f", writeRequest(t))
	talkTo(t, 10)
	d.Must("stop", id)
	d.Await(id, "complete", isComplete)
	if code := d.Stop(); code != 0 {
		t.Errorf("capd's exit code is %d", code)
	}
	text, err := os.ReadFile(calls)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "AF_INET") || strings.Contains(line, "AF_PACKET") {
			t.Errorf("capd: %s", line)
		}
	}
	if !strings.Contains(string(text), "AF_NETLINK") || !strings.Contains(string(text), "AF_UNIX") {
		t.Errorf("this test does not see what capd does:\n%s", text)
	}
}

// systemd makes the socket and hands it over; another kind of socket is refused.
func TestDeliverTakesSystemdsSocket(t *testing.T) {
	testbed.NeedRoot(t)
	sshd, folder := testbed.NewSSHD(t), openFolder(t, capdUID)
	start := func(network, path string) (*exec.Cmd, *testbed.Buffer) {
		l, err := net.ListenUnix(network, &net.UnixAddr{Name: path, Net: network})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		l.SetUnlinkOnClose(false)
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := os.Chown(path, capdUID, -1); err != nil {
			t.Fatal(err)
		}
		args := asUser(deliverUID, "")
		args = append(args, "sh", "-c", `export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"`, "sh", filepath.Join(testbed.Build(t), "capd"), "deliver", "--peer-uid", fmt.Sprint(capdUID))
		cmd, log := exec.Command(args[0], args[1:]...), new(testbed.Buffer)
		cmd.ExtraFiles, cmd.Stderr = []*os.File{f}, log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd, log
	}
	wrong, log := start("unix", filepath.Join(folder, "stream.sock"))
	if err := wrong.Wait(); err == nil || !strings.Contains(log.String(), "ListenSequentialPacket=") {
		t.Errorf("a stream socket: %v: %s", err, log)
	}
	socket := filepath.Join(folder, "deliver.sock")
	good, log := start("unixpacket", socket)
	ended := make(chan error, 1)
	go func() { ended <- good.Wait() }()
	toml := fmt.Sprintf("[destination.soc]\ntype = \"sftp\"\naddress = %q\nuser = %q\nprivate_key = %q\nhost_key = %q\n",
		sshd.Address, sshd.User, ownedBy(t, openFolder(t, deliverUID), sshd.PrivateKey, deliverUID), sshd.HostKey)
	d := testbed.StartDaemonWith(t, testbed.DaemonOptions{TOML: toml, UID: capdUID, Env: []string{"CAPD_DELIVER_SOCKET=" + socket}, Prefix: asUser(capdUID, "net_admin")})
	if out := d.Must("destination", "check", "soc"); strings.Contains(out, "✗") {
		t.Errorf("check: %s", out)
	}
	if code := d.Stop(); code != 0 {
		t.Errorf("capd's exit code is %d", code)
	}
	if err := good.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the delivery process's end: %v: %s", err, log)
	}
}

// A capture whose start SIGTERM finds half way is refused, or ends as all others do: none is
// cut off.
func TestStartsAtTheStop(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	for range 5 {
		var started atomic.Int32
		var starting sync.WaitGroup
		for range 4 {
			starting.Go(func() {
				for {
					r := d.Capctl("start", "udp port 5000")
					if r.Code != 0 {
						return
					}
					started.Add(1)
					if d.Capctl("stop", strings.TrimSpace(r.Stdout)).Code != 0 {
						return
					}
				}
			})
		}
		await(t, "captures are started", func() bool { return started.Load() > 4 })
		if code := d.Stop(); code != 0 {
			t.Errorf("capd's exit code is %d", code)
		}
		starting.Wait()
		noRules(t, p.B)
		d.Start()
		var list wire.CaptureList
		if _, body := d.Call("GET", wire.PathCaptures, ""); json.Unmarshal([]byte(body), &list) != nil || len(list.Captures) < 5 {
			t.Fatalf("after a restart: %s", body)
		}
		for _, c := range list.Captures {
			if checkCounts(t, c); c.Status != wire.StatusComplete || c.StopReason == wire.StopInterrupted {
				t.Errorf("after a restart: %s, %s, %+v", c.Status, c.StopReason, c.Error)
			}
		}
	}
}
