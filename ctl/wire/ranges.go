package wire

import "fmt"

// Ranges of a request's numbers that hold on every box. 0 is valid besides for a snaplen
// (whole packets), for a ring (every segment is kept) and for a packet limit (none).
const (
	MinSnaplen     = 34 // an Ethernet and an IPv4 header
	MaxSnaplen     = 262144
	MaxSample      = 1_000_000_000
	MaxRing        = 10000
	MaxPacketLimit = 1<<63 - 1
)

// Ranges of sizes in bytes, of a request as of a box's configuration.
const (
	MinByteLimit   = 4096 // a file's own headers must fit
	MinSegmentSize = 64 << 10
	MaxSegmentSize = 1_000_000_000 // sent in one go, and again whole where that fails
)

// NumberRange says in words what a request's field of whole numbers takes, "" where that
// is whatever its type holds.
func NumberRange(field string) string {
	switch field {
	case "snaplen":
		return fmt.Sprintf("0 for whole packets, or %d to %d", MinSnaplen, MaxSnaplen)
	case "sample":
		return fmt.Sprintf("1 for every packet, or N for one in N, at most %d", MaxSample)
	case "packet_limit":
		return fmt.Sprintf("0 for none, or 1 to %d", uint64(MaxPacketLimit))
	case "ring":
		return fmt.Sprintf("0 to keep all segments, or 1 to %d", MaxRing)
	}
	return ""
}
