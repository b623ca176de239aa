package nft

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"capd/nft/filter"
	"capd/testbed"
)

// ownerEnv makes the test binary a process that owns the table until it is killed. It holds
// the features that its kernel is to lack, or "nothing".
const ownerEnv = "CAPD_NFT_TEST_OWNER"

func TestMain(m *testing.M) {
	if os.Getenv(ownerEnv) != "" {
		own()
		return
	}
	os.Exit(m.Run())
}

// own opens the table, installs a capture at inet and netdev hooks, says so and sleeps.
func own() {
	table, err := openLacking(os.Getenv(ownerEnv))
	if err == nil {
		s := defaultSpec("0f8c1234")
		s.Hooks, s.Interfaces = []string{"prerouting", "output", "ingress"}, []string{"lo"}
		err = table.Install(s)
	}
	fmt.Println("installed", err)
	time.Sleep(time.Minute)
}

// startOwner runs own in a namespace; the process is killed when the test ends.
func startOwner(t testing.TB, ns, lacking string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("ip", "netns", "exec", ns, os.Args[0])
	cmd.Env = append(os.Environ(), ownerEnv+"="+lacking)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may be dead already
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "installed <nil>\n" {
		t.Fatalf("the owner says %q, %v", line, err)
	}
	return cmd
}

// A table of somebody else, as it stands before and after.
const otherTable = `table inet filter {
	chain input {
		type filter hook input priority filter; policy accept;
		tcp dport 22 accept
	}
}
`

func loadOther(t testing.TB, ns string) {
	t.Helper()
	cmd := exec.Command("ip", "netns", "exec", ns, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(otherTable)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// When the owner is killed, its tables are gone and those of others are not. While it
// lives, a second capd is refused, and neither nft flush ruleset nor a deletion of its
// table gets through.
func TestOwner(t *testing.T) {
	testbed.NeedCommand(t, "nft", "ip")
	ns := testbed.NewNS(t)
	loadOther(t, ns)
	cmd := startOwner(t, ns, "nothing")
	before := listRuleset(t, ns)
	if !strings.Contains(before, "table inet capd") || !strings.Contains(before, "table netdev capd") {
		t.Fatalf("not installed:\n%s", before)
	}

	err := testbed.Do(ns, func() error {
		table, err := Open()
		if err == nil {
			_ = table.Close()
		}
		return err
	})
	if !errors.Is(err, ErrOwned) || !errors.Is(err, unix.EPERM) {
		t.Errorf("a second owner got %v", err)
	}
	testbed.RunIn(t, ns, "nft", "flush", "ruleset")
	if got := listRuleset(t, ns); got+otherTable != before && otherTable+got != before {
		t.Errorf("after nft flush ruleset:\n%s\nbefore:\n%s", got, before)
	}
	for _, args := range []string{"delete table inet capd", "flush table inet capd", "add chain inet capd mine"} {
		if out, err := exec.Command("ip", append([]string{"netns", "exec", ns, "nft"}, strings.Fields(args)...)...).CombinedOutput(); err == nil {
			t.Errorf("nft %s got through: %s", args, out)
		}
	}

	loadOther(t, ns)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // says "killed"
	if got := listRuleset(t, ns); got != otherTable {
		t.Errorf("after kill -9:\n%s", got)
	}
	openIn(t, ns) // the next capd takes over
}

// A table of our name that has no owner is not taken over, and the error says what to do.
func TestForeignTable(t *testing.T) {
	testbed.NeedCommand(t, "nft", "ip")
	ns := testbed.NewNS(t)
	testbed.RunIn(t, ns, "nft", "add", "table", "inet", "capd")
	err := testbed.Do(ns, func() error {
		_, err := Open()
		return err
	})
	if !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), "nft delete table inet capd") {
		t.Errorf("got %v", err)
	}
}

// Close deletes the tables; the methods then say so.
func TestClose(t *testing.T) {
	ns := testbed.NewNS(t)
	table := openIn(t, ns)
	s := defaultSpec("0f8c1234")
	install(t, table, s)
	for range 2 {
		if err := table.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if got := listRuleset(t, ns); got != "" {
		t.Errorf("left behind:\n%s", got)
	}
	_, err := table.Counters(s.ID)
	for _, err := range []error{err, table.Install(s), table.Unhook(s.ID), table.Remove(s.ID), table.Renew()} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("got %v", err)
		}
	}
}

// Unhook stops the counting at once and keeps the counters; Remove leaves other captures
// alone. Unknown captures are refused.
func TestUnhook(t *testing.T) {
	pair := testbed.NewPair(t)
	table := openIn(t, pair.B)
	port := filter.V1{DestinationPort: 4242}
	one, two := defaultSpec("00000001"), defaultSpec("00000002")
	two.Hooks, two.Interfaces = []string{"prerouting", "ingress"}, []string{"vb"}
	one.Filter, two.Filter = v1(t, port), v1(t, port)
	install(t, table, one)
	install(t, table, two)
	send := func() {
		t.Helper()
		sendUDP(t, pair.A, pair.B, netip.AddrPortFrom(testbed.A4, 0), netip.AddrPortFrom(testbed.B4, 4242), 10)
	}
	send()
	for range 2 { // the second time nothing is left to do
		if err := table.Unhook(one.ID); err != nil {
			t.Fatal(err)
		}
	}
	send()
	if a, b := total(t, table, one.ID).Total(), total(t, table, two.ID).Total(); a != 10 || b != 40 {
		t.Errorf("counted %d and %d, want 10 and 40", a, b)
	}
	if err := table.Remove(one.ID); err != nil {
		t.Fatal(err)
	}
	send()
	if b := total(t, table, two.ID).Total(); b != 60 {
		t.Errorf("counted %d, want 60", b)
	}
	_, err := table.Counters(one.ID)
	for _, err := range []error{err, table.Unhook(one.ID), table.Remove(one.ID), table.Remove("nothing")} {
		if !errors.Is(err, ErrUnknown) {
			t.Errorf("got %v", err)
		}
	}
	if err := table.Remove(two.ID); err != nil { // without Unhook before
		t.Fatal(err)
	}
	if got := listRuleset(t, pair.B); got != emptyTable {
		t.Errorf("left behind:\n%s", got)
	}
}

// Fifty captures come and go, many at a time, and leave nothing.
func TestManyAtOnce(t *testing.T) {
	ns := testbed.NewNS(t)
	table := openIn(t, ns)
	loadOther(t, ns)
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			s := defaultSpec(fmt.Sprintf("%08x", i))
			s.Sample, s.Rate = 10, 1000
			if i%3 == 0 {
				s.Hooks, s.Interfaces = []string{"ingress", "output"}, []string{"lo"}
			}
			err := table.Install(s)
			if err == nil {
				err = table.Renew()
			}
			if err == nil {
				_, err = table.Counters(s.ID)
			}
			if err == nil && i%2 == 0 {
				err = table.Unhook(s.ID)
			}
			if err == nil {
				err = table.Remove(s.ID)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got := listRuleset(t, ns); got != emptyTable+otherTable {
		t.Errorf("left behind:\n%s", got)
	}
}

// A refused installation leaves nothing, and the next one works.
func TestInstallFails(t *testing.T) {
	ns := testbed.NewNS(t)
	table := openIn(t, ns)
	good := defaultSpec("00000001")
	install(t, table, good)
	before := listRuleset(t, ns)
	with := func(change func(*Spec)) Spec {
		s := defaultSpec("00000002")
		change(&s)
		return s
	}
	for name, c := range map[string]struct {
		spec Spec
		want error // nil: any
	}{
		"twice":            {good, ErrExists},
		"same first half":  {with(func(s *Spec) { s.ID = good.ID + "ffff" }), ErrExists},
		"no such device":   {with(func(s *Spec) { s.Hooks, s.Interfaces = []string{"prerouting", "ingress"}, []string{"lo", "nope0"} }), ErrNoInterface},
		"no interface":     {with(func(s *Spec) { s.Hooks = []string{"egress"} }), nil},
		"no hook":          {with(func(s *Spec) { s.Hooks = nil }), nil},
		"unknown hook":     {with(func(s *Spec) { s.Hooks = []string{"foo"} }), nil},
		"no groups":        {with(func(s *Spec) { s.Clocked = nil }), nil},
		"bad id":           {with(func(s *Spec) { s.ID = "0f8c" }), nil},
		"bad id, quote":    {with(func(s *Spec) { s.ID = `0000000"` }), nil},
		"bad prefix":       {with(func(s *Spec) { s.Prefix = strings.Repeat("x", 128) }), nil},
		"bad prefix quote": {with(func(s *Spec) { s.Prefix = `a" accept` }), nil},
		"bad interface":    {with(func(s *Spec) { s.Interfaces = []string{"averyveryverylongname"} }), nil},
		"bad interface, *": {with(func(s *Spec) { s.Interfaces = []string{"e*h"} }), nil},
		"flow of nothing":  {with(func(s *Spec) { s.Exclude = []filter.Flow{{}} }), nil},
		"flow of two families": {with(func(s *Spec) {
			s.Exclude = []filter.Flow{{Source: addr("192.0.2.1"), Destination: addr("2001:db8::1")}}
		}), nil},
		"negative CPUs": {with(func(s *Spec) { s.CPUs = -1 }), nil},
	} {
		err := table.Install(c.spec)
		if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.HasPrefix(err.Error(), "nft: ") {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
		if got := listRuleset(t, ns); got != before {
			t.Errorf("%s: left behind:\n%s", name, got)
		}
	}

	// The kernel itself refuses, in the middle of the transaction.
	table.mu.Lock()
	rules, err := layout(with(func(s *Spec) { s.Hooks = []string{"prerouting", "ingress"} }), []string{"lo"}, lacks{})
	if err != nil {
		t.Fatal(err)
	}
	last := &rules[1].chains[len(rules[1].chains)-1].rules[0]
	last.verdict, last.target = doGoto, "nowhere"
	c := &capture{}
	for _, r := range rules {
		if _, err := table.installTable(table.tables[r.family], r, c); err != nil {
			t.Fatal(err)
		}
	}
	err = table.conn.Flush()
	table.mu.Unlock()
	if !isGone(err) {
		t.Errorf("the kernel says %v", err)
	}
	if got := listRuleset(t, ns); got != before {
		t.Errorf("left behind:\n%s", got)
	}
	// What was collected and not sent is forgotten.
	table.mu.Lock()
	if _, err := table.installTable(table.tables[inet], rules[0], c); err != nil {
		t.Fatal(err)
	}
	table.drop()
	table.mu.Unlock()
	install(t, table, with(func(s *Spec) {}))
	if err := table.Remove("00000002"); err != nil {
		t.Fatal(err)
	}
	if got := listRuleset(t, ns); got != before {
		t.Errorf("left behind:\n%s", got)
	}
}

// A name cannot reach beyond the comment it stands in.
func TestNamesAreFit(t *testing.T) {
	ns := testbed.NewNS(t)
	table := openIn(t, ns)
	for _, name := range []string{"plain name-1.2", `x" accept comment "y`, "new\nline\x1b[31m", strings.Repeat("long", 100), `back\slash`, "ünï", "*"} {
		s := defaultSpec("00000001")
		s.Name = name
		install(t, table, s)
		got := listRuleset(t, ns)
		want, err := Ruleset(s)
		if err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("%q: nft lists\n%s\nRuleset gives\n%s", name, got, want)
		}
		checkText(t, testbed.NewNS(t), want)
		if err := table.Remove(s.ID); err != nil {
			t.Fatal(err)
		}
	}
}

// A device goes while it is captured: Unhook and Remove work all the same.
func TestDeviceGoes(t *testing.T) {
	pair := testbed.NewPair(t)
	table := openIn(t, pair.B)
	s, other := defaultSpec("00000001"), defaultSpec("00000002")
	for _, s := range []*Spec{&s, &other} {
		s.Hooks, s.Interfaces = []string{"ingress", "egress", "input"}, []string{"vb", "lo"}
		install(t, table, *s)
	}
	testbed.Run(t, "ip", "-n", pair.B, "link", "del", "vb")
	if err := table.Unhook(s.ID); err != nil {
		t.Error(err)
	}
	if _, err := table.Counters(s.ID); err != nil {
		t.Error(err)
	}
	// Before Linux 6.16 the chains go with the device; here we take one away ourselves.
	table.mu.Lock()
	for _, b := range table.tables[netdev].bases {
		if b.hook.device == "vb" {
			table.conn.FlushChain(b.chain)
			table.conn.DelChain(b.chain)
		}
	}
	err := table.conn.Flush()
	table.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Remove(other.ID); err != nil {
		t.Error(err)
	}
	if err := table.Remove(s.ID); err != nil {
		t.Error(err)
	}
	if got := listRuleset(t, pair.B); got != emptyTable {
		t.Errorf("left behind:\n%s", got)
	}
}

// Device names that nft cannot read back as part of a chain's name.
func TestOddDeviceNames(t *testing.T) {
	ns, other := testbed.NewNS(t), testbed.NewNS(t)
	table := openIn(t, ns)
	names := []string{"a@b", "a+b", "a_b", "br-lan.7"}
	for i, name := range names {
		for _, ns := range []string{ns, other} {
			testbed.Run(t, "ip", "-n", ns, "link", "add", name, "type", "veth", "peer", "name", fmt.Sprintf("p%d", i))
		}
	}
	s := defaultSpec("00000001")
	s.Hooks, s.Interfaces = []string{"ingress"}, names
	install(t, table, s)
	got := listRuleset(t, ns)
	for _, name := range names {
		if !strings.Contains(got, fmt.Sprintf("device %q", name)) {
			t.Errorf("%s is not hooked:\n%s", name, got)
		}
	}
	checkText(t, other, got)
}

// Somebody resets a counter: the total goes on, and says so from then on.
func TestReset(t *testing.T) {
	pair := testbed.NewPair(t)
	table := openIn(t, pair.B)
	s := defaultSpec("00000001")
	s.Filter = v1(t, filter.V1{DestinationPort: 4242})
	install(t, table, s)
	send := func(n int) {
		sendUDP(t, pair.A, pair.B, netip.AddrPortFrom(testbed.A4, 0), netip.AddrPortFrom(testbed.B4, 4242), n)
	}
	send(10)
	total(t, table, s.ID)
	table.mu.Lock() // as "nft reset rules" of newer versions does
	for _, p := range table.captures[s.ID].parts {
		for _, ch := range p.chains {
			if _, err := table.conn.ResetRules(table.tables[p.family].table, ch); err != nil {
				t.Error(err)
			}
		}
	}
	table.mu.Unlock()
	send(4)
	c, err := table.Counters(s.ID)
	if err != nil || !c.Reset || c.Seen != 14 || c.Total() != 14 {
		t.Errorf("after a reset: %+v, %v", c, err)
	}
	send(1)
	if c, err := table.Counters(s.ID); err != nil || !c.Reset || c.Seen != 15 || c.Total() != 15 {
		t.Errorf("later: %+v, %v", c, err)
	}
}
