// Package ring reads NFLOG: log rule → netlink datagram → a preallocated ring → a Packet
// decoded in place. Nothing is allocated per packet, and no packet is lost without being
// counted.
package ring

import (
	"errors"
	"log/slog"
	"time"
)

// Class tells where the timestamps of a group's packets come from.
type Class uint8

const (
	// Stamped groups carry hooks where the kernel stamps packets: prerouting, input,
	// forward and both netdev hooks.
	Stamped Class = iota
	// Clocked groups carry hooks where there is only the reader's clock: output,
	// postrouting and inet ingress.
	Clocked
)

// String is "stamped" or "clocked".
func (c Class) String() string {
	if c == Stamped {
		return "stamped"
	}
	return "clocked"
}

// Group is an NFLOG group that a Reader has bound.
type Group struct {
	Number uint16 // in the network namespace
	Class  Class
	CPU    int // the CPU whose packets it is meant for, counted from 0; -1 = any
}

// Config says what Open is to set up.
type Config struct {
	// Stamped and Clocked are the numbers of groups of each class, 0 to 16, together at
	// least 1. Group i of a class is meant for CPU i; a class with one group is for all.
	Stamped, Clocked int
	// Memory is the size of the ring in bytes, populated when Open returns. It holds what
	// has been read and waits for its turn in time order, and is never exceeded. Less than
	// MinMemory counts as MinMemory.
	Memory int
	// ReceiveBuffer is the size in bytes of the kernel's receive buffers, divided
	// over the groups' sockets. The kernel accounts 64 KiB and some for a full datagram of
	// up to 64 KiB. 0 = 4 MiB.
	ReceiveBuffer int
	// CopyRange is how many bytes of each packet the kernel copies at most: what the rule's
	// snaplen says too. 0 = all (65531, the most that a netlink attribute holds).
	CopyRange uint32
	// Prefix is the log prefix of the rules whose packets these are. Packets with another
	// prefix are counted as foreign and left out. "" = every packet.
	Prefix string
	// Conntrack asks the kernel for Packet.Conntrack too. Where it cannot give that
	// (Reader.Conntrack), packets come without.
	Conntrack bool
	// Logger is told of what is odd but no failure, nil = nobody.
	Logger *slog.Logger
}

// Bounds of Config.
const (
	MaxGroups = 16      // of one class
	MinMemory = 1 << 20 // bytes
)

// ErrWoken is what Next returns after Wake.
var ErrWoken = errors.New("ring: reader woken")

// ErrClosed is what Next returns after Close.
var ErrClosed = errors.New("ring: reader closed")

// Stats is a Reader's account since Open. Counts are brought up to date each time the
// sockets are read, and are exact when Next has returned io.EOF.
type Stats struct {
	Groups []GroupStats // in the order of Reader.Groups
	// Held is the number of ring bytes that hold datagrams now, Memory the size of the ring.
	Held, Memory int
	// Hurried counts datagrams that were passed on before their time because the ring was
	// full or a clock was set back: their packets may stand out of order.
	Hurried uint64
	// Rounds counts passes over the sockets, Waits the times that the reader slept.
	Rounds, Waits uint64
}

// GroupStats is the account of one group. As the kernel numbers the packets of a group
// from 0, Received + Foreign + Malformed + Gaps is always the number of the last packet
// read plus 1.
type GroupStats struct {
	Group
	Received  uint64 // packets passed on by Next, or decoded to be passed on next
	Foreign   uint64 // packets that another rule sent to this group
	Malformed uint64 // messages that held a sequence number, but no packet that could be read
	Gaps      uint64 // sequence numbers that never came: packets lost on the way here
	Garbage   uint64 // unreadable messages that took no sequence number
	Cut       uint64 // datagrams longer than the ring takes; their lost part is in Gaps
	Datagrams uint64
	// Batches counts the datagrams that were decoded, by the packets in them: Batches[i]
	// those of more than 2^(i-1) and at most 2^i, the last of them those of any more.
	Batches [BatchSizes]uint64
	Bytes   uint64 // of datagrams
	// ReceiveBuffer is what the kernel granted in bytes, as it accounts them.
	ReceiveBuffer int
}

// BatchSizes is how many sizes of a batch are told apart: up to 512 packets, which no
// datagram of the kernel's 64 KiB exceeds, and more.
const BatchSizes = 11

// Lost is the number of packets that did not get here whole.
func (g GroupStats) Lost() uint64 { return g.Gaps + g.Malformed }

// Timing of the merge. A packet waits for the groups that are silent until everything
// they have logged up to its own reception must have been read.
const (
	// flushTimeout is after how long the kernel hands over a batch that is not full: 1/100 s,
	// the shortest it has, up to one timer tick of 10 ms late (HZ=100).
	flushTimeout = 20 * time.Millisecond
	// settle is granted to a packet for its way from the receive stamp to the log rule.
	settle = 2 * time.Millisecond
	// overdue is when a packet that others keep overtaking is passed on regardless: its
	// stamp comes from a clock that has been set back since.
	overdue = time.Second
)

// OrderBound is how far apart in time two packets can be and still stand in the wrong
// order for another reason than the ring running full or the clock being set: a packet
// that the kernel took longer than this from its receive stamp to the log rule may come
// after one that was stamped later. Packets of one group keep the kernel's order always.
const OrderBound = settle
