// Package nft keeps capd's own nftables tables: a capture's rules go in, its counters
// come out.
//
// There are two tables, `inet capd` and, while a capture uses ingress or egress, `netdev
// capd`. Both have the owner flag: nobody else can change them, and they vanish with the
// connection that made them, so that a killed capd leaves no rule behind. What stands in
// for the flag in older kernels is in unowned.go.
//
// A packet's way through the rules of one capture:
//
//	prerouting                     base chain: a jump for each capture at this hook
//	capture_ID_prerouting          interfaces, if some are asked for
//	capture_ID_stamped             the filter
//	capture_ID_stamped_gate        what this hook leaves out, capd's own connections,
//	                               excluded flows, sample, limit, dead-man switch
//	capture_ID_stamped_sampled_out, _limited, _stalled
//	                               counters of what is held back
//	capture_ID_stamped_0, _1, …    counter and log: a chain for each NFLOG group
//
// A packet that the filter wants ends in one of the last and is counted there and nowhere
// else: their sum is what was seen. What a packet costs the box is told in
// docs/performance.md, and is why the rules stand in this order (gate.go).
//
// Chains that would hold nothing are left out. Hooks at which the kernel stamps the time
// (prerouting, input, forward, ingress, egress) share the chains called stamped, the
// others (output, postrouting) those called clocked: they log to groups of their own.
//
// Priorities: all hooks but two stand at -450, before fragments are put together (-400),
// before raw (-300), conntrack (-200) and DNAT (-100), and before any firewall's verdict.
// Postrouting and egress stand at 450, after SNAT (100): what they see is what leaves.
package nft

import (
	"errors"
	"time"

	"capd/nft/filter"
)

// Spec is everything that the rules of one capture depend on.
type Spec struct {
	ID   string // 8 to 64 lower-case hexadecimal digits; the first 8 name the chains
	Name string // for comments; may be empty
	// Filter says which packets are wanted; nil = every packet. Where the kernel cannot
	// decide it alone (filter.Program.Exact), give no Sample and no Snaplen: they come
	// after the filter's Matcher.
	Filter  *filter.Filter
	Exclude []filter.Flow // flows never captured, in either direction

	// Hooks: prerouting, input, forward, output, postrouting, ingress, egress.
	Hooks []string
	// Interfaces limits the capture to them; a * at the end of a name stands for any
	// rest. At forward and postrouting either side may be the one. Ingress and egress
	// need at least one; patterns there are expanded when the rules are installed.
	Interfaces []string
	// Bare says that there are interfaces at ingress or egress without a link-layer header
	// (tunnels): the filter is compiled for packets that begin with the IP header, at all of
	// them.
	Bare bool
	// Offloaded names devices by which established flows pass prerouting unseen (Offloaded,
	// the function): the IP packets that come in by them are taken at ingress, before they
	// are led away, and left out at prerouting, so that each is there once. The filter is the
	// same at both. For captures at prerouting without Interfaces.
	Offloaded []string
	// Once leaves out what another hook of the default pair, prerouting and output, sees
	// or saw: at prerouting packets over lo, looped-back copies of multicast and
	// broadcast sent from here, and the second pass of packets that come out of IPsec or
	// into a VRF; at output the first pass of packets that leave through a VRF. The rules
	// for VRFs are there while the box has one: between the birth of its first and the rules
	// lies the time that the news takes, some milliseconds on a box that is not busy.
	Once bool

	Stamped []uint16 // NFLOG groups for prerouting, input, forward, ingress and egress
	Clocked []uint16 // NFLOG groups for output and postrouting
	CPUs    int      // processors to spread over the groups; 0 = as many as groups

	Prefix         string // of each log message; at most 127 bytes
	Snaplen        uint32 // bytes of each packet that are kept; 0 = whole packets
	Raw            bool   // they are counted from the network header on; see CopyRange
	QueueThreshold uint16 // packets a batch at most; 0 = the kernel's default
	Sample         uint32 // one packet in Sample; 0 and 1 = all
	SampleFlow     bool   // sample whole flows, both directions alike, instead of packets
	// Rate is how many packets a second all captures together log at most; 0 = no limit. It
	// is divided evenly among those that are installed; one that has both ingress or egress
	// and other hooks counts twice, and its halves are limited apart. Each share has a tenth
	// of a second's packets as burst.
	Rate uint64
	// HeadersOnly and Annotate are the reader's to do; rules do not depend on them, Explain
	// tells them.
	HeadersOnly, Annotate bool
}

// Counters are a capture's packets as the kernel's own rules counted them: each packet that
// the filter wants is counted once, where it ends, and Seen is the sum.
type Counters struct {
	Seen       uint64            // matched the filter
	SampledOut uint64            // not in the sample
	Limited    uint64            // held back by Rate or by the dead-man switch
	Stalled    uint64            // of Limited, those that the dead-man switch held back
	Matched    map[uint16]uint64 // logged, by NFLOG group
	// Reset tells that somebody has set a counter back (nft reset rules) or removed the
	// rules: the totals go on from there, but what was counted between the last look and
	// that is missing.
	Reset bool
}

// Total is the sum of Matched.
func (c Counters) Total() uint64 {
	var sum uint64
	for _, n := range c.Matched {
		sum += n
	}
	return sum
}

// RenewTimeout is how long the rules go on logging after the last Renew.
const RenewTimeout = 5 * time.Second

// Sentinels for errors.Is. Kernel errors can be told with errno (unix.EPERM …) too.
var (
	ErrOwned       = errors.New("the table belongs to another process")
	ErrExists      = errors.New("exists already")
	ErrUnknown     = errors.New("no such capture")
	ErrNoInterface = errors.New("no such interface")
	ErrClosed      = errors.New("the table is closed")
)

// tableName is the name of both tables.
const tableName = "capd"
