package nft

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"capd/nft/filter"
)

// Table is the connection that owns capd's tables. Its methods may be called from
// several goroutines; one at a time they wait for each other. It belongs to the network
// namespace in which it was opened, whatever thread its methods are called on.
type Table struct {
	mu       sync.Mutex
	conn     *nftables.Conn
	links    *links
	looker   *looker
	features Features
	tables   [2]owned
	captures map[string]*capture
	own      map[filter.Flow]int // capd's own connections, and how often each was added
	now      present             // what the gates are filled for
	closed   bool
	lock     *netlink.Conn    // nil: the kernel keeps others away from the tables, see unowned.go
	restored map[string]error // as Restored gives it
	watching chan struct{}    // closed when the goroutine that watches links has ended; nil = none
	missed   error            // what it could not do since Missed was called last
	changes  []Change         // since Changes was called last

	linksChanged atomic.Bool // since LinksChanged was called last
}

// owned is the state of one of the two tables.
type owned struct {
	table *nftables.Table  // nil: not there
	alive *nftables.Set    // nil: no capture needs it, or the kernel has no timeouts
	own   [2]*nftables.Set // as ownSets; nil: no capture needs them
	bases []*base
}

// used tells whether a capture has rules in the table.
func (o *owned) used() bool { return o.own[0] != nil }

// base is a base chain and how many captures jump from it.
type base struct {
	chain *nftables.Chain
	hook  hook
	users int
}

// capture is what is installed of one capture.
type capture struct {
	spec     Spec
	parts    []part
	counts   []count
	unhooked bool
	reset    bool // as Counters.Reset
	gone     bool // somebody removed the rules, and they are not back

	absent map[string]bool // of spec.Interfaces, those that there were and are no more
}

// part is what a capture has in one table.
type part struct {
	family family
	target string // as tableRules.target
	jumps  []jump // empty after Unhook
	chains []*nftables.Chain
	rules  []int // how many each of chains has
	sets   []*nftables.Set
	gates  []gateChain
	rate   *nftables.NamedObj // the limit; nil: none
}

type jump struct {
	base *base
	rule *nftables.Rule
}

// Open takes the table `inet capd` in the calling thread's network namespace and holds
// it until Close. ErrOwned says that another process has it (a second capd), ErrExists
// that a table of this name is there that is not capd's. Open finds out first what the
// kernel can do; where it lacks what every capture needs, the error says what.
func Open() (*Table, error) {
	features, err := Probe()
	if err != nil {
		return nil, err
	}
	return openWith(features)
}

// Sizes of the socket that transactions go through, in bytes. Nothing is taken before it is
// needed, nor kept after it.
const (
	sendBuffer   = 32 << 20
	answerBuffer = 128 << 20
)

// openWith is Open in a kernel that can do so much.
func openWith(features Features) (*Table, error) {
	if err := features.floor(); err != nil {
		return nil, err
	}
	// The kernel answers to each part of a transaction, and its answers wait in the socket
	// until the whole was sent. What does not fit is lost with ENOBUFS, and then nobody knows
	// what was installed: the library's own estimate (8 MiB) is too small for the largest
	// filters. It leaves both buffers alone once one is set.
	roomy := nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetWriteBuffer(sendBuffer), c.SetReadBuffer(answerBuffer))
	})
	conn, err := nftables.New(nftables.AsLasting(), roomy)
	if err != nil {
		return nil, fmt.Errorf("nft: open a netlink socket: %w", err)
	}
	t := &Table{conn: conn, features: features, captures: map[string]*capture{}, own: map[filter.Flow]int{},
		restored: map[string]error{}}
	if err := t.open(); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

func (t *Table) open() error {
	var err error
	if t.links, err = openLinks(); err != nil {
		return err
	}
	if t.looker, err = newLooker(); err != nil {
		return err
	}
	if t.features.Owner != nil {
		if t.lock, err = lockNamespace(); err != nil {
			return err
		}
		if err := t.clear(); err != nil {
			return err
		}
	}
	t.now.vrf = t.links.vrf()
	table := t.create(inet)
	if err := t.conn.Flush(); err != nil {
		return t.refused(inet, err)
	}
	t.tables[inet].table = table
	t.watching = make(chan struct{})
	go t.watch()
	return nil
}

// create puts a new table into the transaction, which fails where there is one.
func (t *Table) create(f family) *nftables.Table {
	table := t.conn.CreateTable(newTable(f, t.lock == nil))
	if t.lock != nil {
		t.conn.AddChain(&nftables.Chain{Name: markChain, Table: table})
	}
	return table
}

func newTable(f family, owner bool) *nftables.Table {
	t := &nftables.Table{Name: tableName, Family: f.kernel()}
	if owner {
		t.Flags = nftables.TableFlagOwner
	}
	return t
}

// refused says why the kernel did not give us the table.
func (t *Table) refused(f family, err error) error {
	name := fmt.Sprintf("%s %s", f, tableName)
	there, listErr := t.conn.ListTableOfFamily(tableName, f.kernel())
	switch {
	case listErr == nil && there.Owner != 0:
		return fmt.Errorf("nft: create table %s: %w (netlink port %d): is another capd running in this network namespace? %w",
			name, ErrOwned, there.Owner, err)
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("nft: create table %s: it %w and has no owner: if it is a leftover, remove it with \"nft delete table %s\": %w",
			name, ErrExists, name, err)
	}
	return fmt.Errorf("nft: create table %s: %w", name, err)
}

// Features gives what Open found out about the kernel.
func (t *Table) Features() Features { return t.features }

// Renew feeds the dead-man switch: without a call for RenewTimeout the kernel stops
// logging and counts packets as limited. Call it every second while captures run; after
// a pause it starts logging again.
func (t *Table) Renew() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return ErrClosed
	}
	if err := t.ensure(); err != nil {
		return err
	}
	if err := t.renew(); err != nil {
		return err
	}
	if err := t.conn.Flush(); err != nil {
		return fmt.Errorf("nft: renew the dead-man switch: %w", err)
	}
	return nil
}

// renew puts the renewal into the transaction.
func (t *Table) renew() error {
	for _, o := range t.tables {
		if o.alive == nil {
			continue
		}
		// Out and in again, in one transaction: adding an element that is there leaves its
		// expiry as it was (seen on Linux 6.18), and the library cannot send the attribute
		// that would renew it.
		t.conn.FlushSet(o.alive)
		if err := t.conn.SetAddElements(o.alive, aliveElements()); err != nil {
			return fmt.Errorf("nft: renew the dead-man switch: %w", err)
		}
	}
	return nil
}

// Close gives the tables up; they are deleted at once, with all rules in them.
// It may be called more than once.
func (t *Table) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	t.mu.Unlock()
	var errs []error
	if t.links != nil {
		errs = append(errs, t.links.close())
	}
	if t.looker != nil {
		errs = append(errs, t.looker.close())
	}
	if t.watching != nil {
		<-t.watching
	}
	if t.lock != nil {
		errs = append(errs, t.clear())
	}
	errs = append(errs, t.conn.CloseLasting())
	if t.lock != nil {
		errs = append(errs, t.lock.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("nft: close the tables: %w", err)
	}
	return nil
}

// isGone tells errors that say that a chain, rule or device is not there any more.
func isGone(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENODEV)
}
