package deliver

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Flow is one TCP connection of the delivery process, with all four of its parts.
type Flow struct {
	Local  netip.AddrPort `json:"local"`
	Remote netip.AddrPort `json:"remote"`
}

// Dialer makes the connections of one destination: from its source address, through its
// device, each announced before its first packet.
type Dialer struct {
	source   netip.Addr
	device   string
	timeouts Timeouts
	announce func(context.Context, Flow) (release func(), err error)
	resolver *net.Resolver
}

// NewDialer makes a Dialer of a profile. announce is called with each connection's
// local port and remote end before it is made and may refuse it; nil: connections are
// made unasked.
func NewDialer(p Profile, t Timeouts, announce func(context.Context, Flow) (release func(), err error)) *Dialer {
	d := &Dialer{source: p.SourceAddress.Unmap(), device: p.BindDevice, timeouts: t.WithDefaults(), announce: announce, resolver: net.DefaultResolver}
	if p.BindDevice != "" {
		d.resolver = &net.Resolver{PreferGo: true, Dial: d.dialDNS}
	}
	return d
}

// dialDNS asks name servers through the device too, except those on this box.
func (d *Dialer) dialDNS(ctx context.Context, network, address string) (net.Conn, error) {
	plain := net.Dialer{}
	if server, err := netip.ParseAddrPort(address); err == nil && !server.Addr().IsLoopback() {
		plain.Control = func(_, _ string, raw syscall.RawConn) error {
			return control(raw, func(fd int) error { return d.bindDevice(fd) })
		}
	}
	return plain.DialContext(ctx, network, address)
}

// Addrs are a host's addresses.
type Addrs []netip.Addr

// String lists them for people.
func (a Addrs) String() string {
	texts := make([]string, len(a))
	for i, addr := range a {
		texts[i] = addr.String()
	}
	return strings.Join(texts, ", ")
}

// Resolve gives the addresses of a host that can be reached from the source address.
func (d *Dialer) Resolve(ctx context.Context, host string) (Addrs, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeouts.Connect)
	defer cancel()
	found := []netip.Addr{}
	if literal, err := netip.ParseAddr(host); err == nil {
		found = append(found, literal)
	} else if found, err = d.resolver.LookupNetIP(ctx, "ip", host); err != nil {
		return nil, Fail(ReasonResolve, err, "the name %s has no address", host).WithHint("check the name and this box's DNS (getent hosts %s)", host)
	}
	usable := make(Addrs, 0, len(found))
	for _, a := range found {
		a = a.Unmap()
		if !d.source.IsValid() || d.source.Is4() == a.Is4() {
			usable = append(usable, a)
		}
	}
	if len(usable) == 0 {
		return nil, Fail(ReasonResolve, nil, "%s has no address of the kind of source_address %s", host, d.source)
	}
	return usable, nil
}

// DialContext connects to host:port, trying one address after the other within the
// connect timeout. It has the form that net/http's Transport wants.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, Fail(ReasonProfile, err, "the address %s makes no sense", address)
	}
	port, err := d.resolver.LookupPort(ctx, "tcp", service)
	if err != nil {
		return nil, Fail(ReasonProfile, err, "the port %s makes no sense", service)
	}
	addrs, err := d.Resolve(ctx, host)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, d.timeouts.Connect)
	defer cancel()
	var first error
	for i, a := range addrs {
		conn, err := d.dialOne(ctx, netip.AddrPortFrom(a, uint16(port)), len(addrs)-i)
		if err == nil {
			return conn, nil
		}
		if first == nil {
			first = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	reason, hint := reasonOf(first)
	if reason != ReasonCanceled {
		reason = ReasonConnect
	}
	if hint == "" || ctx.Err() != nil {
		hint = "no answer: check the address, and firewalls on the way"
	}
	return nil, Fail(reason, first, "%s cannot be reached", address).WithHint("%s", hint)
}

// dialOne connects to one address, with a fair share of the time that is left.
func (d *Dialer) dialOne(ctx context.Context, remote netip.AddrPort, left int) (net.Conn, error) {
	if deadline, ok := ctx.Deadline(); ok && left > 1 {
		share := max(time.Until(deadline)/time.Duration(left), min(2*time.Second, time.Until(deadline)))
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, share)
		defer cancel()
	}
	network := "tcp6"
	if remote.Addr().Is4() {
		network = "tcp4"
	}
	release := func() {}
	plain := net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3},
		ControlContext: func(ctx context.Context, _, _ string, raw syscall.RawConn) error {
			return control(raw, func(fd int) (err error) {
				release, err = d.prepare(ctx, fd, remote)
				return err
			})
		},
	}
	conn, err := plain.DialContext(ctx, network, remote.String())
	if err != nil {
		release()
		return nil, err
	}
	return &announcedConn{TCPConn: conn.(*net.TCPConn), release: release}, nil
}

// notSentLow bounds what waits in the kernel before it is sent, in bytes: progress seen
// by a writer is progress on the link (tcp(7), TCP_NOTSENT_LOWAT).
const notSentLow = 256 << 10

// prepare sets a socket up, binds it to its port, and has the connection announced.
func (d *Dialer) prepare(ctx context.Context, fd int, remote netip.AddrPort) (release func(), err error) {
	nothing := func() {}
	if err := d.bindDevice(fd); err != nil {
		return nothing, err
	}
	// No TCP_USER_TIMEOUT: it also ends a connection whose receiver is slow, with a window
	// that opens by less than one queued buffer at a time (linux/net/ipv4/tcp_input.c,
	// tcp_ack_probe). A Watch ends what stands still, keep-alives end what is dead.
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSentLow); err != nil {
		return nothing, fmt.Errorf("setsockopt TCP_NOTSENT_LOWAT: %w", err)
	}
	local, err := d.local(remote)
	if err != nil {
		return nothing, err
	}
	if err := unix.Bind(fd, local); err != nil {
		return nothing, fmt.Errorf("bind to %s: %w", addrPort(local).Addr(), err)
	}
	if d.announce == nil {
		return nothing, nil
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		return nothing, fmt.Errorf("getsockname: %w", err)
	}
	release, err = d.announce(ctx, Flow{Local: addrPort(bound), Remote: remote})
	if release == nil {
		release = nothing
	}
	return release, err
}

// local gives the address that a connection is to be bound to, with port 0 for any. It
// has to be known before the first packet: where the profile names none, it is the one
// that the kernel's routes lead from, as a UDP socket learns without sending anything.
func (d *Dialer) local(remote netip.AddrPort) (unix.Sockaddr, error) {
	if d.source.IsValid() {
		return sockaddr(netip.AddrPortFrom(d.source, 0))
	}
	to, err := sockaddr(remote)
	if err != nil {
		return nil, err
	}
	family := unix.AF_INET6
	if remote.Addr().Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	if err := d.bindDevice(fd); err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, to); err != nil {
		return nil, fmt.Errorf("find the way to %s: %w", remote.Addr(), err)
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return nil, fmt.Errorf("getsockname: %w", err)
	}
	switch local := local.(type) {
	case *unix.SockaddrInet4:
		local.Port = 0
	case *unix.SockaddrInet6:
		local.Port = 0
	}
	return local, nil
}

// sockaddr is a socket address; a zone must be a device's name.
func sockaddr(a netip.AddrPort) (unix.Sockaddr, error) {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}, nil
	}
	sa := &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
	if zone := a.Addr().Zone(); zone != "" {
		dev, err := net.InterfaceByName(zone)
		if err != nil {
			return nil, fmt.Errorf("the zone of %s: %w", a.Addr(), err)
		}
		sa.ZoneId = uint32(dev.Index)
	}
	return sa, nil
}

func (d *Dialer) bindDevice(fd int) error {
	if d.device == "" {
		return nil
	}
	if err := unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, d.device); err != nil {
		return fmt.Errorf("bind_device %s: %w", d.device, err)
	}
	return nil
}

// control runs f on a raw connection's descriptor.
func control(raw syscall.RawConn, f func(fd int) error) error {
	var err error
	if outer := raw.Control(func(fd uintptr) { err = f(int(fd)) }); outer != nil {
		return outer
	}
	return err
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// announcedConn is a TCP connection that says when it is over.
type announcedConn struct {
	*net.TCPConn
	once    sync.Once
	release func()
}

// orphanTime is how long the kernel goes on with what a closed connection still has to
// send, in milliseconds.
const orphanTime = 30_000

// Close ends the connection and releases its flow. What it has not sent yet would take many
// minutes on a dead link, long after that: so it is bounded.
func (c *announcedConn) Close() error {
	if raw, err := c.SyscallConn(); err == nil {
		_ = control(raw, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, orphanTime) })
	}
	err := c.TCPConn.Close()
	c.once.Do(c.release)
	return err
}

// moved is how many bytes the other side has acknowledged and how many have come from it
// (tcp(7), TCP_INFO); 0 once the connection is closed.
func (c *announcedConn) moved() (bytes uint64) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	_ = control(raw, func(fd int) error {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			bytes = info.Bytes_acked + info.Bytes_received
		}
		return err
	})
	return bytes
}
