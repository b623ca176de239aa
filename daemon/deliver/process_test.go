package deliver_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"capd/ctl/wire"
	"capd/daemon/deliver"
	"capd/daemon/deliver/s3"
	"capd/daemon/deliver/sftp"
	"capd/daemon/deliver/storetest"
	"capd/testbed"
)

// TestMain makes the test binary its own delivery process.
func TestMain(m *testing.M) {
	switch os.Getenv("CAPD_TEST_PROCESS") {
	case "deliver":
		os.Exit(child())
	case "listen":
		os.Exit(listening())
	case "parent":
		os.Exit(parent())
	case "mute":
		os.NewFile(deliver.ChildDescriptor, "socket").Write([]byte("this is no message"))
		time.Sleep(time.Hour)
	case "broken":
		os.Exit(3)
	}
	os.Exit(m.Run())
}

func child() int {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := deliver.Confine(log); err != nil {
		log.Error("confine", "err", err)
		return 1
	}
	err := deliver.Serve(context.Background(), os.NewFile(deliver.ChildDescriptor, "socket"), deliver.ServeOptions{
		Kinds:    map[string]deliver.OpenFunc{deliver.TypeSFTP: sftp.Open, deliver.TypeS3: s3.Open},
		Timeouts: storetest.Timeouts(), Logger: log,
	})
	if err != nil {
		log.Error("serve", "err", err)
		return 1
	}
	return 0
}

// parent starts a delivery process, says its id, and waits to be killed.
func parent() int {
	os.Setenv("CAPD_TEST_PROCESS", "deliver")
	c := deliver.Start(context.Background(), deliver.Options{Command: []string{"/proc/self/exe"}, Logger: slog.New(slog.DiscardHandler)})
	for c.PID() == 0 {
		time.Sleep(time.Millisecond)
	}
	fmt.Println(c.PID())
	time.Sleep(time.Hour)
	return 0
}

// client starts a delivery process of the kind, which ends with the test.
func client(t *testing.T, kind string, o deliver.Options, profiles ...deliver.Profile) *deliver.Client {
	t.Helper()
	t.Setenv("CAPD_TEST_PROCESS", kind)
	o.Command, o.Logger, o.Stderr = []string{"/proc/self/exe"}, slog.New(slog.NewTextHandler(t.Output(), nil)), os.Stderr
	o.Profiles = func(name string) (deliver.Profile, error) {
		for _, p := range profiles {
			if p.Name == name {
				return p, nil
			}
		}
		return deliver.Profile{}, fmt.Errorf("there is no destination %q", name)
	}
	c := deliver.Start(t.Context(), o)
	t.Cleanup(c.Close)
	return c
}

// segment makes a file.
func segment(t *testing.T, data []byte) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "segment")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func sftpProfile(s *testbed.SSHD) deliver.Profile {
	return deliver.Profile{Name: "soc", Type: deliver.TypeSFTP, Address: s.Address, User: s.User, PrivateKey: s.PrivateKey, KnownHosts: s.KnownHosts}
}

func s3Profile(s *testbed.S3) deliver.Profile {
	return deliver.Profile{Name: "evidence", Type: deliver.TypeS3, Endpoint: s.Endpoint, Bucket: s.Bucket, CAFile: s.CAFile, AccessKeyID: s.AccessKeyID, SecretAccessKeyFile: s.SecretFile}
}

func put(destination, file string, data []byte) deliver.Put {
	return deliver.Put{Destination: destination, Size: int64(len(data)), Vars: deliver.Vars{Host: "edge-1", ID: "0f8c0f8c0f8c0f8c", File: file, Time: time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)}}
}

func reason(err error) deliver.Reason {
	var e *deliver.Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}

func TestAFileGoesThroughTheProcessToBothKinds(t *testing.T) {
	sshd, gw := testbed.NewSSHD(t), testbed.NewS3(t, testbed.S3Options{TLS: true})
	c := client(t, "deliver", deliver.Options{}, sftpProfile(sshd), s3Profile(gw))
	_, data := storetest.Object("", 3<<20)
	f := segment(t, data)
	for name, root := range map[string]string{"soc": sshd.Root, "evidence": filepath.Join(gw.Root, gw.Bucket)} {
		p := put(name, "0001.pcapng", data)
		p.SHA256 = fmt.Sprintf("%x", sha256.Sum256(data))
		result, err := c.Put(t.Context(), p, f)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(root, "2026-11-23/edge-1/0f8c0f8c0f8c0f8c/0001.pcapng"))
		if err != nil || !bytes.Equal(got, data) || result.SHA256 != p.SHA256 || result.Bytes != p.Size {
			t.Errorf("%s: %v, %d bytes, %+v", name, err, len(got), result)
		}
		check, err := c.Check(t.Context(), name)
		if err != nil || !check.OK {
			t.Errorf("%s: %+v, %v", name, check, err)
		}
	}
	if at, err := f.Seek(0, 1); at != 0 || err != nil {
		t.Errorf("the caller's file was moved to %d (%v)", at, err)
	}
}

func TestAChallengeGoesThroughTheProcessToBothKinds(t *testing.T) {
	sshd, gw := testbed.NewSSHD(t), testbed.NewS3(t, testbed.S3Options{TLS: true})
	soc, evidence := sftpProfile(sshd), s3Profile(gw)
	soc.Path, evidence.Path = "in/{date}/{file}", "evidence/{id}/{file}"
	c := client(t, "deliver", deliver.Options{}, soc, evidence)
	const file = "ownership-challenge-1.txt"
	for name, path := range map[string]string{"soc": filepath.Join(sshd.Root, "in", file), "evidence": filepath.Join(gw.Root, gw.Bucket, "evidence", file)} {
		if err := c.Challenge(t.Context(), name, file, []byte("a token")); err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(path); err != nil || string(data) != "a token" {
			t.Errorf("%s: %q, %v", name, data, err)
		}
		if data, err := c.ReadChallenge(t.Context(), name, file); err != nil || string(data) != "a token" {
			t.Errorf("%s: read %q, %v", name, data, err)
		}
		if err := c.RemoveChallenge(t.Context(), name, file); err != nil {
			t.Error(err)
		}
		if _, err := c.ReadChallenge(t.Context(), name, file); reason(err) != deliver.ReasonMissing {
			t.Errorf("%s: after its removal: %v", name, err)
		}
		for _, bad := range []string{"", "../x", "a/b", ".hidden", "a\nb"} {
			if err := c.Challenge(t.Context(), name, bad, []byte("x")); reason(err) != deliver.ReasonProfile {
				t.Errorf("name %q: %v", bad, err)
			}
		}
		for _, size := range []int{0, deliver.MaxChallenge + 1} {
			if err := c.Challenge(t.Context(), name, file, make([]byte, size)); reason(err) != deliver.ReasonTooLarge {
				t.Errorf("%d bytes: %v", size, err)
			}
		}
		if err := c.Challenge(t.Context(), name, file, make([]byte, deliver.MaxChallenge)); err != nil {
			t.Error(err)
		}
	}
	if _, err := c.ReadChallenge(t.Context(), "nobody", file); reason(err) != deliver.ReasonProfile {
		t.Errorf("got %v", err)
	}
}

func TestAFileThatIsNotWhatItWasIsRefused(t *testing.T) {
	sshd := testbed.NewSSHD(t)
	c := client(t, "deliver", deliver.Options{}, sftpProfile(sshd))
	data := []byte("a segment")
	p := put("soc", "0001.pcapng", data)
	p.SHA256 = fmt.Sprintf("%x", sha256.Sum256([]byte("another")))
	if _, err := c.Put(t.Context(), p, segment(t, data)); reason(err) != deliver.ReasonLocal {
		t.Errorf("got %v", err)
	}
	p = put("soc", "0002.pcapng", data)
	p.Size++
	if _, err := c.Put(t.Context(), p, segment(t, data)); reason(err) != deliver.ReasonLocal {
		t.Errorf("got %v", err)
	}
	if got := testbed.Tree(t, sshd.Root); len(got) != 0 {
		t.Errorf("there is %v", got)
	}
}

func TestADestinationThatIsNotThere(t *testing.T) {
	c := client(t, "deliver", deliver.Options{}, deliver.Profile{Name: "bad", Type: "ftp"})
	for _, name := range []string{"nobody", "bad"} {
		if _, err := c.Check(t.Context(), name); reason(err) != deliver.ReasonProfile || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestAKilledProcessIsReplacedAndTheDeliveryRepeated(t *testing.T) {
	sshd := testbed.NewSSHD(t)
	p := sftpProfile(sshd)
	p.Bandwidth = 20 << 20 // so that the kill finds it at work
	c := client(t, "deliver", deliver.Options{}, p)
	_, data := storetest.Object("", 16<<20)
	f := segment(t, data)
	request := put("soc", "0001.pcapng", data)
	var once sync.Once
	request.Sent = func(total int64) {
		once.Do(func() { syscall.Kill(c.PID(), syscall.SIGKILL) })
	}
	_, err := c.Put(t.Context(), request, f)
	var failure *deliver.Error
	if !errors.As(err, &failure) || failure.Reason != deliver.ReasonProcess || failure.Permanent {
		t.Fatalf("got %v", err)
	}
	request.Sent = nil
	if _, err := c.Put(t.Context(), request, f); err != nil {
		t.Fatal(err)
	}
	got := testbed.Tree(t, sshd.Root)
	if len(got) != 1 || !bytes.Equal(got["2026-11-23/edge-1/0f8c0f8c0f8c0f8c/0001.pcapng"], data) {
		for name, data := range got {
			t.Errorf("there is %s with %d bytes", name, len(data))
		}
	}
}

func TestACanceledRequestEndsInTheProcess(t *testing.T) {
	sshd := testbed.NewSSHD(t)
	p := sftpProfile(sshd)
	p.Bandwidth = 1 << 20
	c := client(t, "deliver", deliver.Options{}, p)
	_, data := storetest.Object("", 64<<20)
	ctx, cancel := context.WithCancel(t.Context())
	request := put("soc", "0001.pcapng", data)
	request.Sent = func(int64) { cancel() }
	if _, err := c.Put(ctx, request, segment(t, data)); reason(err) != deliver.ReasonCanceled {
		t.Errorf("got %v", err)
	}
	if got := testbed.Tree(t, sshd.Root); len(got) != 0 {
		t.Errorf("%d files are left", len(got))
	}
	if check, err := c.Check(t.Context(), "soc"); err != nil || !check.OK {
		t.Errorf("afterwards: %+v, %v", check, err)
	}
}

func TestEveryConnectionIsAnnouncedBeforeItIsMade(t *testing.T) {
	sshd := testbed.NewSSHD(t)
	var mu sync.Mutex
	open := map[netip.AddrPort]bool{}
	announced := 0
	refuse := false
	c := client(t, "deliver", deliver.Options{Flow: func(ctx context.Context, destination string, f deliver.Flow) (func(), error) {
		mu.Lock()
		defer mu.Unlock()
		if refuse {
			return nil, errors.New("not now")
		}
		if destination != "soc" || f.Remote.String() != sshd.Address || f.Local.Port() == 0 {
			t.Errorf("announced %s %+v", destination, f)
		}
		announced++
		open[f.Local] = true
		return func() {
			mu.Lock()
			defer mu.Unlock()
			delete(open, f.Local)
		}, nil
	}}, sftpProfile(sshd))
	if check, err := c.Check(t.Context(), "soc"); err != nil || !check.OK {
		t.Fatalf("%+v, %v", check, err)
	}
	data := []byte("a segment")
	if _, err := c.Put(t.Context(), put("soc", "0001.pcapng", data), segment(t, data)); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	if announced != 2 || len(open) != 1 {
		t.Errorf("%d announced, %d open: want the check's, which is over, and the delivery's, which is kept", announced, len(open))
	}
	refuse = true
	mu.Unlock()
	check, err := c.Check(t.Context(), "soc")
	if err != nil || check.OK || !strings.Contains(check.Steps[len(check.Steps)-1].Detail, "not now") {
		t.Errorf("a refused connection: %+v, %v", check, err)
	}
	syscall.Kill(c.PID(), syscall.SIGKILL)
	for {
		mu.Lock()
		left := len(open)
		mu.Unlock()
		if left == 0 {
			break // a process that is gone has no connections
		}
		runtime.Gosched()
	}
}

func TestTheProcessHasDroppedWhatItCan(t *testing.T) {
	if _, _, errno := syscall.AllThreadsSyscall(syscall.SYS_GETPID, 0, 0, 0); errno == syscall.ENOTSUP {
		testbed.Lacking(t, "a build without cgo")
	}
	c := client(t, "deliver", deliver.Options{}, deliver.Profile{Name: "x", Type: deliver.TypeSFTP, Address: "127.0.0.1:1", User: "u", PrivateKey: "/none", HostKey: "SHA256:x"})
	if _, err := c.Check(t.Context(), "x"); err != nil { // it answers: so it has started
		t.Fatal(err)
	}
	want := map[string]string{"NoNewPrivs": "1", "CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapAmb": "0000000000000000"}
	if os.Geteuid() == 0 {
		want["CapPrm"], want["CapEff"], want["CapBnd"] = "0000000000000004", "0000000000000004", "0000000000000000" // CAP_DAC_READ_SEARCH
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", c.PID()))
	if err != nil || len(tasks) < 2 {
		t.Fatalf("threads %v, %v", tasks, err)
	}
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
			if w, ok := want[key]; ok && w != value {
				t.Errorf("%s: %s is %s, want %s", task, key, value, w)
			}
		}
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", c.PID()))
	if err != nil || !strings.Contains(strings.Join(strings.Fields(string(limits)), " "), "Max core file size 0 0 bytes") {
		t.Errorf("core files: %v\n%s", err, limits)
	}
	// What is not dumpable belongs to root in /proc (proc(5)).
	if os.Geteuid() != 0 {
		if _, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", c.PID())); err == nil {
			t.Error("the process's memory can be looked at")
		}
	}
}

func TestTheProcessEndsWithItsParent(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "CAPD_TEST_PROCESS=parent")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 32)
	n, err := out.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(buf[:n])))
	if err != nil {
		t.Fatal(err)
	}
	fd, err := pidfdOpen(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	cmd.Process.Kill()
	cmd.Wait()
	if err := pollExit(fd); err != nil {
		t.Errorf("the delivery process outlives its parent: %v", err)
	}
}

func TestAProcessThatSpeaksNonsenseIsReplaced(t *testing.T) {
	c := client(t, "mute", deliver.Options{}, sftpNowhere())
	first := waitPID(c, 0)
	if second := waitPID(c, first); second == first {
		t.Error("it was left running")
	}
}

func TestAProcessThatDoesNotStartIsSaid(t *testing.T) {
	c := client(t, "broken", deliver.Options{}, sftpNowhere())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := c.Check(ctx, "nowhere")
	var failure *deliver.Error
	if !errors.As(err, &failure) || failure.Reason != deliver.ReasonProcess || failure.Permanent || failure.Code != wire.CodeUnavailable {
		t.Errorf("got %v", err)
	}
}

func TestRequestsAfterCloseFail(t *testing.T) {
	c := client(t, "deliver", deliver.Options{}, sftpNowhere())
	waitPID(c, 0)
	c.Close()
	if _, err := c.Check(t.Context(), "nowhere"); reason(err) != deliver.ReasonCanceled {
		t.Errorf("got %v", err)
	}
	if c.PID() != 0 {
		t.Error("the process is still there")
	}
}

func TestCloseEndsWhatIsUnderWayAndLeavesNothing(t *testing.T) {
	sshd := testbed.NewSSHD(t)
	p := sftpProfile(sshd)
	p.Bandwidth = 1 << 20
	c := client(t, "deliver", deliver.Options{}, p)
	_, data := storetest.Object("", 64<<20)
	begun := make(chan struct{})
	var once sync.Once
	request := put("soc", "0001.pcapng", data)
	request.Sent = func(int64) { once.Do(func() { close(begun) }) }
	failed := make(chan error)
	f := segment(t, data)
	go func() {
		_, err := c.Put(t.Context(), request, f)
		failed <- err
	}()
	<-begun
	c.Close()
	var failure *deliver.Error
	if err := <-failed; !errors.As(err, &failure) || failure.Permanent {
		t.Errorf("got %v", err)
	}
	if got := testbed.Tree(t, sshd.Root); len(got) != 0 {
		t.Errorf("%d files are left", len(got))
	}
}

func sftpNowhere() deliver.Profile {
	return deliver.Profile{Name: "nowhere", Type: deliver.TypeSFTP, Address: "127.0.0.1:1", User: "u", PrivateKey: "/none", HostKey: "SHA256:x"}
}

// waitPID waits for a process that is not the given one.
func waitPID(c *deliver.Client, not int) int {
	for {
		if pid := c.PID(); pid != 0 && pid != not {
			return pid
		}
		time.Sleep(time.Millisecond)
	}
}
