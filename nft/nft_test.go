package nft

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"capd/nft/filter"
	"capd/testbed"
)

// openIn opens the table in a namespace for as long as the test lasts.
func openIn(t testing.TB, ns string) *Table {
	t.Helper()
	return openInLacking(t, ns, "nothing")
}

// openLacking is Open in a kernel that lacks features, by their names.
func openLacking(names string) (*Table, error) {
	features, err := Probe()
	if err != nil {
		return nil, err
	}
	return openWith(features.without(names))
}

// openInLacking is openIn in a kernel that lacks features.
func openInLacking(t testing.TB, ns, names string) *Table {
	t.Helper()
	testbed.NeedCommand(t, "nft", "ip")
	var table *Table
	testbed.In(t, ns, func() (err error) {
		table, err = openLacking(names)
		return err
	})
	t.Cleanup(func() {
		if err := table.Close(); err != nil {
			t.Error(err)
		}
	})
	return table
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// defaultSpec is a capture as capd makes it when nothing is asked for.
func defaultSpec(id string) Spec {
	return Spec{
		ID: id, Name: "test", Hooks: []string{"prerouting", "output"}, Once: true,
		Stamped: []uint16{1000, 1001}, Clocked: []uint16{1002}, CPUs: CPUs(),
		Prefix: "capd:" + id[:8], QueueThreshold: 230,
	}
}

var (
	counterValues = regexp.MustCompile(`packets \d+ bytes \d+`)
	progName      = regexp.MustCompile(` # progname \S+`)
	expiry        = regexp.MustCompile(` expires \w+`)
)

// listRuleset gives what nft prints, without what changes from moment to moment.
func listRuleset(t testing.TB, ns string) string {
	t.Helper()
	text := testbed.RunIn(t, ns, "nft", "list", "ruleset")
	text = counterValues.ReplaceAllString(text, "packets 0 bytes 0")
	text = progName.ReplaceAllString(text, "")
	return expiry.ReplaceAllString(text, "")
}

// emptyTable is what is left when no capture is installed.
const emptyTable = "table inet capd {\n\tflags owner\n}\n"

func v1(t testing.TB, v filter.V1) *filter.Filter {
	t.Helper()
	f, err := filter.FromV1(v)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// specs are captures of many kinds.
func specs(t testing.TB) map[string]Spec {
	with := func(change func(*Spec)) Spec {
		s := defaultSpec("0f8c1234aaaaaaaaaaaaaaaaaaaaaaaa")
		change(&s)
		return s
	}
	out := map[string]Spec{
		"default": with(func(s *Spec) {}),
		"bare":    with(func(s *Spec) { s.Once, s.Name, s.Prefix, s.QueueThreshold = false, "", "", 0 }),
		"one group": with(func(s *Spec) {
			s.Stamped, s.Hooks = s.Stamped[:1], []string{"input"}
		}),
		"fewer groups than CPUs": with(func(s *Spec) { s.CPUs, s.Stamped = 7, []uint16{5, 6, 7} }),
		"sample, snaplen, rate": with(func(s *Spec) {
			s.Sample, s.Snaplen, s.Rate = 100, 160, 100000
		}),
		"slow rate, flows": with(func(s *Spec) { s.Sample, s.SampleFlow, s.Rate = 7, true, 3 }),
		"all inet hooks, interfaces": with(func(s *Spec) {
			s.Hooks = []string{"prerouting", "input", "forward", "output", "postrouting"}
			s.Interfaces = []string{"lo", "eth*"}
		}),
		"netdev": with(func(s *Spec) {
			s.Hooks, s.Interfaces, s.Once = []string{"ingress", "egress"}, []string{"lo"}, false
		}),
		"both families": with(func(s *Spec) {
			s.Hooks, s.Interfaces, s.Rate = []string{"egress", "output"}, []string{"lo"}, 1000
		}),
		"behind a flowtable": with(func(s *Spec) {
			s.Offloaded, s.Rate, s.Filter = []string{"lo"}, 1000, parse(t, "host 192.0.2.7 or icmp")
		}),
		"excluded flows": with(func(s *Spec) {
			s.Exclude = []filter.Flow{
				{Source: addr("198.51.100.7"), SourcePort: 50022, Destination: addr("192.0.2.1"), DestinationPort: 22},
				{Source: addr("2001:db8::1"), Destination: addr("2001:db8::2"), DestinationPort: 22},
				{SourcePort: 53, DestinationPort: 53},
				{Destination: addr("192.0.2.9")},
			}
		}),
	}
	for i, v := range v1Filters {
		for name, hooks := range map[string][]string{"inet": {"prerouting", "output"}, "netdev": {"ingress"}} {
			s := with(func(s *Spec) { s.Filter, s.Hooks, s.Interfaces = v1(t, v), hooks, []string{"lo"} })
			s.Exclude = out["excluded flows"].Exclude
			out[fmt.Sprintf("filter_v1 %d %s", i, name)] = s
		}
	}
	return out
}

var v1Filters = []filter.V1{
	{SourceAddress: "192.0.2.7"},
	{DestinationAddress: "192.0.2.0/24", Protocol: "icmp"},
	{SourceAddress: "192.0.0.0/9", DestinationAddress: "192.0.2.0/31", Protocol: "6"},
	{SourceAddress: "0.0.0.0/0"},
	{SourceAddress: "2001:db8::/32", DestinationAddress: "2001:db8::7", Protocol: "ipv6-icmp"},
	{SourceAddress: "2001:db8::/33", DestinationAddress: "::/0", DestinationPort: 53},
	{SourcePort: 53}, {SourcePort: 53, DestinationPort: 5353},
	{SourcePort: 53, DestinationPort: 5353, Protocol: "udp"},
	{DestinationPort: 443, Protocol: "tcp", SourceAddress: "1.2.3.4"},
	{DestinationPort: 1, Protocol: "sctp"}, {DestinationPort: 2, Protocol: "dccp"},
	{DestinationPort: 3, Protocol: "udplite"}, {Protocol: "gre"}, {Protocol: "200"}, {Protocol: "255"},
}

// What Ruleset prints is what nft prints of the rules once they are installed, and nft
// accepts it.
func TestRulesetIsWhatNftLists(t *testing.T) {
	ns := testbed.NewNS(t)
	table := openIn(t, ns)
	other := testbed.NewNS(t)
	for name, s := range specs(t) {
		t.Run(name, func(t *testing.T) {
			want, err := Ruleset(s)
			if err != nil {
				t.Fatal(err)
			}
			if err := table.Install(s); err != nil {
				t.Fatal(err)
			}
			got := listRuleset(t, ns)
			if err := table.Remove(s.ID); err != nil {
				t.Fatal(err)
			}
			if left := listRuleset(t, ns); left != emptyTable {
				t.Fatalf("left behind:\n%s", left)
			}
			// The table of family inet is there even when nothing is in it.
			if got = strings.Replace(got, emptyTable, "", 1); got != want {
				t.Errorf("nft lists\n%s\nRuleset gives\n%s", got, want)
			}
			checkText(t, other, want)
		})
	}
}

// checkText runs nft -c on a ruleset, which needs no priorities or names to be ours.
func checkText(t testing.TB, ns, text string) {
	t.Helper()
	cmd := exec.Command("ip", "netns", "exec", ns, "nft", "-c", "-f", "-")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("nft -c: %v: %s\n%s", err, out, text)
	}
}

var chainNames = regexp.MustCompile(`(?m)^\tchain (\S+) {`)

// Nothing in nft's JSON is a raw number where nft has a word.
func TestNoRawExpressions(t *testing.T) {
	ns := testbed.NewNS(t)
	table := openIn(t, ns)
	for name, s := range specs(t) {
		install(t, table, s)
		// Chain by chain: nft 1.0.6 uses freed memory when it prints a table's owner flag
		// as JSON (src/json.c, table_flags_json).
		var docs []any
		for _, table := range strings.Split(listRuleset(t, ns), "table ")[1:] {
			family, _, _ := strings.Cut(table, " ")
			for _, name := range chainNames.FindAllStringSubmatch(table, -1) {
				var doc any
				if err := json.Unmarshal([]byte(testbed.RunIn(t, ns, "nft", "-j", "list", "chain", family, "capd", name[1])), &doc); err != nil {
					t.Fatal(err)
				}
				docs = append(docs, doc)
			}
		}
		var walk func(any)
		rules, comments := 0, 0
		walk = func(v any) {
			switch v := v.(type) {
			case []any:
				for _, x := range v {
					walk(x)
				}
			case map[string]any:
				if rule, ok := v["rule"].(map[string]any); ok {
					rules++
					if c, _ := rule["comment"].(string); strings.Contains(c, s.ID[:8]) {
						comments++
					}
				}
				if payload, ok := v["payload"].(map[string]any); ok && payload["base"] != nil {
					t.Errorf("%s: raw payload %v", name, payload)
				}
				for _, x := range v {
					walk(x)
				}
			}
		}
		walk(docs)
		if rules == 0 || rules != comments {
			t.Errorf("%s: %d rules, %d of them name the capture", name, rules, comments)
		}
		if err := table.Remove(s.ID); err != nil {
			t.Fatal(err)
		}
	}
}
