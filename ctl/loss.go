package ctl

import "capd/ctl/wire"

// lossUnknown reports whether a capture has ended without the kernel's counters, as after
// a kill of capd: what its record counts as lost is then only what is known of it.
func lossUnknown(c wire.Capture) bool {
	return c.Packets.Lost == nil && (c.Stopped != nil || finished(c))
}

// lost is how many packets are known to be lost.
func lost(p wire.Packets) uint64 {
	if p.Lost != nil {
		return *p.Lost
	}
	by := p.LostBy
	return by.Sequence + by.Tail + by.Decode + by.Write + by.Spool
}

// lossNoted reports whether a capture's loss is worth a person's eye: there is some, or
// nobody knows.
func lossNoted(c wire.Capture) bool { return lost(c.Packets) > 0 || lossUnknown(c) }

// knownLoss is the loss of a capture for people.
func knownLoss(c wire.Capture) string {
	n := lost(c.Packets)
	switch {
	case !lossUnknown(c):
		return count(n)
	case n > 0:
		return count(n) + "+"
	}
	return "?"
}

// discarded is the count of what came after a limit, or that user space refused, for people.
func discarded(p wire.Packets) string {
	if p.Discarded == nil {
		return "?"
	}
	return count(*p.Discarded)
}

// told is how many of the matched packets the record accounts for.
func told(p wire.Packets) uint64 {
	n := p.Captured + lost(p)
	if p.Discarded != nil {
		n += *p.Discarded
	}
	return n
}
