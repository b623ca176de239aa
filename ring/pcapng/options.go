package pcapng

import (
	"encoding/binary"
	"slices"
)

// Custom options, section 3.5.1: of the last two a program that changes a file keeps none.
const (
	optCustomText       = 2988
	optCustomBytes      = 2989 // only their own programs know their numbers
	optCustomTextFixed  = 19372
	optCustomBytesFixed = 19373
)

// numbers tells, of an option that this package does not decode, how long the numbers are
// that it begins with, in bytes: they stand in the file's byte order, and what follows them
// is bytes as they are. It is not ok for options that it does not know. Sections 3.5.1 and
// 4.1 to 4.6.
func numbers(block uint32, code uint16) (widths []int, ok bool) {
	switch code {
	case optComment:
		return nil, true
	case optCustomText:
		return []int{4}, true // who defined it
	}
	switch block {
	case TypeSection:
		return nil, code <= optUserAppl
	case TypeNames:
		return nil, code <= 4 // the server that was asked, and its addresses
	case TypePacket:
		switch code {
		case 3: // hash
			return nil, true
		case 5: // the packet's number
			return []int{8}, true
		case 6: // queue
			return []int{4}, true
		}
	case TypeInterface:
		switch code {
		case 8, 16, 17: // speed
			return []int{8}, true
		case 10: // time zone
			return []int{4}, true
		case optIfName, optIfDescription, 4, 5, 6, 7, 12, 13, optIfHardware: // addresses, system, length of the FCS
			return nil, true
		}
	}
	return nil, false
}

// Further gives the options of a block that its other methods do not: comments but the
// first, custom and rarer options, in little-endian order as Append of what More is given
// to writes them. left counts those that have to stay behind: which forbid to be copied,
// or hold numbers in the other byte order at places that are not known. The memory is new
// where there is anything.
func (b *Block) Further() (options []byte, left int, err error) {
	at, decoded := 0, map[uint16]int{optComment: 1}
	switch b.Type {
	case TypeSection:
		at = 24
		decoded[optHardware], decoded[optOS], decoded[optUserAppl] = 1, 1, 1
	case TypeInterface:
		at = 16
		decoded[optIfName], decoded[optIfDescription] = 1, 1
		decoded[optIfTSResol], decoded[optIfTSOffset] = 1<<16, 1<<16 // taken into account in each time
	case TypePacket:
		at = packetHeader + pad(int(b.reader.order.Uint32(b.Raw[20:])))
		if len(b.Raw)-4-at < 4 {
			return nil, 0, nil
		}
		decoded[optFlags], decoded[optDropCount] = 1<<16, 1<<16
	default:
		return nil, 0, nil
	}
	err = b.options(at, func(code uint16, v []byte) error {
		if b.Type == TypeInterface && code == optIfFilter {
			if len(v) > 1 && v[0] == 0 && decoded[code] == 0 {
				decoded[code] = -1 // the text that parseInterface takes
				return nil
			}
		} else if decoded[code] > 0 {
			if len(v) > 0 || decoded[code] > 1 { // an empty text says nothing
				decoded[code]--
			}
			return nil
		}
		var ok bool
		if options, ok = b.copyOption(options, code, v); !ok {
			left++
		}
		return nil
	})
	return options, left, err
}

// copyOption appends an option as a little-endian file has it. It is not ok where that
// cannot be told.
func (b *Block) copyOption(to []byte, code uint16, v []byte) ([]byte, bool) {
	if code == optCustomTextFixed || code == optCustomBytesFixed {
		return to, false
	}
	begun := len(to)
	to = le.AppendUint16(to, code)
	to = le.AppendUint16(to, uint16(len(v)))
	to = append(to, v...)
	to = append(to, make([]byte, pad(len(v))-len(v))...)
	if b.reader.order == binary.ByteOrder(le) {
		return to, true
	}
	value := to[begun+4 : begun+4+len(v)]
	widths, ok := numbers(b.Type, code)
	for _, n := range widths {
		if ok = ok && len(value) >= n; ok {
			slices.Reverse(value[:n])
			value = value[n:]
		}
	}
	if !ok {
		return to[:begun], false
	}
	return to, true
}

// AppendWith is Append with further options, as Further gives them.
func (p *Packet) AppendWith(b, options []byte) []byte {
	at := len(b)
	b = p.Append(b)
	if len(options) == 0 {
		return b
	}
	end := len(b) - 4
	if p.Flags != 0 || p.Dropped != 0 || p.Comment != "" {
		end -= 4 // the mark behind the options
	}
	b = append(b[:end], options...)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0) // the mark, and the length again
	le.PutUint32(b[at+4:], uint32(len(b)-at))
	finish(b[at:])
	return b
}

// AppendComment adds a comment to options, cut to 65535 bytes.
func AppendComment(options []byte, text string) []byte {
	options, added := extend(options, textSize(text))
	putText(added, optComment, text)
	return options
}

// Carry gives a block that is neither a packet nor about an interface as a little-endian
// file has it, in memory that is new: names (section 4.5), secrets (4.7), a journal's
// entry, and custom blocks that allow to be copied (4.8). It is not ok for other blocks,
// and where numbers stand in the other byte order at places that are not known.
func (b *Block) Carry() (block []byte, ok bool, err error) {
	same := b.reader.order == binary.ByteOrder(le)
	switch b.Type {
	case TypeNames:
		return b.carryNames()
	case TypeSecrets:
		if len(b.Raw) < 20 {
			return nil, false, damaged(b.Offset, "a block of secrets with %d bytes", len(b.Raw))
		}
		n := uint64(b.reader.order.Uint32(b.Raw[12:]))
		if n > uint64(len(b.Raw)-20) {
			return nil, false, damaged(b.Offset, "%d bytes of secrets in a block of %d", n, len(b.Raw))
		}
		block = le.AppendUint32(make([]byte, 8, len(b.Raw)), b.reader.order.Uint32(b.Raw[8:]))
		block = le.AppendUint32(block, uint32(n))
		end := 16 + pad(int(n))
		block = append(block, b.Raw[16:end]...)
		return b.finishCarried(block, end)
	case TypeJournal, TypeCustom:
		if b.Type == TypeCustom && !same {
			return nil, false, nil
		}
		block = append(block, b.Raw[:len(b.Raw)-4]...)
		le.PutUint32(block, b.Type)
		return finishBlock(block), true, nil
	}
	return nil, false, nil
}

func (b *Block) carryNames() (block []byte, ok bool, err error) {
	block = make([]byte, 8, len(b.Raw))
	at := 8
	for rest := b.Raw[8 : len(b.Raw)-4]; len(rest) >= 4; {
		kind, n := b.reader.order.Uint16(rest), int(b.reader.order.Uint16(rest[2:]))
		if 4+pad(n) > len(rest) {
			return nil, false, damaged(b.Offset, "a name of %d bytes in a block that has %d left", n, len(rest)-4)
		}
		block = le.AppendUint16(block, kind)
		block = le.AppendUint16(block, uint16(n))
		block = append(block, rest[4:4+pad(n)]...)
		at += 4 + pad(n)
		if kind == 0 { // nrb_record_end
			return b.finishCarried(block, at)
		}
		rest = rest[4+pad(n):]
	}
	return nil, false, damaged(b.Offset, "names without an end")
}

// finishCarried copies a block's options and ends the block.
func (b *Block) finishCarried(block []byte, options int) ([]byte, bool, error) {
	begun := len(block)
	err := b.options(options, func(code uint16, v []byte) error {
		block, _ = b.copyOption(block, code, v)
		return nil
	})
	if len(block) > begun {
		block = append(block, 0, 0, 0, 0)
	}
	le.PutUint32(block, b.Type)
	return finishBlock(block), true, err
}

func finishBlock(block []byte) []byte {
	block = append(block, 0, 0, 0, 0)
	le.PutUint32(block[4:], uint32(len(block)))
	finish(block)
	return block
}
