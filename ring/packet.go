package ring

// Packet is one logged packet, as the kernel told it. Its slices point into the ring and
// hold until the next call of Next; nothing in it was allocated for it.
type Packet struct {
	// Time is when the packet was received, in nanoseconds since the Unix epoch. With
	// KernelTime it is the kernel's receive stamp, with microsecond resolution
	// (NFULA_TIMESTAMP, net/netfilter/nfnetlink_log.c: only at hook numbers ≤ 2). Without,
	// it is the reader's clock right after the datagram was read: late by up to the time
	// that the kernel held the batch back, never early.
	Time int64

	// Payload begins with the network header, except at netdev egress, where it begins
	// with the link-layer header (see Frame). It never holds attribute padding.
	Payload []byte
	// L2Header is NFULA_L2HDR: the whole link-layer header at netdev and bridge hooks,
	// without the outer VLAN tag; nil elsewhere.
	L2Header []byte
	// HWHeader is NFULA_HWHEADER: the link-layer header as it stands before the network
	// header; nil where there is none, and at the output and postrouting hooks, where the
	// kernel would give that of the packet's arrival.
	HWHeader []byte
	// HWAddr is the sender's link-layer address (NFULA_HWADDR), nil where unknown.
	HWAddr []byte
	// Conntrack is the raw NFULA_CT attribute, nil unless asked for and known.
	Conntrack []byte

	// Dropped is how many packets of the same group were lost or unreadable between the
	// packet before and this one.
	Dropped uint64

	In, Out         uint32 // interface indexes, 0 = none
	PhysIn, PhysOut uint32 // of a bridge's ports, 0 = none
	Mark            uint32 // 0 when unset
	UID, GID        uint32 // of the local socket's owner, with HasUID
	ConntrackInfo   uint32 // NFULA_CT_INFO, with Conntrack

	VLAN     VLAN   // outer tag, where the kernel has stripped it from the frame
	Protocol uint16 // ethertype, host byte order
	HWType   uint16 // ARPHRD_* of the device, with HasHWType

	Group  int   // index in Reader.Groups
	Family uint8 // FamilyIPv4, …
	Hook   uint8 // HookPrerouting, …; numbers depend on the family

	KernelTime bool
	HasUID     bool
	HasHWType  bool
	// Cut says that Payload is as long as the copy limit, so that the packet may be longer.
	Cut bool
}

// VLAN is an IEEE 802.1Q tag.
type VLAN struct {
	Present  bool
	TCI      uint16 // priority, DEI and identifier
	Protocol uint16 // 0x8100 or 0x88a8
}

// Families, as in nfgenmsg (include/uapi/linux/netfilter.h, NFPROTO_*).
const (
	FamilyInet   = 1 // inet ingress
	FamilyIPv4   = 2
	FamilyNetdev = 5
	FamilyBridge = 7
	FamilyIPv6   = 10
)

// Hook numbers (include/uapi/linux/netfilter.h, NF_INET_* and NF_NETDEV_*).
const (
	HookPrerouting  = 0
	HookInput       = 1
	HookForward     = 2
	HookOutput      = 3
	HookPostrouting = 4
	HookInetIngress = 5

	HookNetdevIngress = 0
	HookNetdevEgress  = 1
)

// Direction of a packet through its interface, with the values of pcapng's epb_flags.
type Direction uint8

// Directions.
const (
	DirectionUnknown Direction = 0
	Inbound          Direction = 1
	Outbound         Direction = 2
)

// Direction tells which way the packet went: in at ingress, prerouting and input, out at
// egress, output and postrouting, unknown at forward, where it goes both ways.
func (p *Packet) Direction() Direction {
	if p.Family == FamilyNetdev {
		return netdevDirections[p.Hook&7]
	}
	return inetDirections[p.Hook&7]
}

// Directions by hook number. No packet is in doubt for the mask: hooks are 0 to 5.
var (
	netdevDirections = [8]Direction{HookNetdevIngress: Inbound, HookNetdevEgress: Outbound}
	inetDirections   = [8]Direction{
		HookPrerouting: Inbound, HookInput: Inbound, HookInetIngress: Inbound,
		HookOutput: Outbound, HookPostrouting: Outbound,
	}
)

// Interface is the index of the device that the packet is attributed to: the one it
// leaves by where it goes out, else the one it came in by.
func (p *Packet) Interface() uint32 { return p.device(p.Direction()) }

func (p *Packet) device(d Direction) uint32 {
	if d == Outbound && p.Out != 0 {
		return p.Out
	}
	if p.In != 0 {
		return p.In
	}
	return p.Out
}
