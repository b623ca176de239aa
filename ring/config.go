package ring

// Configuration messages of nfnetlink_log, built by hand: they travel on the sockets that
// the packets come from, in between the datagrams (include/uapi/linux/netfilter/
// nfnetlink_log.h, enum nfulnl_attr_config).

const (
	configCmd      = 1
	configMode     = 2
	configBuffer   = 3
	configTimeout  = 4
	configThresh   = 5
	configFlags    = 6
	cmdBind        = 1
	cmdUnbind      = 2
	copyPacket     = 2
	flagSeq        = 1
	flagConntrack  = 4
	nlmFlagRequest = 1
	nlmFlagAck     = 4
)

// Batching.
const (
	// bufferFull is NLBUFSIZ for batches: with struct skb_shared_info it fits 64 KiB, so
	// that no more is allocated (and counted against the receive buffer) than is used.
	bufferFull = 65216
	// bufferSmall is the least that the kernel takes (NFULNL_NLBUFSIZ_DEFAULT, which is
	// NLMSG_GOODSIZE: one page, at most 8 KiB, less struct skb_shared_info), for groups whose
	// packets come one by one. Less is acknowledged and ignored.
	bufferSmall = 4096 - 320
	// bufferSmallBigPages is the same where a page is larger than 4 KiB.
	bufferSmallBigPages = 8192 - 320
	// stampedTicks and clockedTicks are the flush timeouts in 1/100 s. With 1 a batch that
	// does not fill waits for 8 to 20 ms, with 0 until the next tick of the kernel's clock,
	// for 1, 4 or 10 ms at most (CONFIG_HZ 1000, 250, 100; nfulnl_log_packet, add_timer),
	// and the stamps of its packets are no later. Where the kernel stamps, that would
	// only make datagrams more and smaller.
	stampedTicks = 1
	clockedTicks = 0
	// metadata is about how many bytes a packet takes in a datagram beside its payload.
	metadata = 144
	// maxCopy is the most that a netlink attribute holds.
	maxCopy = 65531
)

// configMessage is one configuration message, in memory that is used again for each.
type configMessage struct {
	buf [64]byte
	n   int
}

// build makes a message for a group with one attribute.
func (m *configMessage) build(groupNumber uint16, flags uint16, seq uint32, attr uint16, value []byte) []byte {
	b := m.buf[:]
	clear(b)
	size := attrHeader + len(value)
	m.n = nlmsgHeader + nfgenHeader + (size+3)&^3
	host.PutUint32(b, uint32(m.n))
	host.PutUint16(b[4:], ulogConfig)
	host.PutUint16(b[6:], nlmFlagRequest|flags)
	host.PutUint32(b[8:], seq)
	be.PutUint16(b[18:], groupNumber) // family and version stay 0
	host.PutUint16(b[20:], uint16(size))
	host.PutUint16(b[22:], attr)
	copy(b[24:], value)
	return b[:m.n]
}

// buildWord is build for a 32-bit value.
func (m *configMessage) buildWord(groupNumber uint16, flags uint16, seq uint32, attr uint16, value uint32) []byte {
	var v [4]byte
	be.PutUint32(v[:], value)
	return m.build(groupNumber, flags, seq, attr, v[:])
}

// commandValue is struct nfulnl_msg_config_cmd.
func commandValue(cmd uint8) []byte { return []byte{cmd} }

// modeValue is struct nfulnl_msg_config_mode; a range of 0 means the most.
func modeValue(copyRange uint32) []byte {
	v := make([]byte, 6)
	be.PutUint32(v, copyRange)
	v[4] = copyPacket
	return v
}
