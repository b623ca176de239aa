package filter

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// V1 is the model API's filter, as text and numbers: every field that is given must
// match; empty or 0 is any.
type V1 struct {
	SourceAddress      string // an address or CIDR, IPv4 or IPv6
	SourcePort         uint16
	DestinationAddress string
	DestinationPort    uint16
	Protocol           string // a number, 0 to 255, or a name; "" is any, and so is "0"
}

// FromV1 reads filter_v1. Its errors are *Error, with the field ("filter_v1.protocol"),
// the value and the mend.
//
// Addresses are those of the IP header. The protocol is the one after IPv4 options and
// IPv6 extension headers. Ports without a protocol are those of TCP, UDP, UDP-Lite, SCTP
// and DCCP.
func FromV1(v V1) (*Filter, error) {
	source, err := v1Address("filter_v1.source_address", Source, v.SourceAddress)
	if err != nil {
		return nil, err
	}
	destination, err := v1Address("filter_v1.destination_address", Destination, v.DestinationAddress)
	if err != nil {
		return nil, err
	}
	if source != nil && destination != nil && source.Prefix.Addr().Is4() != destination.Prefix.Addr().Is4() {
		return nil, &Error{
			Field: "filter_v1.destination_address", Value: v.DestinationAddress,
			Message: fmt.Sprintf("%q and the source address %q are of different families: no packet has both",
				v.DestinationAddress, v.SourceAddress),
			Hint: "give two IPv4 or two IPv6 addresses, or start two captures",
		}
	}
	protocol, err := v1Protocol(v.Protocol)
	if err != nil {
		return nil, err
	}

	var parts []Node
	for _, a := range []*Address{source, destination} {
		if a != nil {
			parts = append(parts, *a)
		}
	}
	if protocol != 0 && v.SourcePort == 0 && v.DestinationPort == 0 {
		parts = append(parts, Transport{protocol})
	}
	for _, p := range []struct {
		field string
		side  Side
		port  uint16
	}{
		{"filter_v1.source_port", Source, v.SourcePort}, {"filter_v1.destination_port", Destination, v.DestinationPort},
	} {
		if p.port == 0 {
			continue
		}
		if protocol != 0 && !slices.Contains(portProtocols, protocol) {
			return nil, &Error{
				Field: p.field, Value: strconv.Itoa(int(p.port)),
				Message: fmt.Sprintf("port %d with protocol %s, which has no ports", p.port, v.Protocol),
				Hint:    "leave the port out, or give one of tcp, udp, sctp, dccp, udplite as the protocol",
			}
		}
		parts = append(parts, TransportPort{p.side, protocol, p.port})
	}
	return New(all(parts...)), nil
}

// v1Address reads an address or CIDR; nil means any.
func v1Address(field string, side Side, text string) (*Address, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return nil, nil
	}
	wrong := func(message, hint string) (*Address, error) {
		return nil, &Error{Field: field, Value: text, Message: fmt.Sprintf("%q %s", text, message), Hint: hint}
	}
	prefix, err := netip.ParsePrefix(text)
	if !strings.Contains(text, "/") {
		var addr netip.Addr
		addr, err = netip.ParseAddr(text)
		if err == nil && addr.Zone() != "" {
			return wrong("has a zone, which no packet carries",
				"write the address without %"+addr.Zone()+" and name the interface in interfaces")
		}
		prefix = netip.PrefixFrom(addr, addr.BitLen())
	}
	switch {
	case err != nil:
		return wrong("is not an IP address or CIDR", "write it like 192.0.2.7, 192.0.2.0/24, 2001:db8::7 or 2001:db8::/32")
	case prefix.Addr().Is4In6():
		return wrong("is an IPv4 address written as IPv6; packets carry it as IPv4",
			"write "+prefix.Addr().Unmap().String())
	case prefix != prefix.Masked():
		return wrong("has bits set beyond its prefix length",
			fmt.Sprintf("write %s for the network or %s for the host", prefix.Masked(), prefix.Addr()))
	}
	return &Address{side, prefix}, nil
}

// v1Protocol reads a protocol's number or name; 0 means any.
func v1Protocol(text string) (uint8, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return 0, nil
	}
	if strings.Trim(text, "0123456789") == "" {
		if n, err := strconv.ParseUint(text, 10, 8); err == nil {
			return uint8(n), nil
		}
		return 0, &Error{
			Field: "filter_v1.protocol", Value: text,
			Message: fmt.Sprintf("%s is no protocol number: they go from 0 (any) to 255", text),
			Hint:    "write 6 or tcp, 17 or udp, 1 or icmp, 58 or icmpv6",
		}
	}
	n, ok := protocolNumber(text)
	switch {
	case !ok:
		return 0, &Error{
			Field: "filter_v1.protocol", Value: text,
			Message: fmt.Sprintf("no protocol is called %q, neither by IANA nor in /etc/protocols", text),
			Hint:    "write its number, 1 to 255, or a name such as tcp, udp, icmp, icmpv6, gre, esp",
		}
	case n == 0:
		return 0, &Error{
			Field: "filter_v1.protocol", Value: text,
			Message: fmt.Sprintf("%q has the number 0, which here means any protocol", text),
			Hint:    "leave the protocol out",
		}
	}
	return n, nil
}
