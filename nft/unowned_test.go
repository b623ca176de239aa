package nft

import (
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"capd/nft/filter"
	"capd/testbed"
)

// These tests show what stands in for tables with an owner, in this kernel, which is told
// that it has none.

// unownedTable is what is left when no capture is installed.
const unownedTable = "table inet capd {\n\tchain made_by_capd {\n\t}\n}\n"

// Two capds exclude each other; what a killed one leaves stops logging by itself, and the
// next one finds and removes it; others' tables stay.
func TestUnownedLeftovers(t *testing.T) {
	pair := testbed.NewPair(t)
	loadOther(t, pair.B)
	cmd := startOwner(t, pair.B, "owner")
	second := func() error {
		return testbed.Do(pair.B, func() error {
			table, err := openLacking("owner")
			if err == nil {
				_ = table.Close()
			}
			return err
		})
	}
	before := listRuleset(t, pair.B)
	if strings.Contains(before, "owner") || !strings.Contains(before, "table inet capd") || !strings.Contains(before, "table netdev capd") {
		t.Fatalf("installed:\n%s", before)
	}
	if err := second(); !errors.Is(err, ErrOwned) {
		t.Errorf("a second capd got %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // says "killed"
	if got := testbed.RunIn(t, pair.B, "nft", "list ruleset"); !strings.Contains(got, "table inet capd") {
		t.Fatalf("the kernel has removed the tables of a killed capd:\n%s", got)
	}

	until(t, "the dead-man switch", func() bool {
		return !strings.Contains(testbed.RunIn(t, pair.B, "nft", "list set inet capd alive"), "expires")
	})
	// counted sums the counters of the rules whose comments end so.
	counted := func(end string) (sum uint64) {
		t.Helper()
		for line := range strings.Lines(testbed.RunIn(t, pair.B, "nft", "list table inet capd")) {
			if _, after, found := strings.Cut(line, "counter packets "); found && strings.HasSuffix(line, end+"\"\n") {
				number, _, _ := strings.Cut(after, " ")
				n, err := strconv.ParseUint(number, 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				sum += n
			}
		}
		return sum
	}
	stalled, matched := counted("does not answer"), counted("matched")
	sendUDP(t, pair.B, pair.B, netip.AddrPortFrom(testbed.B4, 0), netip.AddrPortFrom(testbed.B4, 4242), 10)
	if held, logged := counted("does not answer")-stalled, counted("matched")-matched; held < 10 || logged != 0 {
		t.Errorf("of a killed capd's rules %d packets were held back, and %d logged", held, logged)
	}

	table := openInLacking(t, pair.B, "owner")
	if got := listRuleset(t, pair.B); got != otherTable+unownedTable {
		t.Errorf("after the next start:\n%s", got)
	}
	install(t, table, defaultSpec("0f8c1234"))
	if err := table.Remove("0f8c1234"); err != nil {
		t.Fatal(err)
	}
	if got := listRuleset(t, pair.B); got != otherTable+unownedTable {
		t.Errorf("left behind:\n%s", got)
	}
	if err := table.Close(); err != nil {
		t.Fatal(err)
	}
	if got := listRuleset(t, pair.B); got != otherTable {
		t.Errorf("after Close:\n%s", got)
	}
	if err := second(); err != nil {
		t.Errorf("after Close: %v", err)
	}
}

// Tables of capd's name that are not capd's are never touched.
func TestUnownedForeign(t *testing.T) {
	for _, family := range []string{"inet", "netdev"} {
		t.Run(family, func(t *testing.T) {
			ns := testbed.NewNS(t)
			testbed.RunIn(t, ns, "nft", "add table "+family+" capd; add chain "+family+" capd theirs")
			before := listRuleset(t, ns)
			var table *Table
			err := testbed.Do(ns, func() (err error) {
				table, err = openLacking("owner")
				return err
			})
			if err == nil {
				s := defaultSpec("0f8c1234")
				s.Hooks, s.Interfaces = []string{"ingress"}, []string{"lo"}
				err = table.Install(s)
				if closed := table.Close(); closed != nil {
					t.Error(closed)
				}
			}
			if !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), "table "+family+" capd") {
				t.Errorf("got %v", err)
			}
			if got := listRuleset(t, ns); got != before {
				t.Errorf("touched:\n%s", got)
			}
		})
	}
}

// Whatever somebody removes of the rules is put back, the counts go on, and it is said.
func TestUnownedRestores(t *testing.T) {
	testbed.NeedCommand(t, "nft")
	pair := testbed.NewPair(t)
	table := openInLacking(t, pair.B, "owner")
	loadOther(t, pair.B)
	one, two := defaultSpec("00000001"), defaultSpec("00000002")
	one.Filter, two.Filter = v1(t, filter.V1{DestinationPort: 4242}), v1(t, filter.V1{DestinationPort: 4242})
	one.Rate, two.Rate = 100_000, 100_000
	two.Once, two.Hooks, two.Interfaces, two.Stamped = false, []string{"ingress"}, []string{"vb"}, []uint16{1003}
	install(t, table, one)
	install(t, table, two)
	removed := []string{
		"flush ruleset", "delete table inet capd", "delete table netdev capd", "flush table inet capd", "flush table netdev capd",
		"flush chain inet capd prerouting", "flush chain inet capd capture_00000001_stamped_gate", "insert rule inet capd capture_00000001_stamped_gate accept",
	}
	counts := func(id string) Counters {
		t.Helper()
		c, err := table.Counters(id)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	send := func() {
		t.Helper()
		sendUDP(t, pair.A, pair.B, netip.AddrPortFrom(testbed.A4, 0), netip.AddrPortFrom(testbed.B4, 4242), 10)
	}
	send()
	for i, command := range removed {
		want := uint64(10 * (i + 1))
		for _, id := range []string{one.ID, two.ID} {
			if c := counts(id); c.Seen != want || c.Total() != want || c.Reset != (i > 0) {
				t.Fatalf("before %s: %s has counted %+v, want %d", command, id, c, want)
			}
		}
		testbed.RunIn(t, pair.B, "nft", command)
		if err := table.Renew(); err != nil {
			t.Fatalf("%s: %v", command, err)
		}
		if got := table.Restored(); len(got) != 2 || got[one.ID] != nil || got[two.ID] != nil {
			t.Fatalf("%s: restored %v", command, got)
		}
		send()
	}
	// A base chain at a device alone: as if the device had gone and come back.
	testbed.RunIn(t, pair.B, "nft", "flush chain netdev capd ingress_vb; delete chain netdev capd ingress_vb")
	if err := table.Renew(); err != nil {
		t.Fatal(err)
	}
	send()
	want := uint64(10 * (len(removed) + 2))
	if got := counts(two.ID); got.Seen != want {
		t.Errorf("the device's chain was not put back: %+v, want %d", got, want)
	}
	if got := table.Restored(); len(got) != 0 {
		t.Errorf("restored %v, and nothing was missing", got)
	}

	// Each call sees to it, not only Renew.
	for i, call := range []func() error{
		func() error { _, err := table.Counters(one.ID); return err },
		func() error {
			return table.AddExclude(filter.Flow{Source: testbed.A4, SourcePort: 1, Destination: testbed.B4, DestinationPort: 2})
		},
		func() error { return table.Install(defaultSpec("00000003")) },
		func() error { return table.Unhook("00000003") },
		func() error { return table.Remove("00000003") },
	} {
		testbed.RunIn(t, pair.B, "nft", "flush ruleset")
		if err := call(); err != nil {
			t.Errorf("call %d after nft flush ruleset: %v", i, err)
		}
	}
	if got := listRuleset(t, pair.B); !strings.Contains(got, "10.9.0.1 . 1 . 10.9.0.2 . 2") && !strings.Contains(got, testbed.A4.String()+" . 1 . ") {
		t.Errorf("the excluded connection is not back:\n%s", got)
	}
	for _, id := range []string{one.ID, two.ID} {
		if err := table.Remove(id); err != nil {
			t.Error(err)
		}
	}
	if got := listRuleset(t, pair.B); got != unownedTable {
		t.Errorf("left behind:\n%s", got)
	}
}

// Where the rules cannot be put back, the capture is told so and keeps its last counts.
func TestUnownedRulesGone(t *testing.T) {
	testbed.NeedCommand(t, "nft")
	pair := testbed.NewPair(t)
	table := openInLacking(t, pair.B, "owner")
	s := defaultSpec("00000001")
	s.Filter = v1(t, filter.V1{DestinationPort: 4242})
	install(t, table, s)
	sendUDP(t, pair.A, pair.B, netip.AddrPortFrom(testbed.A4, 0), netip.AddrPortFrom(testbed.B4, 4242), 10)
	total(t, table, s.ID)
	testbed.RunIn(t, pair.B, "nft", "flush ruleset; add table inet capd; add chain inet capd theirs")
	theirs := listRuleset(t, pair.B)
	for range 2 {
		if err := table.Renew(); err != nil {
			t.Fatal(err)
		}
	}
	if why := table.Restored()[s.ID]; why == nil || !errors.Is(why, errRemoved) || !errors.Is(why, ErrExists) {
		t.Errorf("the capture was told %v", why)
	}
	if err := table.Unhook(s.ID); err != nil {
		t.Error(err)
	}
	if c, err := table.Counters(s.ID); err != nil || c.Seen != 10 || !c.Reset {
		t.Errorf("counted %+v, %v", c, err)
	}
	if err := table.Remove(s.ID); err != nil {
		t.Error(err)
	}
	if err := table.Install(defaultSpec("00000002")); !errors.Is(err, ErrExists) {
		t.Errorf("installing in somebody else's table: %v", err)
	}
	if got := listRuleset(t, pair.B); got != theirs {
		t.Errorf("touched:\n%s", got)
	}
	testbed.RunIn(t, pair.B, "nft", "delete table inet capd")
	install(t, table, defaultSpec("00000002")) // there is room again
}

// What is printed for a poorer kernel is what runs there. Without timeouts there is no
// dead-man switch, and nothing else is missing.
func TestPoorerKernels(t *testing.T) {
	testbed.NeedCommand(t, "nft")
	for _, lacking := range []string{"owner", "timeout", "owner,ipsec,vrf"} {
		t.Run(lacking, func(t *testing.T) {
			pair := testbed.NewPair(t)
			table := openInLacking(t, pair.B, lacking)
			s := defaultSpec("0f8c1234")
			s.CPUs, s.Rate = 2, 100_000
			install(t, table, s)
			want, err := table.Ruleset(s)
			if err != nil {
				t.Fatal(err)
			}
			lines := func(text string) []string { // nft prints chains in the order in which they were made
				all := strings.Split(text, "\n")
				slices.Sort(all)
				return all
			}
			if got := listRuleset(t, pair.B); !slices.Equal(lines(got), lines(want)) {
				t.Errorf("installed:\n%s\nprinted:\n%s", got, want)
			}
			if err := table.Renew(); err != nil {
				t.Error(err)
			}
			sendUDP(t, pair.A, pair.B, netip.AddrPortFrom(testbed.A4, 0), netip.AddrPortFrom(testbed.B4, 4242), 10)
			if got := total(t, table, s.ID); got.Total() < 10 || got.Stalled != 0 {
				t.Errorf("counted %+v", got)
			}
			found, err := table.Hazards(s)
			told := slices.ContainsFunc(found, func(h Hazard) bool { return h.Code == HazardNoSwitch })
			if err != nil || told != (lacking == "timeout") {
				t.Errorf("hazards %+v, %v", found, err)
			}
			if err := table.Remove(s.ID); err != nil {
				t.Error(err)
			}
			if got := listRuleset(t, pair.B); got != emptyTable && got != unownedTable {
				t.Errorf("left behind:\n%s", got)
			}
		})
	}
	if err := (Features{}).without("owner,timeout").floor(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("with neither an owner nor timeouts: %v", err)
	}
}
