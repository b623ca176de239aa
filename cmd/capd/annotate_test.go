package main

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"capd/ctl/wire"
	"capd/testbed"
)

// Headers alone are kept of every protocol, original lengths with them, and no byte of a
// payload reaches the disk.
func TestHeadersOnly(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	for _, where := range [][]string{nil, {"--format", "pcap"}, {"-i", "vb"}, {"--hook", "prerouting", "udp[4:2] - 8 > 1 or tcp"}} {
		t.Run(strings.Join(where, " "), func(t *testing.T) {
			whole := d.Must(append([]string{"start"}, where...)...)
			id := d.Must(append([]string{"start", "--headers-only"}, where...)...)
			if _, err := testbed.SendAll(p, 5); err != nil {
				t.Fatal(err)
			}
			testbed.RunIn(t, p.A, "ip", "neigh", "flush", "dev", "va") // ARP, and ICMPv6's neighbour discovery
			if _, err := testbed.SendAll(p, 5); err != nil {
				t.Fatal(err)
			}
			d.Must("stop", id, whole)
			c := d.Show(id)
			checkCounts(t, c)
			if out := d.Must("show", id); !c.HeadersOnly || !strings.Contains(out, "headers only") {
				t.Errorf("show says: %s", out)
			}
			onDisk, err := filepath.Glob(d.StateDir() + "/spool/" + id + "/0*")
			if err != nil || len(onDisk) != 1 {
				t.Fatal(onDisk, err)
			}
			data, err := os.ReadFile(onDisk[0])
			if err != nil || strings.Contains(string(data), "capd udp") || strings.Contains(string(data), "capd tcp") || strings.Contains(string(data), "capd icmp") {
				t.Errorf("a payload is on the disk (%v)", err)
			}
			path := files(t, d, id)[0]
			judgeFile(t, path, c.Packets.Captured)
			if comment := testbed.Run(t, "capinfos", "-k", path); !strings.Contains(comment, "headers_only=true") && filepath.Ext(path) != ".pcap" {
				t.Errorf("capinfos shows %s", comment)
			}
			shapes := func(path string, fields ...string) []string {
				rows := testbed.Tshark(t, path, "udp || tcp || icmp || icmpv6.type == 128 || icmpv6.type == 129 || arp", append([]string{"arp.opcode", "frame.len", "ip.len", "ipv6.plen", "udp.length", "tcp.hdr_len", "tcp.seq_raw"}, fields...)...)
				// Neighbours may ask for each other while only one of the two captures runs.
				for len(rows) > 0 && rows[0][0] != "" {
					rows = rows[1:]
				}
				for len(rows) > 0 && rows[len(rows)-1][0] != "" {
					rows = rows[:len(rows)-1]
				}
				var out []string
				for _, row := range rows {
					out = append(out, strings.Join(row, " "))
				}
				slices.Sort(out)
				return out
			}
			if a, b := shapes(path), shapes(files(t, d, whole)[0]); !slices.Equal(a, b) {
				t.Errorf("lengths and headers differ from those of the whole packets:\n%q\n%q", a, b)
			}
			for _, row := range testbed.Tshark(t, path, "", "frame.cap_len", "frame.len", "frame.protocols", "udp.payload", "tcp.payload", "data.data") {
				if row[3]+row[4]+row[5] != "" {
					t.Errorf("a payload is in the file: %q", row)
				}
				if strings.HasSuffix(row[2], ":arp") && row[0] != row[1] && row[0] != "42" {
					t.Errorf("ARP is cut: %q", row)
				}
			}
		})
	}
}

// The comment that Wireshark shows tells mark, owner and the way out of real packets.
func TestAnnotate(t *testing.T) {
	testbed.NeedCommand(t, "setpriv")
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	id := d.Must("start", "--annotate", "--hook", "output,forward,postrouting,input", "udp or tcp")
	plain := d.Must("start", "--hook", "output,forward,postrouting,input", "udp or tcp")

	// A local socket's mark.
	testbed.In(t, p.B, func() error {
		dialer := net.Dialer{Control: func(_, _ string, c syscall.RawConn) (err error) {
			if cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, 0x2a) }); cerr != nil {
				return cerr
			}
			return err
		}}
		c, err := dialer.DialContext(context.Background(), "udp", "10.9.0.1:6001")
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("marked"))
		return err
	})
	// Somebody else's socket.
	testbed.RunIn(t, p.B, "setpriv", "--reuid", "65534", "--regid", "65533", "--clear-groups", "bash", "-c", "echo owned > /dev/udp/10.9.0.1/6002")
	// Forwarded: A sends through B to an address behind A.
	testbed.RunIn(t, p.B, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv4/conf/all/send_redirects; echo 0 > /proc/sys/net/ipv4/conf/vb/send_redirects")
	testbed.RunIn(t, p.B, "ip", "link", "add", "o=0", "type", "veth", "peer", "name", "peer0")
	testbed.RunIn(t, p.B, "sh", "-c", "ip link set o=0 up; ip link set peer0 up; ip route add 10.77.0.0/24 dev o=0; ip neigh add 10.77.0.1 lladdr 02:00:00:00:00:77 dev o=0")
	testbed.RunIn(t, p.A, "ip", "route", "add", "10.77.0.0/24", "via", "10.9.0.2")
	if _, err := testbed.SendUDP(testbed.Stream{From: p.A, To: p.B, Source: netip.AddrPortFrom(testbed.A4, 0),
		Destination: netip.MustParseAddrPort("10.77.0.1:6003"), Count: 3, Unheard: true}); err != nil {
		t.Fatal(err)
	}
	// What comes in, without anything to tell.
	if _, err := testbed.SendUDP(testbed.Stream{From: p.A, To: p.B, Source: netip.AddrPortFrom(testbed.A4, 0),
		Destination: netip.AddrPortFrom(testbed.B4, 6004), Count: 3}); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{id, plain} { // some were heard by nobody, and may still be on their way
		d.Await(id, "whole", func(c wire.Capture) bool { return c.Packets.Captured >= 2+2+3+3+3 })
	}
	d.Must("stop", id, plain)
	c := d.Show(id)
	checkCounts(t, c)
	path := files(t, d, id)[0]
	judgeFile(t, path, c.Packets.Captured)
	conntrack := !slices.ContainsFunc(c.Warnings, func(w wire.Warning) bool { return w.Code == "annotate_conntrack" })
	t.Logf("this kernel gives conntrack to NFLOG: %t", conntrack)
	if conntrack {
		if rows := testbed.Tshark(t, path, `frame.comment contains "ct.state=new" && frame.comment contains "ct.dport=6004"`, "frame.number"); len(rows) == 0 {
			t.Error("no connection is told")
		}
	}

	found := map[string]int{}
	for _, row := range testbed.Tshark(t, path, "udp.dstport >= 6001 && udp.dstport <= 6004", "udp.dstport", "frame.interface_description", "frame.comment") {
		comment, _, _ := strings.Cut(row[2], " ct.")
		if comment == "capd" {
			comment = ""
		}
		found[row[0]+" "+row[1]+": "+comment]++
	}
	want := map[string]int{
		"6001 output: capd mark=0x2a uid=0 gid=0": 1, "6001 postrouting: capd mark=0x2a uid=0 gid=0": 1,
		"6002 output: capd uid=65534 gid=65533": 1, "6002 postrouting: capd uid=65534 gid=65533": 1,
		"6003 forward: capd out=o=0": 3, "6003 postrouting: capd in=vb": 3,
		"6004 input: ": 3,
	}
	for key, n := range want {
		if found[key] != n {
			t.Errorf("%q is there %d times, want %d", key, found[key], n)
		}
	}
	if len(found) != len(want) {
		t.Errorf("found %v", found)
	}
	for _, pk := range testbed.TsharkPackets(t, files(t, d, plain)[0], "") {
		if pk.Comment != "" {
			t.Errorf("a comment that nobody asked for: %q", pk.Comment)
		}
	}
	if r := d.Capctl("start", "--annotate", "--format", "pcap"); r.Code == 0 || !strings.Contains(r.Stderr, "annotate") {
		t.Errorf("annotate in a pcap file: %+v", r)
	}
}

// The rate stands in each file and in the record, so that counts can be scaled.
func TestSampleIsNamed(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	for want, flags := range map[string][]string{
		"sample=1": nil, "sample=7 sample_by=packet": {"--sample", "7"}, "sample=9 sample_by=flow snaplen=128": {"--sample", "9", "--sample-by", "flow", "-s", "128"},
		"sample=100 sample_by=packet snaplen=160": {"--type", "simple"},
	} {
		id := d.Must(append([]string{"start", "--name", "n"}, flags...)...)
		d.Must("stop", id)
		if comment := testbed.Run(t, "capinfos", "-k", files(t, d, id)[0]); !strings.Contains(comment, "capd capture="+id+" host=") || !strings.Contains(comment+" ", want) {
			t.Errorf("%v: the file says %s, want %s", flags, comment, want)
		}
		if out := d.Must("show", id); flags != nil && !strings.Contains(out, "one in ") {
			t.Errorf("%v: show says %s", flags, out)
		}
		d.Must("rm", id)
	}
}
