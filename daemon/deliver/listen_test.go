package deliver_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"capd/daemon/deliver"
	"capd/daemon/deliver/sftp"
	"capd/daemon/deliver/storetest"
	"capd/testbed"
)

// listening is a delivery process of its own, at a socket.
func listening() int {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := deliver.Confine(log); err != nil {
		log.Error("confine", "err", err)
		return 1
	}
	l, err := deliver.Listen(os.Getenv("CAPD_TEST_SOCKET"))
	if err == nil {
		err = deliver.ServePeers(context.Background(), l, uint32(os.Geteuid()), served(log))
	}
	if err != nil {
		log.Error("serve", "err", err)
		return 1
	}
	return 0
}

func served(log *slog.Logger) deliver.ServeOptions {
	return deliver.ServeOptions{Kinds: map[string]deliver.OpenFunc{deliver.TypeSFTP: sftp.Open}, Timeouts: storetest.Timeouts(), Logger: log}
}

// startListening starts such a process and gives its end.
func startListening(t *testing.T, socket string) (kill func()) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "CAPD_TEST_PROCESS=listen", "CAPD_TEST_SOCKET="+socket)
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	kill = func() { once.Do(func() { cmd.Process.Kill(); cmd.Wait() }) }
	t.Cleanup(kill)
	return kill
}

func TestADeliveryProcessOfItsOwn(t *testing.T) {
	sshd := testbed.NewSSHD(t)
	socket := filepath.Join(t.TempDir(), "deliver.sock")
	p := sftpProfile(sshd)
	p.Bandwidth = 20 << 20 // so that the kill finds it at work
	// It need not be there when capd starts, and is found when it comes.
	c := client(t, "", deliver.Options{Socket: socket}, p)
	kill := startListening(t, socket)
	_, data := storetest.Object("", 8<<20)
	f := segment(t, data)
	request := put("soc", "0001.pcapng", data)
	if _, err := c.Put(t.Context(), request, f); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	request = put("soc", "0002.pcapng", data)
	request.Sent = func(int64) { once.Do(func() { go kill() }) }
	_, err := c.Put(t.Context(), request, f)
	var failure *deliver.Error
	if !errors.As(err, &failure) || failure.Reason != deliver.ReasonProcess || failure.Permanent {
		t.Fatalf("the process was killed: %v", err)
	}
	if _, err := os.Stat(socket); err != nil {
		t.Fatalf("a killed process leaves its socket: %v", err)
	}
	startListening(t, socket)
	request.Sent = nil
	if _, err := c.Put(t.Context(), request, f); err != nil {
		t.Fatal(err)
	}
	c.Close()
	// The process stays for the next capd.
	again := client(t, "", deliver.Options{Socket: socket}, p)
	if check, err := again.Check(t.Context(), "soc"); err != nil || !check.OK {
		t.Errorf("for the next capd: %+v, %v", check, err)
	}
	want := map[string][]byte{"2026-11-23/edge-1/0f8c0f8c0f8c0f8c/0001.pcapng": data, "2026-11-23/edge-1/0f8c0f8c0f8c0f8c/0002.pcapng": data}
	storetest.Holds(t, storetest.Place{Files: func() map[string][]byte { return testbed.Tree(t, sshd.Root) }}, want)
}

// servePeers runs ServePeers in this process.
func servePeers(t *testing.T, uid int) (socket string, log *testbed.Buffer) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "deliver.sock")
	l, err := deliver.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	log = new(testbed.Buffer)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- deliver.ServePeers(ctx, l, uint32(uid), served(slog.New(slog.NewTextHandler(log, nil))))
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("at its end: %v", err)
		}
	})
	return socket, log
}

func dial(t *testing.T, socket string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unixpacket", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestStrangersAreHungUpOn(t *testing.T) {
	socket, log := servePeers(t, os.Geteuid()+1)
	conn := dial(t, socket)
	conn.Write([]byte(`{"kind":"check","id":1}`))
	if n, err := conn.Read(make([]byte, 100)); n != 0 || !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %d bytes, %v", n, err)
	}
	for !strings.Contains(log.String(), "refused") {
		time.Sleep(time.Millisecond)
	}
}

func TestPeersAreServedOneAfterTheOther(t *testing.T) {
	socket, log := servePeers(t, os.Geteuid())
	check := []byte(`{"kind":"check","id":1,"profile":{"name":"x","type":"ftp"}}`)
	answered := func(conn net.Conn) chan error {
		if _, err := conn.Write(check); err != nil {
			t.Fatal(err)
		}
		got := make(chan error, 1)
		go func() {
			_, err := conn.Read(make([]byte, 4096))
			got <- err
		}()
		return got
	}
	first, second := dial(t, socket), dial(t, socket)
	one, two := answered(first), answered(second)
	var waiting chan error
	select { // whichever was accepted first
	case err := <-one:
		if err != nil {
			t.Fatal(err)
		}
		waiting = two
		first.Write([]byte("this is no message")) // ends this connection, not the process
	case err := <-two:
		if err != nil {
			t.Fatal(err)
		}
		waiting = one
		second.Close()
	}
	if err := <-waiting; err != nil {
		t.Errorf("the other one: %v", err)
	}
	if n := strings.Count(log.String(), "is connected"); n != 2 {
		t.Errorf("%d connections were served:\n%s", n, log)
	}
}

func TestListenReplacesOnlyWhatIsDead(t *testing.T) {
	socket, _ := servePeers(t, os.Geteuid())
	if l, err := deliver.Listen(socket); err == nil {
		l.Close()
		t.Error("a socket in use was taken")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := deliver.Listen(file); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a file was taken for a socket: %v", err)
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "mine" {
		t.Errorf("the file was touched: %q, %v", data, err)
	}
}
