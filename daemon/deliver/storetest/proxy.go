package storetest

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Direction of bytes through a Proxy.
type Direction int

// Directions.
const (
	Up   Direction = iota // to the server
	Down                  // from the server
)

// Fault is what a Proxy does to its connections at a certain byte.
type Fault struct {
	Kind      FaultKind
	Direction Direction
	At        int64  // how many bytes pass in that direction, over all connections, before it
	Do        func() // for the kind Do
}

// FaultKind is a kind of fault.
type FaultKind int

// Kinds of fault.
const (
	None  FaultKind = iota
	Cut             // every connection ends, and every new one
	Stall           // nothing moves any more, but connections stay
	Flip            // one bit of the byte is turned over, once
	Do              // something is done elsewhere, once, while the byte waits
)

// Proxy is a TCP proxy on loopback that makes one fault.
type Proxy struct {
	Address string

	target string
	listen net.Listener
	wg     sync.WaitGroup
	bytes  [2]atomic.Int64
	rate   int // bytes per second each way, 0 = as fast as can be

	mu      sync.Mutex
	fault   Fault
	struck  bool
	release chan struct{} // closed when a stall, or the proxy, ends
	conns   map[net.Conn]bool
}

// NewProxy starts a proxy to an address; it lasts as long as the test.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	return newProxy(t, target, 0)
}

// NewSlowProxy starts a proxy that passes so many bytes per second each way, and holds
// little itself: what a slow link has not carried yet waits with its sender.
func NewSlowProxy(t testing.TB, target string, bytesPerSecond int) *Proxy {
	t.Helper()
	return newProxy(t, target, bytesPerSecond)
}

func newProxy(t testing.TB, target string, rate int) *Proxy {
	t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		outer := raw.Control(func(fd uintptr) {
			// Segments as on Ethernet: loopback's are larger than a small window.
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, 1400)
			if rate > 0 {
				err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 16<<10))
			}
		})
		return errors.Join(outer, err)
	}}
	l, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Address: l.Addr().String(), target: target, listen: l, rate: rate, release: make(chan struct{}), conns: map[net.Conn]bool{}}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		l.Close()
		p.Set(Fault{})
		p.drop()
		p.wg.Wait()
	})
	return p
}

// Set chooses the next fault, ends the one before it, and counts bytes from 0 again.
func (p *Proxy) Set(f Fault) {
	p.mu.Lock()
	struck := p.struck
	p.fault, p.struck = f, false
	close(p.release)
	p.release = make(chan struct{})
	p.bytes[Up].Store(0)
	p.bytes[Down].Store(0)
	p.mu.Unlock()
	if struck {
		p.drop() // what a stall held up is of no use
	}
}

// Passed tells how many bytes have passed since the last Set.
func (p *Proxy) Passed(d Direction) int64 { return p.bytes[d].Load() }

// Struck tells whether the fault has happened.
func (p *Proxy) Struck() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.struck
}

func (p *Proxy) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

func (p *Proxy) accept() {
	for {
		client, err := p.listen.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.target)
		if err != nil {
			client.Close()
			continue
		}
		p.mu.Lock()
		dead := p.struck && p.fault.Kind == Cut
		p.conns[client], p.conns[server] = true, true
		p.mu.Unlock()
		if dead {
			client.Close()
			server.Close()
		}
		var both sync.WaitGroup
		both.Go(func() { p.copy(server, client, Up) })
		both.Go(func() { p.copy(client, server, Down) })
		p.wg.Go(func() {
			both.Wait()
			p.mu.Lock()
			delete(p.conns, client)
			delete(p.conns, server)
			p.mu.Unlock()
		})
	}
}

// copy moves bytes one way until either side ends.
func (p *Proxy) copy(to, from net.Conn, d Direction) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 16<<10)
	for {
		piece := buf
		if p.rate > 0 {
			piece = buf[:1024]
		}
		n, err := from.Read(piece)
		if n > 0 {
			if p.rate > 0 {
				time.Sleep(time.Duration(n) * time.Second / time.Duration(p.rate))
			}
			if !p.pass(to, buf[:n], d) {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// pass moves one buffer on, and makes the fault when its byte has come.
func (p *Proxy) pass(to net.Conn, b []byte, d Direction) bool {
	p.mu.Lock()
	f, release := p.fault, p.release
	end := p.bytes[d].Add(int64(len(b)))
	here := f.Kind != None && f.Direction == d && end > f.At
	first := here && !p.struck
	p.struck = p.struck || here
	stalled := p.struck && f.Kind == Stall // in both directions
	p.mu.Unlock()
	begin := end - int64(len(b))
	switch {
	case here && f.Kind == Cut:
		if begin < f.At {
			to.Write(b[:f.At-begin])
		}
		p.drop()
		return false
	case stalled:
		if here && begin < f.At {
			to.Write(b[:f.At-begin])
		}
		<-release
		return false
	case first && f.Kind == Flip:
		b[max(0, f.At-begin)] ^= 1
	case first && f.Kind == Do:
		f.Do()
	}
	_, err := to.Write(b)
	return err == nil
}
