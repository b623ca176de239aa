package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"capd/ctl/wire"
	"capd/daemon/deliver"
	"capd/nft"
	"capd/nft/filter"
)

// ownLinger is how long a connection that was closed stays out of captures: the kernel
// goes on sending for 30 s at most (daemon/deliver, orphanTime), waits for the other
// side's end for 60 s (tcp(7), tcp_fin_timeout), and answers late segments for 60 s more
// (linux/include/net/tcp.h, TCP_TIMEWAIT_LEN).
const ownLinger = 150 * time.Second

// maxOwnNoted is how many connections of capd's own one record lists.
const maxOwnNoted = 100

// maxOwn bounds what is left out at once, those that have just ended included. A delivery
// makes a few connections for each file at most; only a delivery process that has gone
// wrong, or is somebody else's by now, announces more.
const maxOwn = 16384

// ownFlows are the connections of capd itself: they are in no capture, because a delivery
// that was captured would have to be delivered too, without end. Each capture's record
// says which were left out of it.
type ownFlows struct {
	table excluder
	log   *slog.Logger

	mu       sync.Mutex
	flows    map[filter.Flow]int // left out now, and by how many connections
	captures map[*capture]bool   // those that run
	ending   map[*time.Timer]bool
}

// excluder is what ownFlows needs of nft.Table.
type excluder interface {
	AddExclude(filter.Flow) error
	RemoveExclude(filter.Flow) error
}

var _ excluder = (*nft.Table)(nil)

func newOwnFlows(table excluder, log *slog.Logger) *ownFlows {
	return &ownFlows{table: table, log: log, flows: map[filter.Flow]int{}, captures: map[*capture]bool{}, ending: map[*time.Timer]bool{}}
}

// leaveOut takes a connection that is about to be made out of every capture, until
// ownLinger after release (deliver.Options.Flow).
func (o *ownFlows) leaveOut(_ context.Context, _ string, f deliver.Flow) (release func(), err error) {
	flow := filter.Flow{Source: f.Local.Addr().WithZone(""), SourcePort: f.Local.Port(),
		Destination: f.Remote.Addr().WithZone(""), DestinationPort: f.Remote.Port()}
	o.mu.Lock()
	full := len(o.flows) >= maxOwn
	o.mu.Unlock()
	if full {
		return nil, fmt.Errorf("%d connections are left out of captures already, within %s", maxOwn, ownLinger)
	}
	if err := o.table.AddExclude(flow); err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.flows[flow]++
	for c := range o.captures {
		c.noteOwn(flow)
	}
	return func() { o.endLater(flow) }, nil
}

// endLater lets a connection into captures again, after a while.
func (o *ownFlows) endLater(flow filter.Flow) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ending == nil {
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(ownLinger, func() {
		o.mu.Lock() // until here the timer is set
		defer o.mu.Unlock()
		if o.ending == nil {
			return
		}
		delete(o.ending, timer)
		if o.flows[flow]--; o.flows[flow] == 0 {
			delete(o.flows, flow)
		}
		if err := o.table.RemoveExclude(flow); err != nil && !errors.Is(err, nft.ErrClosed) {
			o.log.Error("let a connection of capd's own into captures again", "err", err)
		}
	})
	o.ending[timer] = true
}

// attach has the connections that are left out noted in a capture whose rules have just
// been installed, those of now and those to come.
func (o *ownFlows) attach(c *capture) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.captures[c] = true
	byText := func(a, b filter.Flow) int { return cmp.Compare(a.String(), b.String()) }
	for _, flow := range slices.SortedFunc(maps.Keys(o.flows), byText) {
		c.noteOwn(flow)
	}
}

func (o *ownFlows) detach(c *capture) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.captures, c)
}

// close ends the timers. The table's end is the end of every exclusion.
func (o *ownFlows) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for timer := range o.ending {
		timer.Stop()
	}
	o.ending = nil
}

// noteOwn says in the record that a connection is left out.
func (c *capture) noteOwn(f filter.Flow) {
	flow := wire.Flow{Source: f.Source.String(), SourcePort: wire.Port(f.SourcePort), Destination: f.Destination.String(), DestinationPort: wire.Port(f.DestinationPort)}
	c.mu.Lock()
	defer c.mu.Unlock()
	rec := &c.record.Capture
	if slices.Contains(rec.Exclude, flow) {
		return
	}
	if c.ownNoted++; c.ownNoted <= maxOwnNoted {
		rec.Exclude = append(slices.Clip(rec.Exclude), flow)
		return
	}
	const code = "own_connections"
	if !c.warnedLocked(code) {
		c.warnLocked(wire.Warning{Code: code, Message: "more connections of capd's own were left out than exclude lists"})
	}
}
