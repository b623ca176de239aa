package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"capd/ctl/wire"
	"capd/testbed"
)

// deliverChild is capd's child, the delivery process.
func deliverChild(t *testing.T, d *testbed.Daemon) int {
	t.Helper()
	out, err := exec.Command("ps", "-o", "pid=", "--ppid", strconv.Itoa(d.PID())).Output()
	pid, convErr := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil || convErr != nil {
		t.Fatalf("capd's children: %q, %v, %v", out, err, convErr)
	}
	return pid
}

// memoryHolds tells whether a process has a text anywhere in what it may write to.
func memoryHolds(t *testing.T, pid int, text string) bool {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	read := 0
	for line := range strings.Lines(string(maps)) {
		if strings.Contains(line, "[v") { // vvar, vdso, vsyscall
			continue
		}
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if !strings.HasPrefix(mode, "rw") {
			continue
		}
		const step = 4 << 20
		for at := from; at < to; at += step {
			buf := make([]byte, min(to-at, step+int64(len(text))))
			n, err := mem.ReadAt(buf, at)
			if read += n; bytes.Contains(buf[:n], []byte(text)) {
				return true
			}
			if err != nil {
				break // not populated, or unmapped meanwhile
			}
		}
	}
	if read < 1<<20 {
		t.Fatalf("only %d bytes of the memory of process %d could be read", read, pid)
	}
	return false
}

// write writes a file for root alone, or for all.
func write(t *testing.T, path, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// Keys and passwords are in the delivery process's memory and nowhere else: in no log,
// error, answer, record or core dump, and never in capd.
func TestSecretsStayInTheDeliveryProcess(t *testing.T) {
	testbed.NeedRoot(t)
	sshd, s3 := testbed.NewSSHD(t), testbed.NewS3(t, testbed.S3Options{})
	key, err := os.ReadFile(sshd.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	const password, wrongSecret, noKey = "marked-password-4711", "marked-wrong-secret-4712", "marked-text-that-is-no-key-4713"
	marks := []string{s3.Secret, strings.Split(string(key), "\n")[2], password, wrongSecret, noKey}

	keys := t.TempDir()
	write(t, filepath.Join(keys, "soc-key"), string(key), 0o440) // as systemd has them
	sftp := func(name, login string) string {
		return fmt.Sprintf("[destination.%s]\ntype = \"sftp\"\naddress = %q\nuser = %q\nhost_key = %q\n%s\n", name, sshd.Address, sshd.User, sshd.HostKey, login)
	}
	bucket := func(name, secret string) string {
		return fmt.Sprintf("[destination.%s]\ntype = \"s3\"\nendpoint = %q\nbucket = %q\naccess_key_id = %q\nsecret_access_key_file = %q\n",
			name, s3.Endpoint, s3.Bucket, s3.AccessKeyID, secret)
	}
	good := []string{"soc", "evidence"}
	toml := "[daemon]\nlog_level = \"debug\"\n" + sftp("soc", `private_key = "credential:soc-key"`) + bucket("evidence", s3.SecretFile)
	bad := map[string]string{ // and the word that the mend must hold
		"open": "chmod 600", "nokey": "ssh-keygen", "password": "password is the first line", "wrong": "secret",
	}
	toml += sftp("open", fmt.Sprintf("private_key = %q", write(t, filepath.Join(keys, "open"), string(key), 0o644))) +
		sftp("nokey", fmt.Sprintf("private_key = %q", write(t, filepath.Join(keys, "nokey"), noKey, 0o600))) +
		sftp("password", fmt.Sprintf("password_file = %q", write(t, filepath.Join(keys, "password"), password, 0o600))) +
		bucket("wrong", write(t, filepath.Join(keys, "wrong"), wrongSecret, 0o600))

	dumps := openFolder(t, 0)
	d := testbed.StartDaemonWith(t, testbed.DaemonOptions{TOML: toml, Env: []string{"CREDENTIALS_DIRECTORY=" + keys, "GOTRACEBACK=crash"},
		Prefix: []string{"sh", "-c", "cd " + dumps + " && ulimit -c unlimited && exec \"$@\"", "sh"}})
	var said strings.Builder
	say := func(r testbed.Result) testbed.Result {
		said.WriteString(r.Stdout + r.Stderr)
		return r
	}
	for _, to := range good {
		if r := say(d.Capctl("destination", "check", to)); r.Code != 0 {
			t.Errorf("check %s: %s%s", to, r.Stdout, r.Stderr)
		}
		id := d.Must("start", "-d", to, "-f", writeRequest(t))
		talkTo(t, 10)
		d.Must("stop", id)
		d.Await(id, "complete", isComplete)
	}
	for to, mend := range bad {
		if r := say(d.Capctl("destination", "check", to)); r.Code != 7 || !strings.Contains(r.Stdout+r.Stderr, mend) {
			t.Errorf("check %s: exit code %d, %s%s", to, r.Code, r.Stdout, r.Stderr)
		}
		if r := say(d.Capctl("start", "-d", to, "-f", writeRequest(t))); r.Code != 7 {
			t.Errorf("start -d %s: exit code %d", to, r.Code)
		}
		id := d.Must("start", "--no-check", "-d", to, "-f", writeRequest(t))
		talkTo(t, 1)
		d.Must("stop", id)
		d.Await(id, "failed", func(c wire.Capture) bool { return c.Status == wire.StatusFailed })
		say(d.Capctl("show", id))
		say(d.Capctl("--json", "show", id))
	}
	for _, command := range [][]string{{"list", "--all"}, {"--json", "list", "--all"}, {"destination", "list"}, {"--json", "destination", "list"}, {"doctor"}} {
		say(d.Capctl(command...))
	}
	for _, path := range []string{wire.PathStatus, wire.PathDestinations, wire.PathCaptures + "?all=true", "/metrics"} {
		_, body := d.Call("GET", path, "")
		said.WriteString(body)
	}
	child := deliverChild(t, d)
	if !memoryHolds(t, child, s3.Secret) {
		t.Error("the delivery process does not hold the secret that it signs with: this test looks in the wrong place")
	}
	for _, mark := range marks {
		if memoryHolds(t, d.PID(), mark) {
			t.Errorf("capd has %q in its memory", mark)
		}
	}
	// A core dump of the delivery process would hold them: it leaves none.
	if err := syscall.Kill(child, syscall.SIGABRT); err != nil {
		t.Fatal(err)
	}
	for tries := 0; say(d.Capctl("destination", "check", "soc")).Code != 0; tries++ { // until the next one is there
		if tries > 100 {
			t.Fatal("the delivery process does not come back")
		}
	}
	if left := found(t, dumps); len(left) > 0 {
		t.Errorf("the delivery process left %v", left)
	}
	// Someone writes the secret itself where its file's path belongs.
	d.Configure(toml + bucket("slip", wrongSecret))
	d.Signal(syscall.SIGHUP)
	for !strings.Contains(d.Log.String(), "is refused, the old one stays") {
		time.Sleep(5 * time.Millisecond)
	}
	d.Signal(syscall.SIGABRT)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.PID()))
		if err != nil || bytes.Contains(stat, []byte(") Z ")) || time.Now().After(deadline) {
			break
		}
	}
	d.Kill()
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	if err != nil {
		t.Fatal(err)
	}
	dumped := found(t, dumps)
	if !strings.ContainsAny(string(pattern), "/|") && len(dumped) == 0 {
		t.Error("capd's own core dump is not there: this test looks in the wrong place")
	}

	for name, text := range map[string]string{"an answer": said.String(), "the log": d.Log.String()} {
		for _, mark := range marks {
			if strings.Contains(text, mark) {
				t.Errorf("%q is in %s:\n%s", mark, name, text)
			}
		}
	}
	for _, folder := range []string{d.StateDir(), sshd.Root, filepath.Join(s3.Root, s3.Bucket), dumps} {
		for _, path := range found(t, folder) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, mark := range marks {
				// The slip above has brought this one into capd's memory.
				if bytes.Contains(data, []byte(mark)) && (folder != dumps || mark != wrongSecret) {
					t.Errorf("%q is in %s", mark, path)
				}
			}
		}
	}
}

// A box in a cloud gets its keys from the instance's metadata service, in its session
// protocol (IMDSv2), and that connection is capd's own too.
func TestCredentialsOfTheInstance(t *testing.T) {
	ns := testbed.NewNS(t)
	testbed.RunIn(t, ns, "ip", "addr", "add", "169.254.169.254/32", "dev", "lo")
	s3 := testbed.NewS3(t, testbed.S3Options{})
	relay := testbed.NewRelay(t, ns, netip.MustParseAddrPort("127.0.0.1:0"), s3.Address)
	var l net.Listener
	testbed.In(t, ns, func() (err error) {
		l, err = net.Listen("tcp", "169.254.169.254:80")
		return err
	})
	const session = "the session's token"
	service := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodPut && r.URL.Path == "/latest/api/token" && r.Header.Get("X-aws-ec2-metadata-token-ttl-seconds") != "":
			fmt.Fprint(w, session)
		case r.Header.Get("X-aws-ec2-metadata-token") != session:
			http.Error(w, "a session is needed", http.StatusUnauthorized)
		case strings.TrimSuffix(r.URL.Path, "/") == "/latest/meta-data/iam/security-credentials":
			fmt.Fprint(w, "capd-role")
		case r.URL.Path == "/latest/meta-data/iam/security-credentials/capd-role":
			_ = json.NewEncoder(w).Encode(map[string]string{"Code": "Success", "AccessKeyId": s3.AccessKeyID, "SecretAccessKey": s3.Secret,
				"Expiration": time.Now().Add(time.Hour).UTC().Format(time.RFC3339)})
		default:
			http.NotFound(w, r)
		}
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = service.Serve(l) }()
	defer func() { service.Close(); <-done }()

	d := testbed.StartDaemon(t, ns, fmt.Sprintf("[destination.evidence]\ntype = \"s3\"\nendpoint = \"http://%s\"\nregion = %q\nbucket = %q\npath_style = true\ncredentials = \"instance\"\n",
		relay.Address, s3.Region, s3.Bucket))
	everything := d.Must("start", "--hook", "prerouting,output,input")
	if out := d.Must("destination", "check", "evidence"); !strings.Contains(out, "credentials from instance") {
		t.Errorf("check: %s", out)
	}
	id := d.Must("start", "-d", "evidence")
	d.Must("stop", id)
	d.Await(id, "complete", isComplete)
	d.Must("stop", everything)
	for _, path := range files(t, d, everything) {
		if packets := testbed.TsharkPackets(t, path, "tcp"); len(packets) > 0 {
			t.Errorf("%d packets of capd's own were captured, the first from %s to %s", len(packets), packets[0].Source, packets[0].Destination)
		}
	}
}
