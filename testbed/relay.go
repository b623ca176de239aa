package testbed

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
)

// Relay is a TCP server inside a namespace that passes connections on to a server on this
// machine's loopback: so a server that runs here has an address there.
type Relay struct {
	Address netip.AddrPort

	mu    sync.Mutex
	peers []netip.AddrPort
	conns []net.Conn
}

// NewRelay starts a relay at an address of a namespace; of port 0 it takes any. It lasts as
// long as the test.
func NewRelay(t testing.TB, ns string, at netip.AddrPort, target string) *Relay {
	t.Helper()
	var l net.Listener
	In(t, ns, func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
		return err
	})
	r := &Relay{Address: l.Addr().(*net.TCPAddr).AddrPort()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				client.Close()
				continue
			}
			r.mu.Lock()
			r.peers = append(r.peers, client.RemoteAddr().(*net.TCPAddr).AddrPort())
			r.conns = append(r.conns, client, server)
			r.mu.Unlock()
			pass := func(to, from net.Conn) {
				_, _ = io.Copy(to, from)
				to.Close()
				from.Close()
			}
			wg.Go(func() { pass(server, client) })
			wg.Go(func() { pass(client, server) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		r.mu.Lock()
		for _, c := range r.conns {
			c.Close()
		}
		r.mu.Unlock()
		wg.Wait()
	})
	return r
}

// Peers gives who has connected so far.
func (r *Relay) Peers() []netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]netip.AddrPort(nil), r.peers...)
}
