package testbed

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// Tshark reads a capture file with tshark and gives, for each packet that the display
// filter lets through ("" = all), the fields' values in the order asked. A field that a
// packet lacks is ""; of one that occurs several times all values come, joined by commas.
// tshark's complaints (a file cut short, an unknown field) fail the test.
func Tshark(t testing.TB, file, filter string, fields ...string) [][]string {
	t.Helper()
	NeedCommand(t, "tshark")
	args := []string{"-n", "-r", file, "-T", "fields", "-E", "separator=/t", "-E", "occurrence=a", "-E", "aggregator=,"}
	if filter != "" {
		args = append(args, "-Y", filter)
	}
	for _, f := range fields {
		args = append(args, "-e", f)
	}
	var rows [][]string
	for line := range strings.Lines(judge(t, "tshark", args...)) {
		row := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(row) != len(fields) {
			t.Fatalf("tshark gave %d fields for %d asked: %q", len(row), len(fields), line)
		}
		rows = append(rows, row)
	}
	return rows
}

// Tcpdump reads a capture file with tcpdump -n and gives its lines, one a packet
// (args: options and a filter). tcpdump's complaints fail the test.
func Tcpdump(t testing.TB, file string, args ...string) []string {
	t.Helper()
	NeedCommand(t, "tcpdump")
	out := judge(t, "tcpdump", append([]string{"-n", "-r", file}, args...)...)
	if out == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(out, "\n"), "\n")
}

// FileInfo is what capinfos says of a capture file.
type FileInfo struct {
	Type          string // "pcapng", "pcap", "nsecpcap", …
	Encapsulation string // "linux-sll2", "ether", "rawip", …; "per-packet" where interfaces differ
	Snaplen       string // the limit in the file's header, "(not set)" where there is none
	Packets       int
	FileBytes     int64
	DataBytes     int64  // of the packets on the wire
	First, Last   string // seconds since the epoch, with the file's own precision; "n/a" where there is no packet
	Ordered       bool   // packets stand in the order of their timestamps
	SHA256        string
}

// Capinfos reads a capture file with capinfos.
func Capinfos(t testing.TB, file string) FileInfo {
	t.Helper()
	NeedCommand(t, "capinfos")
	// -T table, -M plain numbers, -S epoch times, then the columns
	lines := strings.Split(judge(t, "capinfos", "-T", "-M", "-S", "-tElcsdaeoH", file), "\n")
	if len(lines) < 2 {
		t.Fatalf("capinfos %s: no table: %q", file, lines)
	}
	values := make(map[string]string)
	cells := strings.Split(lines[1], "\t")
	for i, name := range strings.Split(lines[0], "\t") {
		if i < len(cells) {
			values[name] = cells[i]
		}
	}
	number := func(name string) int64 {
		n, err := strconv.ParseInt(values[name], 10, 64)
		if err != nil {
			t.Fatalf("capinfos %s: %s is %q in %q", file, name, values[name], lines)
		}
		return n
	}
	return FileInfo{
		Type: values["File type"], Encapsulation: values["File encapsulation"], Snaplen: values["Packet size limit"],
		Packets: int(number("Number of packets")), FileBytes: number("File size (bytes)"), DataBytes: number("Data size (bytes)"),
		First: values["Start time"], Last: values["End time"],
		Ordered: values["Strict time order"] == "True", SHA256: values["SHA256"],
	}
}

// judge runs a program that reads a capture file, gives its stdout, and fails the test
// if it fails or complains.
func judge(t testing.TB, name string, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var complaints []string
	for line := range strings.Lines(stderr.String()) {
		switch line = strings.TrimSpace(line); {
		case line == "", strings.HasPrefix(line, "Running as user"), strings.HasPrefix(line, "reading from file"),
			strings.HasPrefix(line, "Warning: interface names might be incorrect"):
		default:
			complaints = append(complaints, line)
		}
	}
	if err != nil || len(complaints) > 0 {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, strings.Join(complaints, "; "))
	}
	return stdout.String()
}

// Packet is one packet of a capture file as tshark understands it.
type Packet struct {
	Time        string // seconds since the epoch with nine digits
	Length      int    // on the wire, link-layer header included
	Captured    int    // bytes in the file
	Interface   string // name from the file's interface description
	Direction   string // "1" inbound, "2" outbound, "" or "0" unknown
	Dropped     string // epb_dropcount, "" = none
	Comment     string
	Protocol    string         // "udp", "tcp", "icmp", "icmpv6", else ""
	Source      netip.AddrPort // for ICMP echo requests the port is the identifier; see Message
	Destination netip.AddrPort
	Payload     []byte // of UDP, TCP or ICMP echo
	Protocols   string // tshark's list, as "sll:ethertype:ip:udp:data"
}

// TsharkPackets reads a whole file as Packets (filter: a display filter, "" = all).
func TsharkPackets(t testing.TB, file, filter string) []Packet {
	t.Helper()
	rows := Tshark(t, file, filter,
		"frame.time_epoch", "frame.len", "frame.cap_len", "frame.interface_name", "frame.packet_flags_direction", // 0–4
		"frame.drop_count", "frame.comment", "frame.protocols", "ip.src", "ip.dst", // 5–9
		"ipv6.src", "ipv6.dst", "udp.srcport", "udp.dstport", "tcp.srcport", // 10–14
		"tcp.dstport", "udp.payload", "tcp.payload", "data.data", "icmp.ident", // 15–19
		"icmpv6.echo.identifier", "icmp.type", "icmpv6.type") // 20–22
	packets := make([]Packet, len(rows))
	for i, r := range rows {
		p := &packets[i]
		*p = Packet{Time: r[0], Interface: r[3], Direction: strings.TrimLeft(strings.TrimPrefix(r[4], "0x"), "0"),
			Dropped: r[5], Comment: r[6], Protocols: r[7]}
		p.Length, _ = strconv.Atoi(r[1])
		p.Captured, _ = strconv.Atoi(r[2])
		source, destination, payload := "0", "0", ""
		switch {
		case r[21] != "" || r[22] != "":
			p.Protocol = "icmp"
			if r[22] != "" {
				p.Protocol = "icmpv6"
			}
			// tshark repeats the identifier, once in each byte order.
			source, _, _ = strings.Cut(r[19]+r[20], ",")
			payload = r[18]
		case r[12] != "":
			p.Protocol, source, destination, payload = "udp", r[12], r[13], r[16]
		case r[14] != "":
			p.Protocol, source, destination, payload = "tcp", r[14], r[15], r[17]
		}
		p.Source = addrPort(r[8]+r[10], source)
		p.Destination = addrPort(r[9]+r[11], destination)
		var err error
		if p.Payload, err = hex.DecodeString(payload); err != nil {
			t.Fatalf("tshark gave the payload %q: %v", payload, err)
		}
	}
	return packets
}

func addrPort(addr, port string) netip.AddrPort {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return netip.AddrPort{}
	}
	n, err := strconv.ParseUint(port, 0, 16)
	if err != nil {
		return netip.AddrPortFrom(a, 0)
	}
	return netip.AddrPortFrom(a, uint16(n))
}

// Key tells a message from every other: protocol, ends and payload.
func (m Message) Key() string {
	return fmt.Sprintf("%s %s %s %s", m.Protocol, m.Source, m.Destination, m.Payload)
}

// Key is what Message.Key gives for the message that the packet carries.
func (p Packet) Key() string {
	return Message{p.Protocol, p.Source, p.Destination, p.Payload}.Key()
}

// WantPackets reports every message that is not in the packets exactly times times, and
// every packet with a payload that is none of the messages.
func WantPackets(t testing.TB, packets []Packet, messages []Message, times int) {
	t.Helper()
	found := make(map[string]int)
	for _, p := range packets {
		if len(p.Payload) > 0 {
			found[p.Key()]++
		}
	}
	reported := 0
	for _, m := range messages {
		n := found[m.Key()]
		delete(found, m.Key())
		if n != times && reported < 10 {
			reported++
			t.Errorf("%v is in the file %d times, want %d", m, n, times)
		}
	}
	for key, n := range found {
		if reported++; reported < 20 {
			t.Errorf("the file holds what was not sent, %d times: %q", n, key)
		}
	}
}
