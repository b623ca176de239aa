package nft

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"capd/nft/filter"
	"capd/testbed"
)

// echo is a TCP connection from one namespace to another that sends back what it gets.
func echo(t testing.TB, from, to string, server netip.Addr, port uint16) *net.TCPConn {
	t.Helper()
	var listener *net.TCPListener
	testbed.In(t, to, func() (err error) {
		listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(server, port)))
		return err
	})
	defer listener.Close()
	var client *net.TCPConn
	testbed.In(t, from, func() (err error) {
		client, err = net.DialTCP("tcp", nil, listener.Addr().(*net.TCPAddr))
		return err
	})
	served, err := listener.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(struct{ io.Writer }{served}, served)
	}()
	t.Cleanup(func() { client.Close(); served.Close(); <-done })
	return client
}

// talk sends a message there and back.
func talk(t testing.TB, c *net.TCPConn) {
	t.Helper()
	message := []byte("there and back")
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(message); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, message); err != nil {
		t.Fatal(err)
	}
}

func flowOf(c *net.TCPConn) filter.Flow {
	local, remote := c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort()
	return filter.Flow{Source: local.Addr(), SourcePort: local.Port(), Destination: remote.Addr(), DestinationPort: remote.Port()}
}

// A connection of capd's own is in no capture while it is excluded, in neither direction;
// another to the same server is.
func TestAddExclude(t *testing.T) {
	pair := testbed.NewPair(t)
	table := openIn(t, pair.A)
	for i, server := range []netip.Addr{testbed.B4, testbed.B6} {
		own, other := echo(t, pair.A, pair.B, server, uint16(7000+2*i)), echo(t, pair.A, pair.B, server, uint16(7001+2*i))
		for _, hooks := range [][]string{{"prerouting", "output"}, {"ingress", "egress"}} {
			s := defaultSpec("00000001")
			s.Hooks, s.Interfaces = hooks, []string{"va"}
			s.Filter = v1(t, filter.V1{Protocol: "tcp"})
			seen := func(c *net.TCPConn) uint64 {
				t.Helper()
				before := total(t, table, s.ID).Seen
				talk(t, c)
				return total(t, table, s.ID).Seen - before
			}
			check := func(when string, wantOwn bool) {
				t.Helper()
				if n := seen(own); (n > 0) != wantOwn {
					t.Errorf("%v, %s: %d packets of the own connection were seen", hooks, when, n)
				}
				if n := seen(other); n < 2 {
					t.Errorf("%v, %s: %d packets of another connection were seen", hooks, when, n)
				}
			}
			back := flowOf(own)
			back.Source, back.SourcePort, back.Destination, back.DestinationPort = back.Destination, back.DestinationPort, back.Source, back.SourcePort

			install(t, table, s)
			check("at first", true)
			must(t, table.AddExclude(flowOf(own)))
			must(t, table.AddExclude(back)) // the same one, seen from the other end
			check("excluded twice", false)
			must(t, table.Remove(s.ID))
			install(t, table, s)
			check("excluded, in a capture that began later", false)
			must(t, table.RemoveExclude(flowOf(own)))
			check("excluded once", false)
			must(t, table.RemoveExclude(flowOf(own)))
			check("at last", true)
			must(t, table.Remove(s.ID))
		}
	}
	if left := listRuleset(t, pair.A); left != emptyTable {
		t.Errorf("left behind:\n%s", left)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestAddExcludeRefuses(t *testing.T) {
	table := openIn(t, testbed.NewNS(t))
	whole := filter.Flow{Source: testbed.A4, SourcePort: 1, Destination: testbed.B4, DestinationPort: 2}
	for want, flow := range map[string]filter.Flow{
		"two addresses and two ports": {Source: testbed.A4, SourcePort: 1, Destination: testbed.B4},
		"different families":          {Source: testbed.A4, SourcePort: 1, Destination: testbed.B6, DestinationPort: 2},
	} {
		if err := table.AddExclude(flow); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", flow, err, want)
		}
	}
	if err := table.RemoveExclude(whole); err == nil || !strings.Contains(err.Error(), "not excluded") {
		t.Errorf("removed what was never added: %v", err)
	}
	must(t, table.AddExclude(whole))
	must(t, table.RemoveExclude(whole))
}
