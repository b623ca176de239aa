// Package nft keeps capd's own nftables tables: a capture's rules go in, its counters
// come out.
//
// There are two tables, `inet capd` and, while a capture uses ingress or egress, `netdev
// capd`. Both have the owner flag: nobody else can change them, and they vanish with the
// connection that made them, so that a killed capd leaves no rule behind.
//
// A packet's way through one capture's rules:
//
//	base chain            jump, for each capture at this hook
//	capture_ID_HOOK       what this hook leaves out, the interfaces
//	capture_ID_stamped    the filter (or _clocked: hooks without a kernel timestamp)
//	…_stamped_log         excluded flows, seen, dead-man switch, sampling, rate
//	…_stamped_N           counter and log, one chain for each NFLOG group
//
// Chains that would hold nothing are left out.
package nft

import (
	"capd/nft/filter"
	"errors"
	"time"
)

// Spec is everything that the rules of one capture depend on.
type Spec struct {
	ID      string         // 8 to 64 lower-case hexadecimal digits; the first 8 name the chains
	Name    string         // for comments; may be empty
	Filter  *filter.Filter // nil = every packet
	Exclude []filter.Flow  // flows never captured, in either direction

	// Hooks: prerouting, input, forward, output, postrouting, ingress, egress.
	Hooks []string
	// Interfaces limits the capture to them; a * at the end of a name stands for any
	// rest. At forward and postrouting either side may be the one. Ingress and egress
	// need at least one; patterns there are expanded when the rules are installed.
	Interfaces []string
	// Once leaves out, at prerouting, what another hook of the default pair has seen or
	// will see: packets over lo, looped-back copies of multicast and broadcast sent from
	// here, and the second pass of packets that come out of IPsec or a VRF.
	Once bool

	Stamped []uint16 // NFLOG groups for prerouting, input, forward, ingress and egress
	Clocked []uint16 // NFLOG groups for output and postrouting
	CPUs    int      // processors to spread over the groups; 0 = as many as groups

	Prefix         string // of each log message; at most 127 bytes
	Snaplen        uint32 // bytes of payload; 0 = whole packets
	QueueThreshold uint16 // packets per batch at most; 0 = the kernel's default
	Sample         uint32 // one packet in Sample; 0 and 1 = all
	SampleFlow     bool   // sample whole flows (both directions) instead of packets
	Rate           uint64 // packets a second that are logged at most; 0 = no limit
}

// Counters are a capture's packets as the kernel's own rules counted them. Seen is
// always the sum of the other parts, once no packet is on its way through the rules.
type Counters struct {
	Seen       uint64            // matched the filter
	SampledOut uint64            // not in the sample
	Limited    uint64            // held back by Rate or by the dead-man switch
	Matched    map[uint16]uint64 // logged, by NFLOG group
	// Reset tells that somebody set a counter back (nft reset rules): the totals are
	// carried on, but what was counted between the last look and the reset is missing.
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

// RenewTimeout is how long rules go on logging after the last Renew.
const RenewTimeout = 5 * time.Second

// Sentinels for errors.Is.
var (
	ErrOwned   = errors.New("the table belongs to another process")
	ErrExists  = errors.New("exists already")
	ErrUnknown = errors.New("no such capture")
	ErrClosed  = errors.New("the table is closed")
)

// Table is the connection that owns capd's tables. Its methods may be called from
// several goroutines.
type Table struct{}

// Open takes the table `inet capd` in the calling thread's network namespace.
func Open() (*Table, error) { return nil, errors.ErrUnsupported }

// Install puts a capture's rules in place, in one transaction: after an error nothing
// of it is there.
func (t *Table) Install(s Spec) error { return errors.ErrUnsupported }

// Unhook takes the capture's jumps out of the base chains. Its chains and counters stay
// until Remove. Packets that are already in the chains may still be counted and logged
// until an RCU grace period has passed.
func (t *Table) Unhook(id string) error { return errors.ErrUnsupported }

// Counters reads the capture's totals.
func (t *Table) Counters(id string) (Counters, error) { return Counters{}, errors.ErrUnsupported }

// Remove deletes everything of the capture, and what only it needed.
func (t *Table) Remove(id string) error { return errors.ErrUnsupported }

// Renew feeds the dead-man switch: without a call for RenewTimeout the kernel stops
// logging and counts packets as limited. Call it every second.
func (t *Table) Renew() error { return errors.ErrUnsupported }

// Close gives the tables up; the kernel deletes them.
func (t *Table) Close() error { return nil }

// Ruleset prints the rules of a capture as `nft list ruleset` would, when it is the only
// one. It needs no rights and touches nothing.
func Ruleset(s Spec) (string, error) { return "", errors.ErrUnsupported }

// CPUs gives the number of processors that the kernel may ever use, for Spec.CPUs.
func CPUs() int { return 1 }

// Features tells what this kernel can do, each as nil or as the reason why not.
type Features struct {
	Owner   error // tables with an owner: without it there is no capture
	Log     error // NFLOG from nftables: without it there is no capture
	Counter error
	Timeout error // sets with timeouts, for the dead-man switch
	Sample  error // numgen
	Flow    error // symhash
	Limit   error
	IPsec   error // meta ipsec and rt ipsec: without them Once cannot tell second passes
	VRF     error // meta iifkind
	Ingress error // netdev ingress
	Egress  error // netdev egress
}

// Probe finds out, in the calling thread's network namespace, what the kernel can do. It
// leaves nothing behind. The error is set where nothing could be tried at all.
func Probe() (Features, error) { return Features{}, errors.ErrUnsupported }
