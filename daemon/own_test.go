package daemon

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"capd/ctl/wire"
	"capd/daemon/deliver"
	"capd/nft/filter"
)

// fakeTable remembers what is excluded.
type fakeTable struct {
	excluded map[filter.Flow]int
	err      error
}

func (f *fakeTable) AddExclude(flow filter.Flow) error {
	if f.err == nil {
		f.excluded[flow]++
	}
	return f.err
}

func (f *fakeTable) RemoveExclude(flow filter.Flow) error {
	f.excluded[flow]--
	return nil
}

func flowFrom(port uint16) (deliver.Flow, filter.Flow, wire.Flow) {
	f := deliver.Flow{Local: netip.AddrPortFrom(netip.MustParseAddr("fe80::2%lo"), port), Remote: netip.MustParseAddrPort("[fe80::1%lo]:22")}
	a, b := netip.MustParseAddr("fe80::2"), netip.MustParseAddr("fe80::1")
	return f, filter.Flow{Source: a, SourcePort: port, Destination: b, DestinationPort: 22},
		wire.Flow{Source: "fe80::2", SourcePort: wire.Port(port), Destination: "fe80::1", DestinationPort: 22}
}

func TestOwnConnectionsAreLeftOutForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := &fakeTable{excluded: map[filter.Flow]int{}}
		own := newOwnFlows(table, slog.New(slog.DiscardHandler))
		early, late, ended := &capture{}, &capture{}, &capture{}
		own.attach(early)
		own.attach(ended)
		own.detach(ended)
		f, rule, noted := flowFrom(50000)
		release, err := own.leaveOut(t.Context(), "soc", f)
		if err != nil || table.excluded[rule] != 1 {
			t.Fatalf("excluded are %v (%v)", table.excluded, err)
		}
		release()
		time.Sleep(ownLinger - time.Second)
		synctest.Wait()
		own.attach(late)
		if table.excluded[rule] != 1 {
			t.Errorf("it is let in again at once: %v", table.excluded)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if table.excluded[rule] != 0 {
			t.Errorf("it is never let in again: %v", table.excluded)
		}
		after := &capture{}
		own.attach(after)
		for name, c := range map[string]*capture{"early": early, "late": late} {
			if !slices.Equal(c.record.Capture.Exclude, []wire.Flow{noted}) {
				t.Errorf("the record of the %s capture says %v", name, c.record.Capture.Exclude)
			}
		}
		for name, c := range map[string]*capture{"ended before": ended, "began after": after} {
			if len(c.record.Capture.Exclude) != 0 {
				t.Errorf("the record of the capture that %s says %v", name, c.record.Capture.Exclude)
			}
		}
		// A timer that runs at the end is no mistake.
		release, err = own.leaveOut(t.Context(), "soc", f)
		if err != nil {
			t.Fatal(err)
		}
		release()
		own.close()
		release()
	})
}

func TestOwnConnectionsThatCannotBeLeftOutAreNotMade(t *testing.T) {
	own := newOwnFlows(&fakeTable{err: errors.New("no table")}, slog.New(slog.DiscardHandler))
	defer own.close()
	c := &capture{}
	own.attach(c)
	f, _, _ := flowFrom(50000)
	if _, err := own.leaveOut(t.Context(), "soc", f); err == nil || len(c.record.Capture.Exclude) != 0 {
		t.Errorf("got %v, the record says %v", err, c.record.Capture.Exclude)
	}
}

func TestARecordListsABoundedNumberOfOwnConnections(t *testing.T) {
	own := newOwnFlows(&fakeTable{excluded: map[filter.Flow]int{}}, slog.New(slog.DiscardHandler))
	defer own.close()
	c := &capture{d: &Daemon{}} // nobody follows its events
	own.attach(c)
	for port := range uint16(2 * maxOwnNoted) {
		f, _, _ := flowFrom(1 + port)
		for range 2 { // the second is noted already
			if _, err := own.leaveOut(t.Context(), "soc", f); err != nil {
				t.Fatal(err)
			}
		}
	}
	rec := c.record.Capture
	if len(rec.Exclude) != maxOwnNoted || len(rec.Warnings) != 1 || rec.Warnings[0].Code != "own_connections" {
		t.Errorf("%d are listed, warnings %v", len(rec.Exclude), rec.Warnings)
	}
}

func TestADeliveryProcessGoneWrongCannotHideTheWholeNetwork(t *testing.T) {
	table := &fakeTable{excluded: map[filter.Flow]int{}}
	own := newOwnFlows(table, slog.New(slog.DiscardHandler))
	defer own.close()
	for port := range uint16(maxOwn) {
		f, _, _ := flowFrom(1 + port)
		release, err := own.leaveOut(t.Context(), "soc", f)
		if err != nil {
			t.Fatal(err)
		}
		release() // those that have ended count too
	}
	f, _, _ := flowFrom(maxOwn + 1)
	if _, err := own.leaveOut(t.Context(), "soc", f); err == nil || len(table.excluded) != maxOwn {
		t.Errorf("got %v with %d left out", err, len(table.excluded))
	}
}
