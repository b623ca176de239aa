package nft

import (
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"capd/nft/filter"
	"capd/testbed"
)

func parse(t testing.TB, text string) *filter.Filter {
	t.Helper()
	f, err := filter.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Ports are named as nft names them: by the protocol where it has read that before.
func TestPortText(t *testing.T) {
	ns := testbed.NewNS(t)
	table := openIn(t, ns)
	for _, text := range []string{"tcp dst port 80 or 443", "udp dst port 53 or 5353", "sctp src port 5 or 6", "port 53 or 5353", "udp port 53", "udp[4:2] > 9 and src port 7"} {
		s := defaultSpec("0f8c1234")
		s.Hooks, s.Filter = []string{"prerouting", "output"}, parse(t, text)
		install(t, table, s)
		ports := func(rules string) []string { return portTexts.FindAllString(rules, -1) }
		listed := ports(listRuleset(t, ns))
		printed, err := Ruleset(s)
		if err != nil {
			t.Fatal(err)
		}
		if len(listed) == 0 || !slices.Equal(listed, ports(printed)) {
			t.Errorf("%q: nft lists %q, and printed are %q", text, listed, ports(printed))
		}
		if err := table.Remove(s.ID); err != nil {
			t.Fatal(err)
		}
	}
}

var portTexts = regexp.MustCompile(`\w+ [sd]port (\{[^}]*\}|\S+)`)

// hosts is an expression with n hosts.
func hosts(n int) string {
	var b strings.Builder
	b.WriteString("host 10.0.0.1")
	for i := range n - 1 {
		fmt.Fprintf(&b, " or 10.%d.%d.2", i/250, i%250)
	}
	return b.String()
}

// Expressions are few rules, as a person would have written them.
func TestExpressionRules(t *testing.T) {
	for _, c := range []struct {
		text  string
		hook  string
		rules []string // of the capture's chains up to the log chain, without comments
	}{
		{"tcp port 443 and host 192.0.2.7", "prerouting", []string{
			"th sport 443 ip protocol tcp ip frag-off & 8191 == 0 goto part1",
			"th dport 443 ip protocol tcp ip frag-off & 8191 == 0 goto part1",
			"ip saddr 192.0.2.7 goto gate",
			"ip daddr 192.0.2.7 goto gate",
		}},
		{"host 192.0.2.7 or 192.0.2.8 or 2001:db8::7", "prerouting", []string{
			"ip saddr { 192.0.2.7, 192.0.2.8 } goto gate",
			"ip daddr { 192.0.2.7, 192.0.2.8 } goto gate",
			"meta nfproto ipv4 return",
			"ip6 saddr 2001:db8::7 goto gate",
			"ip6 daddr 2001:db8::7 goto gate",
		}},
		{"tcp dst port 80 or 443 or tcp dst portrange 8000-8999", "prerouting", []string{
			"ip6 nexthdr tcp tcp dport { 80, 443, 8000-8999 } goto gate",
			"meta nfproto ipv6 return",
			"ip protocol tcp ip frag-off & 8191 == 0 tcp dport { 80, 443, 8000-8999 } goto gate",
		}},
		{"src net 10.0.0.0/8 and not icmp", "prerouting", []string{
			"ip saddr 10.0.0.0/8 ip protocol != icmp goto gate",
		}},
		{"tcp[tcpflags] & (tcp-syn|tcp-fin) != 0", "prerouting", []string{
			"ip protocol tcp ip frag-off & 8191 == 0 @th,104,8 & 0x3 != 0x0 goto gate",
		}},
		{"less 100 and ip6", "prerouting", []string{
			"meta length <= 100 meta nfproto ipv6 goto gate",
		}},
		{"arp or ether proto 0x88cc", "ingress", []string{
			"@ll,96,16 { 0x806, 0x88cc } goto gate",
		}},
		{"vlan 100", "ingress", []string{
			"@ll,112,16 & 0xfff == 0x64 @ll,96,16 { 0x8100, 0x88a8, 0x9100 } goto gate",
		}},
		{"ifname eth0 and udp", "prerouting", []string{
			"iifname \"eth0\" goto part1",
			"oifname \"eth0\" goto part1",
			"ip protocol udp goto gate",
			"meta nfproto ipv4 return",
			"ip6 nexthdr udp goto gate",
			"ip6 nexthdr ipv6-frag @nh,320,8 0x11 goto gate",
		}},
	} {
		s := defaultSpec("0f8c1234")
		s.Hooks, s.Interfaces, s.Once = []string{c.hook}, []string{"eth0"}, false
		if c.hook != "ingress" {
			s.Interfaces = nil
		}
		s.Filter = parse(t, c.text)
		text, err := Ruleset(s)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, line := range strings.Split(text, "\n") {
			rule, _, isRule := strings.Cut(strings.TrimSpace(line), " comment ")
			if !isRule || strings.Contains(rule, "jump") || strings.Contains(rule, "counter") || strings.Contains(rule, "@alive") || strings.Contains(rule, "vmap") ||
				strings.HasPrefix(rule, "goto") {
				continue
			}
			got = append(got, strings.ReplaceAll(rule, "capture_0f8c1234_stamped_", ""))
		}
		if strings.Join(got, "\n") != strings.Join(c.rules, "\n") {
			t.Errorf("%q gives\n%s\nwant\n%s", c.text, strings.Join(got, "\n"), strings.Join(c.rules, "\n"))
		}
	}
}

// expressions of many kinds, for every hook that sees what they ask for.
var expressions = []string{
	"tcp port 443 and host 192.0.2.7", "not port 22", "port 53 or icmp", "net 10.0.0.0/8 or ip6 net 2001:db8::/33",
	"net 10.0.0.0 mask 255.0.255.0", "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0", "ip[8] < 5 or ip6[7] < 5", "portrange 80-90",
	"len > 100 and less 1000", "ip[0] & 0xf > 5", "ip[6:2] & 0x1fff != 0", "proto 6 or 17 or 47", "ip multicast or ip6 multicast",
	"udp and (port 53 or port 5353) and not host 192.0.2.53", "ip[2:2] - 20 > 100", "ifname eth0", "tcp portrange 1-1023 and src net 192.0.2.0/24",
	"port 80 or 443 or 8080 or portrange 9000-9999", "not port (22 or 53)", "tcp dst port 80 or 443 or tcp dst portrange 8000-8999",
	"icmp[icmptype] = icmp-echo or icmp6[icmp6type] = icmp6-echo", "ip[12:4] > 0x0a000000", "not (host 10.0.0.1 or 10.0.0.2)", hosts(50),
}

var hexNumbers = regexp.MustCompile(`0x[0-9a-f]+`)

// What Ruleset prints of an expression means what Install installs: nft lists both alike
// once it has read the text.
func TestExpressionRuleset(t *testing.T) {
	ns, other := testbed.NewNS(t), testbed.NewNS(t)
	table := openIn(t, ns)
	ethernet := []string{"arp", "vlan 5 and ip", "ether host 00:00:5e:00:53:01", "broadcast or multicast", "ether proto 0x88cc", "ether[0] & 1 = 0"}
	for _, c := range []struct {
		texts []string
		hooks []string
	}{
		{expressions, []string{"prerouting", "output"}}, {append(expressions, ethernet...), []string{"ingress"}},
	} {
		for _, text := range c.texts {
			s := defaultSpec("0f8c1234")
			s.Hooks, s.Interfaces, s.Filter = c.hooks, []string{"lo"}, parse(t, text)
			install(t, table, s)
			// In sets, nft lists numbers that it has no word for in decimal.
			list := func(ns string) string {
				return hexNumbers.ReplaceAllStringFunc(listRuleset(t, ns), func(hex string) string {
					n, err := strconv.ParseUint(hex, 0, 64)
					if err != nil {
						t.Error(err)
					}
					return strconv.FormatUint(n, 10)
				})
			}
			got := strings.Replace(list(ns), emptyTable, "", 1)
			printed, err := Ruleset(s)
			if err != nil {
				t.Fatal(err)
			}
			// nft keeps a table with an owner no longer than it runs.
			cmd := exec.Command("ip", "netns", "exec", other, "nft", "-f", "-")
			cmd.Stdin = strings.NewReader("flush ruleset\n" + strings.ReplaceAll(printed, "\tflags owner\n", ""))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%.80q: nft: %v: %s\n%s", text, err, out, printed)
			}
			want := list(other)
			if strings.ReplaceAll(got, "\tflags owner\n\n", "") != want {
				t.Errorf("%.80q is installed as\n%s\nand printed as\n%s", text, got, want)
			}
			if err := table.Remove(s.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A thousand hosts are two sets, in one transaction.
func TestThousandHosts(t *testing.T) {
	pair := testbed.NewPair(t)
	table := openIn(t, pair.B)
	s := defaultSpec("0f8c1234")
	s.Filter = parse(t, "udp dst port 4242 and ("+hosts(1000)+" or 10.9.0.1)")
	begin := time.Now()
	install(t, table, s)
	t.Logf("installed in %v", time.Since(begin))
	if n := strings.Count(listRuleset(t, pair.B), "\n"); n > 80 {
		t.Errorf("%d lines of rules", n)
	}
	sendUDP(t, pair.A, pair.B, netip.AddrPortFrom(testbed.A4, 0), netip.AddrPortFrom(testbed.B4, 4242), 5)
	sendUDP(t, pair.A, pair.B, netip.AddrPortFrom(testbed.A6, 0), netip.AddrPortFrom(testbed.B6, 4242), 5)
	if got := total(t, table, s.ID); got.Seen != 5 {
		t.Errorf("counted %+v", got)
	}
}

// Names of interfaces in an expression, where a packet has them.
func TestIfName(t *testing.T) {
	pair := testbed.NewPair(t)
	table := openIn(t, pair.B)
	for i, c := range []struct {
		text  string
		hooks []string
		want  uint64
	}{
		{"ifname vb and udp dst port 4242", []string{"prerouting", "output"}, 5 + 3},
		{"not ifname vb and udp dst port 4242", []string{"prerouting", "output"}, 0},
		{"not ifname lo and udp dst port 4242", []string{"prerouting", "output"}, 5 + 3},
		{"ifname vb and udp dst port 4242", []string{"ingress", "egress"}, 5 + 3},
		{"ifname lo and udp dst port 4242", []string{"ingress", "egress"}, 0},
	} {
		s := defaultSpec(fmt.Sprintf("%08x", i))
		s.Hooks, s.Filter = c.hooks, parse(t, c.text)
		if c.hooks[0] == "ingress" {
			s.Interfaces = []string{"vb"}
		}
		install(t, table, s)
		sendUDP(t, pair.A, pair.B, netip.AddrPortFrom(testbed.A4, 0), netip.AddrPortFrom(testbed.B4, 4242), 5)
		sendUDP(t, pair.B, pair.A, netip.AddrPortFrom(testbed.B4, 0), netip.AddrPortFrom(testbed.A4, 4242), 3)
		if got := total(t, table, s.ID); got.Seen != c.want {
			t.Errorf("%q at %v: counted %d, want %d", c.text, c.hooks, got.Seen, c.want)
		}
		if err := table.Remove(s.ID); err != nil {
			t.Fatal(err)
		}
	}
}

// Nothing that a capture is given reaches beyond its own chains: what others have in the
// kernel is as it was, and so is a box that is given the printed rules.
func TestHostileCaptures(t *testing.T) {
	testbed.NeedCommand(t, "nft", "ip")
	const theirs = "table inet firewall {\n\tset blocked {\n\t\ttype ipv4_addr\n\t\telements = { 192.0.2.66 }\n\t}\n\n\tchain in {\n\t\ttype filter hook input priority filter; policy accept;\n\t\tip saddr @blocked drop\n\t}\n}\n"
	for i, c := range []struct{ name, prefix, filter string }{
		{"\"; flush ruleset; add table inet evil; #", "capd:00000001", "tcp"},
		{"x\" accept comment \"y", "capd:00000001", `ifname \};flush`},
		{"a\n\tdelete table inet firewall\n", "capd:00000001", `ifname \$x;{}#`},
		{"firewall", "firewall", "ifname in or ifname blocked"},
		{strings.Repeat("a", 4000), "capd:00000001", hosts(300) + " or (ifname in and portrange 1-65535)"},
		{"@blocked", "@blocked", `ifname \@blocked and not port 22`},
		{"$firewall", "*", "ifname firewall"},
	} {
		ns, other := testbed.NewNS(t), testbed.NewNS(t)
		for _, ns := range []string{ns, other} {
			testbed.RunIn(t, ns, "nft", theirs)
		}
		table := openIn(t, ns)
		s := defaultSpec(fmt.Sprintf("%08x", i))
		s.Name, s.Prefix, s.Filter = c.name, c.prefix, parse(t, c.filter)
		s.Hooks, s.Interfaces = []string{"prerouting", "output", "ingress"}, []string{"lo"}
		install(t, table, s)
		printed, err := Ruleset(s)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("ip", "netns", "exec", other, "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(strings.ReplaceAll(printed, "\tflags owner\n", ""))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%.40q: nft: %v: %s", c.name, err, out)
		}
		for _, ns := range []string{ns, other} {
			if got := testbed.RunIn(t, ns, "nft", "list", "table", "inet", "firewall"); got != theirs {
				t.Errorf("%.40q: their table is now\n%s", c.name, got)
			}
			tables := strings.Fields(strings.ReplaceAll(testbed.RunIn(t, ns, "nft", "list", "tables"), "table ", ""))
			if got := strings.Join(tables, " "); got != "inet firewall inet capd netdev capd" {
				t.Errorf("%.40q: there are the tables %s", c.name, got)
			}
			for line := range strings.Lines(testbed.RunIn(t, ns, "nft", "list", "chains")) {
				name, isChain := strings.CutPrefix(strings.TrimSpace(line), "chain ")
				name, _, _ = strings.Cut(name, " ")
				if ours := strings.HasPrefix(name, "capture_"+s.ID) || slices.Contains([]string{"prerouting", "output", "ingress_lo", "in"}, name); isChain && !ours {
					t.Errorf("%.40q: chain %q", c.name, name)
				}
			}
		}
		if err := table.Remove(s.ID); err != nil {
			t.Fatal(err)
		}
	}
	// What cannot be made fit is refused.
	for _, change := range []func(*Spec){
		func(s *Spec) { s.Prefix = "a\" accept" }, func(s *Spec) { s.Prefix = "a\nb" }, func(s *Spec) { s.Prefix = "$firewall" }, func(s *Spec) { s.ID = "0f8c1234; flush" },
		func(s *Spec) { s.ID = "../../aaaa" }, func(s *Spec) { s.Interfaces = []string{"a\"; b"} }, func(s *Spec) { s.Interfaces = []string{"*b"} },
		func(s *Spec) { s.Hooks = []string{"input priority 0; }"} },
	} {
		s := defaultSpec("0f8c1234")
		change(&s)
		if text, err := Ruleset(s); err == nil {
			t.Errorf("%+v is taken:\n%s", s, text)
		}
	}
}
