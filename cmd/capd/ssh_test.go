package main

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"capd/ctl/wire"
	"capd/testbed"
)

// sshBox is a capd and an sshd in one namespace, as on a router.
type sshBox struct {
	*testbed.Daemon
	t    *testing.T
	sshd *testbed.SSHD
}

func newSSHBox(t *testing.T) *sshBox {
	t.Helper()
	testbed.NeedRoot(t)
	testbed.NeedCommand(t, "ssh")
	d := testbed.StartDaemon(t, testbed.NewNS(t), "")
	b := &sshBox{Daemon: d, t: t}
	// A server that is started in the namespace stays there.
	testbed.In(t, d.NS, func() error {
		b.sshd = testbed.NewSSHD(t, "ForceCommand none", fmt.Sprintf("SetEnv PATH=%s:/usr/bin:/bin CAPD_SOCKET=%s", testbed.Build(t), d.Socket))
		return nil
	})
	return b
}

// port is sshd's.
func (b *sshBox) port() uint16 {
	_, port, err := net.SplitHostPort(b.sshd.Address)
	if err != nil {
		b.t.Fatal(err)
	}
	var n uint16
	if _, err := fmt.Sscan(port, &n); err != nil {
		b.t.Fatal(err)
	}
	return n
}

// ssh is a command on the box, by a connection of its own.
func (b *sshBox) ssh(command string) *exec.Cmd {
	return exec.Command("ip", "netns", "exec", b.NS, "ssh", "-F", "none", "-p", fmt.Sprint(b.port()), "-i", b.sshd.PrivateKey,
		"-o", "UserKnownHostsFile="+b.sshd.KnownHosts, "-o", "IdentitiesOnly=yes", b.sshd.User+"@127.0.0.1", command)
}

// live starts a command over ssh whose stdout goes to a file, and waits until something
// is in it.
func (b *sshBox) live(command string) (cmd *exec.Cmd, path string) {
	b.t.Helper()
	path = filepath.Join(b.t.TempDir(), "live.pcapng")
	out, err := os.Create(path)
	if err != nil {
		b.t.Fatal(err)
	}
	defer out.Close()
	cmd = b.ssh(command)
	cmd.Stdout, cmd.Stderr = out, b.Log
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = cmd.Process.Kill() })
	await(b.t, "the stream has begun", func() bool { info, err := os.Stat(path); return err == nil && info.Size() > 0 })
	return cmd, path
}

// tried has packets of another connection to the same sshd, and of none, in the capture.
func (b *sshBox) tried() []testbed.Message {
	b.t.Helper()
	if out, err := b.ssh("true").CombinedOutput(); err != nil {
		b.t.Fatalf("ssh: %v: %s", err, out)
	}
	lo := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 5000)
	sent, err := testbed.SendUDP(testbed.Stream{From: b.NS, To: b.NS, Source: netip.AddrPortFrom(lo.Addr(), 0), Destination: lo, Count: 20})
	if err != nil {
		b.t.Fatal(err)
	}
	return sent
}

// judge holds a stream against what must be in it: what was sent, another connection to
// the same sshd, and not a packet of the connection by which it came (own: its port at
// the client). Were that captured too, each packet would make another, without end. What a
// capture that ran already had logged of its beginning may be on its way when it is
// followed, and come first (late).
func (b *sshBox) judge(path string, own uint16, late bool, sent []testbed.Message) {
	b.t.Helper()
	var udp []testbed.Packet
	others := 0
	for _, p := range testbed.TsharkPackets(b.t, path, "") {
		switch {
		case p.Protocol == "udp":
			udp = append(udp, p)
		case p.Protocol != "tcp":
		case p.Source.Port() == own || p.Destination.Port() == own:
			if late && len(udp) == 0 {
				continue
			}
			b.t.Errorf("a packet of the stream's own connection is in it: %s > %s", p.Source, p.Destination)
			return
		case p.Source.Port() == b.port() || p.Destination.Port() == b.port():
			others++
		}
	}
	if others < 20 {
		b.t.Errorf("%d packets of another connection to the same sshd are in it", others)
	}
	testbed.WantPackets(b.t, udp, sent, 1)
}

// ownPort gives the client's port of the only connection that a capture leaves out.
func (b *sshBox) ownPort(c wire.Capture) uint16 {
	b.t.Helper()
	if len(c.Exclude) != 1 || uint16(c.Exclude[0].DestinationPort) != b.port() || c.Exclude[0].Destination != "127.0.0.1" {
		b.t.Fatalf("the record says that it lacks %+v", c.Exclude)
	}
	return uint16(c.Exclude[0].SourcePort)
}

func holds(path, text string, times int) func() bool {
	return func() bool {
		data, err := os.ReadFile(path)
		return err == nil && strings.Count(string(data), text) >= times
	}
}

// A capture of everything is streamed through an SSH connection, which it does not see;
// other connections to the same server it does.
func TestStreamOverSSHDoesNotSeeItself(t *testing.T) {
	b := newSSHBox(t)
	cmd, path := b.live("capctl start -w -")
	c := list(t, b.Daemon)[0]
	own := b.ownPort(c)
	sent := b.tried()
	await(t, "the packets have come", holds(path, "capd udp", len(sent)))
	b.Must("stop", c.ID)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	b.judge(path, own, false, sent)
	checkStreamCounts(t, b.Show(c.ID))
}

// The same for a capture that runs already, with files of its own, and is followed: what
// goes to the files leaves the connection out from then on, too. When the reader leaves,
// the capture goes on.
func TestTailOverSSHDoesNotSeeItself(t *testing.T) {
	b := newSSHBox(t)
	id := b.Must("start")
	beside := b.Must("start", "--packet-limit", "100000")
	cmd, path := b.live("capctl tail " + id)
	own := b.ownPort(b.Show(id))
	if other := b.ownPort(b.Show(beside)); other != own {
		t.Errorf("another capture leaves out port %d instead of %d", other, own)
	}
	sent := b.tried()
	await(t, "the packets have come", holds(path, "capd udp", len(sent)))
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	b.judge(path, own, true, sent)
	if c := b.Show(id); c.Status != wire.StatusRunning {
		t.Errorf("when its reader had left the capture was %s", c.Status)
	}
	for _, id := range []string{id, beside} {
		b.Must("stop", id)
		checkCounts(t, b.Show(id))
	}
}

// Whoever hangs up ends a capture that was a stream, though its end is three processes
// away: ssh, sshd and capctl.
func TestStreamOverSSHEndsWithTheConnection(t *testing.T) {
	b := newSSHBox(t)
	out, in := io.Pipe()
	defer out.Close()
	cmd := b.ssh("capctl start -w - udp")
	cmd.Stdout, cmd.Stderr = in, b.Log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 28)); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	id := list(t, b.Daemon)[0].ID
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	c := b.Await(id, "complete", func(c wire.Capture) bool { return c.Status == wire.StatusComplete })
	if c.StopReason != wire.StopRequested {
		t.Errorf("stop reason %s", c.StopReason)
	}
	checkStreamCounts(t, c)
}
