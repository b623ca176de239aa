package nft

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"capd/testbed"
)

// router is a namespace between two others, with a rule that translates what goes from a
// to b, and a table of capd.
func router(t *testing.T, nat string) (a, r, b string, table *Table) {
	a, r, b = testbed.NewNS(t), testbed.NewNS(t), testbed.NewNS(t)
	table = openIn(t, r)
	for _, c := range [][]string{
		{"-n", r, "link", "add", "inside", "type", "veth", "peer", "name", "va", "netns", a},
		{"-n", r, "link", "add", "outside", "type", "veth", "peer", "name", "vb", "netns", b},
		{"-n", r, "addr", "add", "10.1.0.1/24", "dev", "inside"}, {"-n", r, "addr", "add", "192.0.2.1/24", "dev", "outside"},
		{"-n", a, "addr", "add", "10.1.0.2/24", "dev", "va"}, {"-n", b, "addr", "add", "192.0.2.2/24", "dev", "vb"},
		{"-n", r, "link", "set", "inside", "up"}, {"-n", r, "link", "set", "outside", "up"},
		{"-n", a, "link", "set", "va", "up"}, {"-n", b, "link", "set", "vb", "up"},
		{"-n", a, "route", "add", "default", "via", "10.1.0.1"},
	} {
		testbed.Run(t, "ip", c...)
	}
	testbed.RunIn(t, r, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
	if nat != "" {
		testbed.RunIn(t, r, "nft", nat)
	}
	return a, r, b, table
}

const masquerade = `table ip home { chain out { type nat hook postrouting priority srcnat; oifname "outside" masquerade; }; }`

// Both sides of a translation are one capture: at prerouting with the addresses that
// packets come with, at postrouting with those that they leave with.
func TestBothSidesOfNAT(t *testing.T) {
	a, _, b, table := router(t, masquerade)
	for i, c := range []struct {
		hooks []string
		text  string
		want  uint64 // of 4 echo requests and their answers
	}{
		{[]string{"prerouting", "postrouting"}, "icmp", 16},
		{[]string{"prerouting", "postrouting"}, "icmp and host 10.1.0.2", 8},
		{[]string{"prerouting", "postrouting"}, "icmp and host 192.0.2.1", 8},
		{[]string{"prerouting"}, "icmp and host 10.1.0.2", 4}, // half blind
		{[]string{"postrouting"}, "icmp and host 10.1.0.2", 4},
		{[]string{"postrouting"}, "icmp and src host 192.0.2.1", 4},
		{[]string{"prerouting"}, "icmp and dst host 192.0.2.1", 4},
	} {
		s := defaultSpec("0000000" + string(rune('0'+i)))
		s.Once, s.Hooks, s.Filter = false, c.hooks, parse(t, c.text)
		install(t, table, s)
		if _, err := testbed.SendICMP(testbed.Stream{From: a, To: b, Source: netip.MustParseAddrPort("10.1.0.2:0"),
			Destination: netip.MustParseAddrPort("192.0.2.2:0"), Count: 4}); err != nil {
			t.Fatal(err)
		}
		if got := total(t, table, s.ID); got.Seen != c.want {
			t.Errorf("%q at %v: counted %d, want %d", c.text, c.hooks, got.Seen, c.want)
		}
		if err := table.Remove(s.ID); err != nil {
			t.Fatal(err)
		}
	}
}

// A filter that names hosts is warned of rules that translate addresses, where it would
// miss one direction.
func TestHazardNAT(t *testing.T) {
	for name, nat := range map[string]string{
		"none":         "",
		"other rules":  `table ip home { chain out { type nat hook postrouting priority srcnat; counter; }; }`,
		"masquerade":   masquerade,
		"dnat by jump": `table inet home { chain web { ip daddr 192.0.2.1 dnat ip to 10.1.0.2; }; chain in { type nat hook prerouting priority dstnat; tcp dport 80 jump web; }; }`,
		"redirect":     `table ip6 home { chain in { type nat hook prerouting priority dstnat; tcp dport 80 redirect to :8080; }; }`,
		"map":          `table ip home { chain out { type nat hook postrouting priority srcnat; snat to ip saddr map { 10.1.0.2 : 192.0.2.9 }; }; }`,
	} {
		t.Run(name, func(t *testing.T) {
			ns := testbed.NewNS(t)
			table := openIn(t, ns)
			if nat != "" {
				testbed.RunIn(t, ns, "nft", nat)
			}
			translated := nat != "" && name != "other rules"
			for _, c := range []struct {
				hooks string
				text  string
				warns bool
			}{
				{"prerouting,output", "by flow", true},
				{"prerouting,postrouting", "by flow", false},
				{"ingress,egress", "by flow", false},
				{"prerouting,output", "host 10.1.0.2", true},
				{"prerouting", "tcp or not (udp and net 10.0.0.0/8)", true},
				{"prerouting,postrouting", "host 10.1.0.2", false},
				{"ingress,egress", "host 10.1.0.2", false},
				{"prerouting,output", "tcp port 80", false},
			} {
				s := defaultSpec("0f8c1234")
				s.Hooks, s.Interfaces = strings.Split(c.hooks, ","), []string{"lo"}
				if s.SampleFlow = c.text == "by flow"; s.SampleFlow {
					s.Sample = 4
				} else {
					s.Filter = parse(t, c.text)
				}
				found, err := table.Hazards(s)
				if err != nil {
					t.Fatal(err)
				}
				if got := slices.ContainsFunc(found, func(h Hazard) bool { return h.Code == HazardNAT && strings.Contains(h.Message, " home") }); got != (translated && c.warns) {
					t.Errorf("%q at %s: %+v", c.text, c.hooks, found)
				}
				testbed.In(t, ns, func() error {
					again, err := Hazards(s)
					if !slices.Equal(again, found) {
						t.Errorf("by itself %+v, by the table %+v", again, found)
					}
					return err
				})
			}
		})
	}
}
