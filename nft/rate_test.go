package nft

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"capd/nft/filter"
	"capd/testbed"
)

// All captures together log no more than the box's rate, whatever tables they are in; a
// flood in one takes nothing from another; and when one comes or goes, the others' limits
// change without a counter losing anything.
func TestRateIsTheBoxs(t *testing.T) {
	const rate = 3000
	pair := testbed.NewPair(t)
	table := openIn(t, pair.B)
	spec := func(id string, port uint16, hooks ...string) Spec {
		s := defaultSpec(id)
		s.Filter, s.Hooks, s.Interfaces, s.Once, s.Rate = v1(t, filter.V1{DestinationPort: port}), hooks, []string{"vb"}, false, rate
		return s
	}
	limits := func(each string, n int) {
		t.Helper()
		if rules := listRuleset(t, pair.B); strings.Count(rules, "rate over "+each+"/second") != n || strings.Count(rules, "rate over") != n {
			t.Errorf("want %d limits of %s/second:\n%s", n, each, rules)
		}
	}
	flood, same, quiet := spec("00000001", 9, "prerouting", "output"), spec("00000002", 9, "ingress"), spec("00000003", 4242, "prerouting")
	begun := time.Now()
	install(t, table, flood)
	limits("3000", 1)
	install(t, table, same)
	limits("1500", 2)
	install(t, table, quiet)
	limits("1000", 3)
	seen := func(id string) Counters {
		t.Helper()
		got := total(t, table, id)
		if got.Seen != got.Limited+got.Total()+got.SampledOut || got.Stalled != 0 {
			t.Errorf("%s: the account does not come out: %+v", id, got)
		}
		return got
	}

	const frames = 30_000
	if _, err := testbed.Inject(pair.B, testbed.InjectOptions{Interface: "vb", Count: frames, Length: 60}); err != nil {
		t.Fatal(err)
	}
	sendUDP(t, pair.A, pair.B, netip.AddrPortFrom(testbed.A4, 0), netip.AddrPortFrom(testbed.B4, 4242), 50)
	a, b, c := seen(flood.ID), seen(same.ID), seen(quiet.ID)
	// As many as the rate allows in the time that it took, and the bursts of all limits that were there.
	if most := rate*time.Since(begun).Seconds() + 3*rate/10; float64(a.Total()+b.Total()+c.Total()) > most {
		t.Errorf("%d + %d + %d packets are logged, %.0f are allowed", a.Total(), b.Total(), c.Total(), most)
	}
	if a.Seen != frames || b.Seen != frames || a.Total() < 100 || b.Total() < 100 || a.Limited == 0 || b.Limited == 0 {
		t.Errorf("the flood: %+v, %+v", a, b)
	}
	if c.Seen != 50 || c.Limited != 0 || c.Total() != 50 {
		t.Errorf("the quiet one beside the flood: %+v", c)
	}

	if err := table.Remove(same.ID); err != nil {
		t.Fatal(err)
	}
	limits("1500", 2)
	if again := seen(flood.ID); again.Seen != a.Seen || again.Limited != a.Limited || again.Total() != a.Total() || again.Reset {
		t.Errorf("another share changed the account: %+v, it was %+v", again, a)
	}
	both := spec("00000004", 9, "prerouting", "ingress") // two parts of its own
	install(t, table, both)
	limits("750", 4)
	if err := table.Remove(flood.ID); err != nil {
		t.Fatal(err)
	}
	limits("1000", 3)
	unlimited := spec("00000005", 9, "prerouting")
	unlimited.Rate = 0
	install(t, table, unlimited)
	limits("1000", 3)

	// The box's rate can change while they run; the account goes on.
	before := seen(quiet.ID)
	set := func(rate uint64, without int) {
		t.Helper()
		if n, err := table.SetRate(rate); err != nil || n != without {
			t.Fatalf("SetRate(%d): %d without a limit, %v", rate, n, err)
		}
	}
	set(600, 1)
	limits("200", 3)
	set(600, 1)
	limits("200", 3)
	set(0, 0)
	limits("1000000000", 3)
	if _, err := testbed.Inject(pair.B, testbed.InjectOptions{Interface: "vb", Count: frames, Length: 60}); err != nil {
		t.Fatal(err)
	}
	if got := seen(both.ID); got.Seen != 2*frames || got.Limited != 0 {
		t.Errorf("without a limit: %+v", got)
	}
	set(6000, 1)
	limits("2000", 3)
	if after := seen(quiet.ID); after.Seen != before.Seen || after.Total() != before.Total() || after.Reset {
		t.Errorf("another rate changed the account: %+v, it was %+v", after, before)
	}
	for _, s := range []Spec{quiet, both, unlimited} {
		if err := table.Remove(s.ID); err != nil {
			t.Fatal(err)
		}
	}
	if got := listRuleset(t, pair.B); got != emptyTable {
		t.Errorf("left:\n%s", got)
	}
}
