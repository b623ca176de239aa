package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"capd/nft/filter"
)

// ownComment says on the sets of capd's own connections what they are for.
const ownComment = "capd's own connections, in no capture; asked while there are any"

// ownSet describes the set of capd's own connections over one IP version. Each of the
// two tables has it while a capture has rules there.
type ownSet struct {
	name string
	key  nftables.SetDatatype
	text string // of a match, as nft lists it
	// load gives what is compared: both addresses and ports, one behind the other in
	// registers of 4 bytes.
	load []expr.Any
	is   protocol
}

var ownSets = [2]ownSet{
	{name: "own4", is: ip4, key: ownKey(nftables.TypeIPAddr), text: "ip saddr . tcp sport . ip daddr . tcp dport @own4",
		load: ownLoad(12, 4, 16, unix.NFT_REG32_01, unix.NFT_REG32_02, unix.NFT_REG32_03)},
	{name: "own6", is: ip6, key: ownKey(nftables.TypeIP6Addr), text: "ip6 saddr . tcp sport . ip6 daddr . tcp dport @own6",
		load: ownLoad(8, 16, 24, unix.NFT_REG32_04, unix.NFT_REG32_05, unix.NFT_REG32_09)},
}

func ownKey(address nftables.SetDatatype) nftables.SetDatatype {
	key, _ := nftables.ConcatSetType(address, nftables.TypeInetService, address, nftables.TypeInetService) // four are not too many
	return key
}

// ownLoad loads the source address into the first register and the rest behind it.
func ownLoad(saddr, length, daddr uint32, sport, to, dport uint32) []expr.Any {
	load := func(base expr.PayloadBase, register, offset, length uint32) expr.Any {
		return &expr.Payload{DestRegister: register, Base: base, Offset: offset, Len: length}
	}
	return []expr.Any{
		load(expr.PayloadBaseNetworkHeader, unix.NFT_REG_1, saddr, length),
		load(expr.PayloadBaseTransportHeader, sport, 0, 2),
		load(expr.PayloadBaseNetworkHeader, to, daddr, length),
		load(expr.PayloadBaseTransportHeader, dport, 2, 2),
	}
}

func newOwn(t *nftables.Table, s *ownSet) *nftables.Set {
	return &nftables.Set{Table: t, Name: s.name, KeyType: s.key, Concatenation: true, Comment: ownComment}
}

// own looks a packet up in the set.
func (l *lowerer) own(s *ownSet) []expr.Any {
	var out []expr.Any
	for _, dep := range l.needs(key{needs: s.is, needsL: unix.IPPROTO_TCP}) {
		out = append(out, l.match(dep)...)
	}
	set := l.sets[s.name]
	return append(append(out, s.load...), &expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: set.Name, SetID: set.ID})
}

// AddExclude leaves a TCP connection out of every capture, in both directions, those that
// begin later too, until RemoveExclude has been called as often. It is meant for capd's
// own connections, which would be captured, and sent by themselves, without end. Both
// addresses and both ports must be given. When it returns, no packet of the connection is
// captured any more.
func (t *Table) AddExclude(flow filter.Flow) error {
	return t.exclude(flow, +1)
}

// RemoveExclude takes back one AddExclude.
func (t *Table) RemoveExclude(flow filter.Flow) error {
	return t.exclude(flow, -1)
}

func (t *Table) exclude(flow filter.Flow, change int) error {
	flow, err := ownFlow(flow)
	if err != nil {
		return fmt.Errorf("nft: exclude %s: %w", flow, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return ErrClosed
	}
	if err := t.ensure(); err != nil {
		return fmt.Errorf("nft: exclude %s: %w", flow, err)
	}
	before := t.own[flow]
	count := before + change
	if count < 0 {
		return fmt.Errorf("nft: exclude %s: it is not excluded", flow)
	}
	t.own[flow] = count
	if count == 0 {
		delete(t.own, flow)
	}
	if before == 0 || count == 0 {
		if err := t.changeOwn(flow, count > 0); err != nil {
			if t.own[flow] = before; before == 0 {
				delete(t.own, flow)
			}
			return fmt.Errorf("nft: exclude %s: %w", flow, err)
		}
	}
	return nil
}

// changeOwn puts a connection into the sets that are there, or takes it out, and the rules
// that ask the sets into the gates while there is a connection in them.
func (t *Table) changeOwn(flow filter.Flow, add bool) error {
	version := 0
	if flow.Source.Is6() {
		version = 1
	}
	for _, o := range t.tables {
		if !o.used() {
			continue
		}
		change := t.conn.SetAddElements
		if !add {
			change = t.conn.SetDeleteElements
		}
		if err := change(o.own[version], flowElements(flow)); err != nil {
			t.drop()
			return err
		}
	}
	now := t.now
	now.own[version] = add
	for flow := range t.own {
		now.own[version] = now.own[version] || flow.Source.Is6() == (version == 1)
	}
	return t.adapt(now)
}

// ownElements gives the elements of a set that is about to be made.
func (t *Table) ownElements(s *ownSet) []nftables.SetElement {
	var out []nftables.SetElement
	for flow := range t.own {
		if flow.Source.Is4() == (s.is == ip4) {
			out = append(out, flowElements(flow)...)
		}
	}
	return out
}

// flowElements gives a connection's elements, one for each direction.
func flowElements(f filter.Flow) []nftables.SetElement {
	key := func(from netip.Addr, sport uint16, to netip.Addr, dport uint16) []byte {
		k := append([]byte(nil), from.AsSlice()...)
		k = append(binary.BigEndian.AppendUint16(k, sport), 0, 0)
		k = append(k, to.AsSlice()...)
		return append(binary.BigEndian.AppendUint16(k, dport), 0, 0)
	}
	out := []nftables.SetElement{{Key: key(f.Source, f.SourcePort, f.Destination, f.DestinationPort)}}
	if f.Source != f.Destination || f.SourcePort != f.DestinationPort {
		out = append(out, nftables.SetElement{Key: key(f.Destination, f.DestinationPort, f.Source, f.SourcePort)})
	}
	return out
}

// ownFlow checks a connection, and gives it in the one of its two directions by which it
// is remembered.
func ownFlow(f filter.Flow) (filter.Flow, error) {
	f.Source, f.Destination = f.Source.Unmap().WithZone(""), f.Destination.Unmap().WithZone("")
	switch {
	case !f.Source.IsValid() || !f.Destination.IsValid() || f.SourcePort == 0 || f.DestinationPort == 0:
		return f, errors.New("a connection has two addresses and two ports")
	case f.Source.Is4() != f.Destination.Is4():
		return f, errors.New("its ends are of different families")
	}
	source, destination := netip.AddrPortFrom(f.Source, f.SourcePort), netip.AddrPortFrom(f.Destination, f.DestinationPort)
	if source.Compare(destination) > 0 {
		source, destination = destination, source
	}
	return filter.Flow{Source: source.Addr(), SourcePort: source.Port(), Destination: destination.Addr(), DestinationPort: destination.Port()}, nil
}
