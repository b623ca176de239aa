package filter

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"capd/testbed"
)

func TestV1(t *testing.T) {
	for _, c := range []struct {
		v    V1
		want string
	}{
		{V1{}, ""},
		{V1{Protocol: "0"}, ""},
		{V1{SourceAddress: "192.0.2.7"}, "ip src host 192.0.2.7"},
		{V1{SourceAddress: " 192.0.2.0/24 "}, "ip src net 192.0.2.0/24"},
		{V1{DestinationAddress: "2001:DB8::/32", Protocol: "TCP"}, "ip6 dst net 2001:db8::/32 and transport 6"},
		{V1{SourceAddress: "1.2.3.4", DestinationAddress: "5.6.7.8", SourcePort: 1, DestinationPort: 65535, Protocol: "17"},
			"ip src host 1.2.3.4 and ip dst host 5.6.7.8 and transport 17 src port 1 and transport 17 dst port 65535"},
		{V1{SourcePort: 53}, "transport src port 53"},
		{V1{Protocol: "icmpv6"}, "transport 58"},
		{V1{Protocol: "IPv6-ICMP"}, "transport 58"},
		{V1{Protocol: "255"}, "transport 255"},
		{V1{Protocol: "gre"}, "transport 47"},
	} {
		f, err := FromV1(c.v)
		if err != nil {
			t.Errorf("%+v: %v", c.v, err)
		} else if f.String() != c.want {
			t.Errorf("%+v: %q, want %q", c.v, f, c.want)
		}
	}
}

// Each mistake names field and value and says how to mend it.
func TestV1Mistakes(t *testing.T) {
	for _, c := range []struct {
		v     V1
		field string
		hint  string // a part of it
	}{
		{V1{SourceAddress: "1.2.3"}, "source_address", "192.0.2.7"},
		{V1{SourceAddress: "1.2.3.4/33"}, "source_address", "192.0.2.0/24"},
		{V1{SourceAddress: "example.com"}, "source_address", "192.0.2.7"},
		{V1{SourceAddress: "1.2.3.4/24"}, "source_address", "1.2.3.0/24"},
		{V1{DestinationAddress: "2001:db8::1/64"}, "destination_address", "2001:db8::/64"},
		{V1{DestinationAddress: "fe80::1%eth0"}, "destination_address", "without %eth0"},
		{V1{DestinationAddress: "::ffff:1.2.3.4"}, "destination_address", "1.2.3.4"},
		{V1{SourceAddress: "1.2.3.4", DestinationAddress: "::1"}, "destination_address", "two IPv4"},
		{V1{Protocol: "256"}, "protocol", "tcp"},
		{V1{Protocol: "-1"}, "protocol", "1 to 255"},
		{V1{Protocol: "99999999999999999999"}, "protocol", "tcp"},
		{V1{Protocol: "tpc"}, "protocol", "tcp"},
		{V1{Protocol: "hopopt"}, "protocol", "leave the protocol out"},
		{V1{Protocol: "icmp", SourcePort: 53}, "source_port", "tcp"},
		{V1{Protocol: "50", DestinationPort: 53}, "destination_port", "tcp"},
	} {
		_, err := FromV1(c.v)
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%+v: got %v", c.v, err)
			continue
		}
		if e.Field != "filter_v1."+c.field || !strings.Contains(e.Hint, c.hint) || e.Value == "" || e.Message == "" ||
			!strings.Contains(e.Error(), e.Value) {
			t.Errorf("%+v: got %+v", c.v, e)
		}
	}
}

func TestProtocolNames(t *testing.T) {
	table := readProtocols(strings.NewReader("# comment\nip 0 IP # pseudo\ntcp\t6\tTCP\nfoo 250 FOO bar\nbad x\nlone\nbig 300\nsecond 6\n"))
	if table.names[6] != "tcp" || table.numbers["bar"] != 250 || table.numbers["second"] != 6 || len(table.names) != 3 {
		t.Errorf("read %+v", table)
	}
	// What this machine calls its protocols agrees with IANA.
	if _, err := os.Stat("/etc/protocols"); err != nil {
		testbed.Lacking(t, "/etc/protocols (contrib/need brings netbase)")
	}
	for name, n := range etcProtocols().numbers {
		if want, ok := ianaProtocols[name]; ok && want != n && name != "ip" {
			t.Errorf("%s is %d here and %d at IANA", name, n, want)
		}
	}
}

func TestAnd(t *testing.T) {
	a, err := FromV1(V1{SourceAddress: "1.2.3.4", Protocol: "6"})
	if err != nil {
		t.Fatal(err)
	}
	b, err := FromV1(V1{DestinationPort: 80})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		a, b *Filter
		want string
	}{
		{nil, nil, ""}, {nil, b, b.String()}, {a, nil, a.String()}, {a, &Filter{}, a.String()},
		{a, b, "ip src host 1.2.3.4 and transport 6 and transport dst port 80"},
	} {
		if got := And(c.a, c.b).String(); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

func TestFlow(t *testing.T) {
	a4, b4 := netip.MustParseAddr("1.2.3.4"), netip.MustParseAddr("5.6.7.8")
	for _, c := range []struct {
		f     Flow
		rules int // 0: refused
		text  string
	}{
		{Flow{}, 0, "any -> any"},
		{Flow{Source: a4, Destination: netip.MustParseAddr("::1")}, 0, "1.2.3.4 -> ::1"},
		{Flow{Source: a4, SourcePort: 1, Destination: b4, DestinationPort: 2}, 2, "1.2.3.4:1 -> 5.6.7.8:2"},
		{Flow{SourcePort: 1, DestinationPort: 1}, 1, "any:1 -> any:1"},
		{Flow{Source: netip.MustParseAddr("::ffff:1.2.3.4"), Destination: b4}, 2, "::ffff:1.2.3.4 -> 5.6.7.8"},
	} {
		rules, err := c.f.Rules(LinkRaw)
		if (err != nil) != (c.rules == 0) || len(rules) != c.rules || c.f.String() != c.text {
			t.Errorf("%s: %d rules, %v", c.f, len(rules), err)
		}
	}
	// An IPv4 address written as IPv6 is one of IPv4.
	rules, err := Flow{Source: netip.MustParseAddr("::ffff:1.2.3.4")}.Rules(LinkRaw)
	if err != nil || rules[0][0].Key != IPSaddr {
		t.Errorf("got %v, %v", rules, err)
	}
}

// Nothing that filter_v1 holds makes FromV1 or Compile panic, and what is accepted
// compiles.
func FuzzV1(f *testing.F) {
	f.Add("1.2.3.4", uint16(1), "::1", uint16(2), "tcp")
	f.Add("1.2.3.0/24", uint16(0), "", uint16(2), "17")
	f.Fuzz(func(t *testing.T, source string, sport uint16, destination string, dport uint16, protocol string) {
		got, err := FromV1(V1{source, sport, destination, dport, protocol})
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Field == "" || e.Hint == "" {
				t.Errorf("%#v", err)
			}
			return
		}
		for _, link := range []Link{LinkRaw, LinkEthernet} {
			if _, err := got.Compile(link); err != nil {
				t.Error(err)
			}
		}
	})
}
