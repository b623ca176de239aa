package filter

// Program is a filter in nftables' vocabulary: the part of it that the kernel decides.
// It matches at least the packets that the filter wants; where it can match more, Exact is
// false, and the filter's Matcher has to judge each packet that comes out of the kernel:
// whole, so that neither sample nor snaplen may be applied before it.
//
// At ingress and egress the kernel is given frames as they are, and two kinds of broken
// ones are judged otherwise than by libpcap, also by an exact program (TestKernelDiffers
// pins both). A frame that ends inside the fixed part of its IPv4, IPv6 or ARP header has
// no such fields for the kernel, and what is wanted of it by a negation is wanted; libpcap
// wants it never. And where the lengths in an IP header are wrong, nftables sees no
// transport header, so that no port matches. At the other hooks such packets do not come
// by: the kernel's IP has dropped them.
type Program struct {
	// Chains holds the program; the first is the entry, the others are reached from it
	// by jumps. A program without chains matches every packet.
	Chains []Chain
	Sets   []Set
	Exact  bool
}

// Chain is a sequence of rules. A packet that comes to its end goes back to where the
// chain was jumped to from, and from the entry chain's end it is not wanted.
type Chain struct {
	// Name tells the program's chains apart: lower-case letters and digits. The entry's
	// is empty. Package nft puts the capture's name in front.
	Name  string
	Rules []Rule
}

// Rule does something with a packet if all its matches hold.
type Rule struct {
	Matches []Match
	Verdict Verdict
	Target  string // the chain's name, for Jump and Goto
}

// Verdict is what a rule does.
type Verdict uint8

// Verdicts.
const (
	Hit    Verdict = iota // the packet is wanted
	Return                // leave this chain
	Jump                  // go to Target, come back at its end
	Goto                  // go to Target, do not come back to this chain
)

// Set is a named set that matches refer to. It is constant.
type Set struct {
	Name   string // as Chain.Name
	Key    Key    // what is looked up in it: it gives the elements their type
	Values []Span
}

// Match compares one thing about a packet with values.
type Match struct {
	Key    Key
	Mask   []byte // bits of the thing that count, as long as the thing; nil = all
	Op     Op
	Values []Span // one value, or several of which one is to be equal (In, NotIn)
	Set    string // the name of a set instead of Values (In, NotIn)
}

// Span is a value, or a range of values from Lo to Hi inclusive, as bytes in network
// order. A nil Hi means Lo alone. For interface names the bytes are the name, with a *
// at its end for a prefix.
type Span struct{ Lo, Hi []byte }

// Op compares.
type Op uint8

// Operations. A Span that is a range goes with Equal, NotEqual, In and NotIn.
const (
	Equal Op = iota
	NotEqual
	Less
	Greater
	LessEqual
	GreaterEqual
	In
	NotIn
)

// Key names what of a packet is compared, spelled as nft spells it.
type Key string

// Keys. Those of one protocol imply that the packet is of it, as they do in nft: IPSaddr
// matches no IPv6 packet, TCPSport no UDP.
const (
	NFProto Key = "meta nfproto" // ipv4 or ipv6; tables of family inet only
	L4Proto Key = "meta l4proto" // the protocol after IPv4 options or IPv6 extension headers
	Length  Key = "meta length"  // bytes from the network header on, 4 bytes
	EthType Key = "meta protocol"
	PktType Key = "meta pkttype"
	IIfName Key = "iifname"
	OIfName Key = "oifname"

	IPLength    Key = "ip length"
	IPID        Key = "ip id"
	IPFragOff   Key = "ip frag-off"
	IPTTL       Key = "ip ttl"
	IPProtocol  Key = "ip protocol"
	IP6Length   Key = "ip6 length"
	IP6NextHdr  Key = "ip6 nexthdr"
	IP6HopLimit Key = "ip6 hoplimit"

	IPSaddr  Key = "ip saddr"
	IPDaddr  Key = "ip daddr"
	IP6Saddr Key = "ip6 saddr"
	IP6Daddr Key = "ip6 daddr"

	ARPSaddr Key = "arp saddr ip"
	ARPDaddr Key = "arp daddr ip"

	// Ports at the place where TCP, UDP, UDP-Lite, SCTP and DCCP have them; the rule
	// must also say which protocols.
	ThSport Key = "th sport"
	ThDport Key = "th dport"

	TCPSport     Key = "tcp sport"
	TCPDport     Key = "tcp dport"
	UDPSport     Key = "udp sport"
	UDPDport     Key = "udp dport"
	UDPLiteSport Key = "udplite sport"
	UDPLiteDport Key = "udplite dport"
	SCTPSport    Key = "sctp sport"
	SCTPDport    Key = "sctp dport"
	DCCPSport    Key = "dccp sport"
	DCCPDport    Key = "dccp dport"
)
