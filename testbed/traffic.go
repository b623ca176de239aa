package testbed

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"
)

// Addresses of a Pair's two ends.
var (
	A4 = netip.MustParseAddr("10.9.0.1")
	B4 = netip.MustParseAddr("10.9.0.2")
	A6 = netip.MustParseAddr("fd00:9::1")
	B6 = netip.MustParseAddr("fd00:9::2")
)

// trafficTimeout bounds every wait for a packet, so that a lost one fails a test instead
// of hanging it.
const trafficTimeout = time.Minute

// Message is one payload that was sent, and how.
type Message struct {
	Protocol    string         // "udp", "tcp", "icmp", "icmpv6"
	Source      netip.AddrPort // for ICMP the port is the echo identifier
	Destination netip.AddrPort // for ICMP the port is 0
	Payload     []byte         // unique in its stream; see Payload
}

// Payload is the content of message seq of a stream: it names both and is filled up to
// size bytes (or cut to them), so that a packet in a file can be told from every other.
func Payload(stream string, seq, size int) []byte {
	b := fmt.Appendf(nil, "capd %s %06d|", stream, seq)
	for i := len(b); i < size; i++ {
		b = append(b, 'a'+byte((i+seq)%26))
	}
	return b[:size]
}

// Stream is a conversation between two namespaces (or one with itself: From == To).
type Stream struct {
	From, To    string         // namespaces
	Source      netip.AddrPort // a port of 0: the kernel picks one
	Destination netip.AddrPort
	Count       int           // messages
	Size        int           // bytes of a payload; 0 = 64
	Interval    time.Duration // between messages
	Unheard     bool          // UDP only: nobody listens in To and nothing is waited for
}

func (s Stream) size() int {
	if s.Size == 0 {
		return 64
	}
	return s.Size
}

func (s Stream) message(protocol string, source netip.AddrPort, seq int) Message {
	name := fmt.Sprintf("%s %s", protocol, s.Destination)
	return Message{protocol, source, s.Destination, Payload(name, seq, s.size())}
}

// SendUDP sends datagrams and sees each of them arrive before the next is sent (unless
// Unheard). Nothing is sent back: the listener is silent, so To never answers with
// "port unreachable" and every packet of the stream is in what SendUDP returns.
func SendUDP(s Stream) ([]Message, error) {
	var listener, sender *net.UDPConn
	if !s.Unheard {
		err := Do(s.To, func() (err error) {
			listener, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(s.Destination))
			return err
		})
		if err != nil {
			return nil, err
		}
		defer func() { _ = listener.Close() }()
	}
	err := Do(s.From, func() (err error) {
		sender, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(s.Source), net.UDPAddrFromAddrPort(s.Destination))
		return err
	})
	if err != nil {
		return nil, err
	}
	defer func() { _ = sender.Close() }()
	source := sender.LocalAddr().(*net.UDPAddr).AddrPort()
	got := make([]byte, s.size()+1)
	var sent []Message
	for i := range s.Count {
		m := s.message("udp", source, i)
		if _, err := sender.Write(m.Payload); err != nil {
			return sent, err
		}
		sent = append(sent, m)
		if listener != nil {
			if err := listener.SetReadDeadline(time.Now().Add(trafficTimeout)); err != nil {
				return sent, err
			}
			n, err := listener.Read(got)
			if err != nil {
				return sent, fmt.Errorf("udp message %d did not arrive: %w", i, err)
			}
			if !bytes.Equal(got[:n], m.Payload) {
				return sent, fmt.Errorf("udp message %d arrived as %q", i, got[:n])
			}
		}
		time.Sleep(s.Interval)
	}
	return sent, nil
}

// SendTCP opens one connection and sends messages on it, each echoed by To before the
// next is sent: as long as a payload fits the MTU it is one segment, there and back. The
// echoes are returned too (source and destination exchanged), in the order sent. The
// connection's own segments (SYN, ACK, FIN) carry no payload and are not in the answer.
func SendTCP(s Stream) ([]Message, error) {
	var listener *net.TCPListener
	err := Do(s.To, func() (err error) {
		listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(s.Destination))
		return err
	})
	if err != nil {
		return nil, err
	}
	echoed := make(chan error, 1)
	go func() { echoed <- echoOnce(listener) }()
	sent, err := s.talk()
	_ = listener.Close() // ends echoOnce where nothing was connected
	return sent, errors.Join(err, <-echoed)
}

func echoOnce(l *net.TCPListener) error {
	c, err := l.AcceptTCP()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_, err = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}) // no splice: segments stay as they are
	return err
}

func (s Stream) talk() ([]Message, error) {
	var c *net.TCPConn
	err := Do(s.From, func() (err error) {
		c, err = net.DialTCP("tcp", net.TCPAddrFromAddrPort(s.Source), net.TCPAddrFromAddrPort(s.Destination))
		return err
	})
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	source := c.LocalAddr().(*net.TCPAddr).AddrPort()
	got := make([]byte, s.size())
	var sent []Message
	for i := range s.Count {
		if err := c.SetDeadline(time.Now().Add(trafficTimeout)); err != nil {
			return sent, err
		}
		m := s.message("tcp", source, i)
		if _, err := c.Write(m.Payload); err != nil {
			return sent, err
		}
		if _, err := io.ReadFull(c, got); err != nil {
			return sent, fmt.Errorf("tcp message %d did not come back: %w", i, err)
		}
		if !bytes.Equal(got, m.Payload) {
			return sent, fmt.Errorf("tcp message %d came back as %q", i, got)
		}
		sent = append(sent, m, Message{"tcp", m.Destination, m.Source, m.Payload})
		time.Sleep(s.Interval)
	}
	return sent, nil
}

// SendICMP sends echo requests (IPv4 or IPv6, by the addresses' family; ports are
// ignored) and waits for each reply. Requests and replies are returned, in order.
func SendICMP(s Stream) ([]Message, error) {
	network, protocol, request, reply := "ip4:1", "icmp", byte(8), byte(0)
	if s.Destination.Addr().Is6() {
		network, protocol, request, reply = "ip6:58", "icmpv6", 128, 129
	}
	var c *net.IPConn
	err := Do(s.From, func() (err error) {
		c, err = net.DialIP(network, &net.IPAddr{IP: s.Source.Addr().AsSlice()}, &net.IPAddr{IP: s.Destination.Addr().AsSlice()})
		return err
	})
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	id := uint16(os.Getpid())
	source := netip.AddrPortFrom(s.Source.Addr(), id)
	destination := netip.AddrPortFrom(s.Destination.Addr(), 0)
	var sent []Message
	for i := range s.Count {
		payload := Payload(protocol+" "+s.Destination.Addr().String(), i, s.size())
		b := append([]byte{request, 0, 0, 0}, binary.BigEndian.AppendUint16(nil, id)...)
		b = binary.BigEndian.AppendUint16(b, uint16(i))
		b = append(b, payload...)
		if protocol == "icmp" { // the kernel fills in ICMPv6's, RFC 3542 section 3.1
			binary.BigEndian.PutUint16(b[2:], internetChecksum(b))
		}
		if _, err := c.Write(b); err != nil {
			return sent, fmt.Errorf("%s echo %d: %w", protocol, i, err)
		}
		b[0] = reply
		if err := awaitReply(c, b); err != nil {
			return sent, fmt.Errorf("%s echo %d was not answered: %w", protocol, i, err)
		}
		sent = append(sent, Message{protocol, source, destination, payload},
			Message{protocol, netip.AddrPortFrom(destination.Addr(), id), netip.AddrPortFrom(source.Addr(), 0), payload})
		time.Sleep(s.Interval)
	}
	return sent, nil
}

// awaitReply reads until a message comes that is want but for its checksum.
func awaitReply(c *net.IPConn, want []byte) error {
	if err := c.SetReadDeadline(time.Now().Add(trafficTimeout)); err != nil {
		return err
	}
	got := make([]byte, len(want)+128)
	for {
		n, _, err := c.ReadFrom(got) // without the IPv4 header, unlike Read
		if err != nil {
			return err
		}
		if n == len(want) && got[0] == want[0] && bytes.Equal(got[4:n], want[4:]) {
			return nil
		}
	}
}

// SendAll sends count messages of UDP, TCP and ICMP each, in IPv4 and in IPv6, from a
// Pair's A to its B: UDP to port 5000, TCP to port 5001. It returns what carries a
// payload: 10 × count messages, of which 6 × count went from A to B.
func SendAll(p Pair, count int) ([]Message, error) {
	var sent []Message
	for _, end := range []struct{ a, b netip.Addr }{{A4, B4}, {A6, B6}} {
		s := Stream{From: p.A, To: p.B, Source: netip.AddrPortFrom(end.a, 0), Count: count}
		for _, kind := range []struct {
			send func(Stream) ([]Message, error)
			port uint16
		}{{SendUDP, 5000}, {SendTCP, 5001}, {SendICMP, 0}} {
			s.Destination = netip.AddrPortFrom(end.b, kind.port)
			m, err := kind.send(s)
			sent = append(sent, m...)
			if err != nil {
				return sent, err
			}
		}
	}
	return sent, nil
}

// String is for failure messages.
func (m Message) String() string {
	text, _, _ := strings.Cut(string(m.Payload), "|")
	return fmt.Sprintf("%s %s > %s %q", m.Protocol, m.Source, m.Destination, text)
}
