package api

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"unicode"

	"capd/ctl/wire"
	"capd/nearest"
)

// Bounds of a request that hold on every box, besides those of package wire.
const (
	maxFilter     = 64 << 10 // bytes of text
	maxInterfaces = 64
	maxExclude    = 64
	maxLabels     = 32
	maxLabelValue = 256
)

// validateRequest checks what can be judged of a request without knowing the box: nil,
// or a 422 that names field, value and mend. It changes nothing. Limits, destinations,
// devices and the filter are the daemon's to judge.
func validateRequest(r *wire.StartRequest) *wire.Error {
	for _, e := range []struct {
		field, value string
		valid        []string
	}{
		{"type", r.Type, []string{wire.TypeFull, wire.TypeSimple}},
		{"system", r.System, []string{wire.SystemMagicTransit}},
		{"sample_by", r.SampleBy, []string{wire.SampleByPacket, wire.SampleByFlow}},
		{"on_overload", r.OnOverload, []string{wire.OverloadSample, wire.OverloadStop}},
		{"format", r.Format, []string{wire.FormatPcapng, wire.FormatPcap}},
		{"link_type", r.LinkType, []string{wire.LinkAuto, wire.LinkEthernet, wire.LinkRaw, wire.LinkSLL2}},
	} {
		if e.value != "" && !slices.Contains(e.valid, e.value) {
			return invalid(e.field, fmt.Sprintf("%s: %s is unknown", e.field, shown(e.value)), "write "+strings.Join(e.valid, ", "))
		}
	}
	for _, check := range []func(*wire.StartRequest) *wire.Error{validateNames, validateWhere, validateNumbers, validateLabels, validateExclude} {
		if e := check(r); e != nil {
			return e
		}
	}
	return nil
}

func validateNames(r *wire.StartRequest) *wire.Error {
	if r.Name != "" && !wire.ValidName(r.Name) {
		return invalid("name", fmt.Sprintf("name: %s is not a name", shown(r.Name)), wire.NameHint)
	}
	if len(r.Name) == 32 && strings.Trim(r.Name, "0123456789abcdef") == "" {
		return invalid("name", fmt.Sprintf("name: %s looks like a capture's id", shown(r.Name)), "write something else, such as the ticket's number")
	}
	if r.Destination != "" && !wire.ValidName(r.Destination) {
		return invalid("destination", fmt.Sprintf("destination: %s is not a destination's name", shown(r.Destination)), "GET /v1/destinations (capctl destination list) shows them")
	}
	if len(r.Filter) > maxFilter {
		return invalid("filter", fmt.Sprintf("filter: it is %d bytes long", len(r.Filter)), fmt.Sprintf("at most %d", maxFilter))
	}
	if i := strings.IndexFunc(r.Filter, func(c rune) bool { return unicode.IsControl(c) && !strings.ContainsRune("\t\n\r", c) }); i >= 0 {
		return invalid("filter", fmt.Sprintf("filter: there is a control character at column %d", i+1), "write plain text, as pcap-filter(7) says")
	}
	if r.Annotate && r.Format == wire.FormatPcap {
		return invalid("annotate", "annotate: a pcap file has no room for comments on packets", `write "format": "pcapng", or leave annotate out`)
	}
	return nil
}

// validateWhere checks interfaces and hooks.
func validateWhere(r *wire.StartRequest) *wire.Error {
	if len(r.Interfaces) > maxInterfaces {
		return invalid("interfaces", fmt.Sprintf("interfaces: these are %d", len(r.Interfaces)), fmt.Sprintf("at most %d; one with * at the end stands for many", maxInterfaces))
	}
	for i, name := range r.Interfaces {
		field := fmt.Sprintf("interfaces[%d]", i)
		plain := strings.TrimSuffix(name, "*")
		if name == "" || len(plain) > 15 || plain == "." || plain == ".." || strings.ContainsAny(plain, "/:*") ||
			strings.ContainsFunc(plain, unquotable) {
			return invalid(field, fmt.Sprintf("%s: %s is not an interface", field, shown(name)),
				`1 to 15 printable ASCII characters without space, slash, colon, " and \; * at the end for a prefix`)
		}
		if slices.Contains(r.Interfaces[:i], name) {
			return invalid(field, fmt.Sprintf("%s: %s stands there twice", field, shown(name)), "leave one out")
		}
	}
	hooks := []string{wire.HookPrerouting, wire.HookInput, wire.HookForward, wire.HookOutput, wire.HookPostrouting, wire.HookIngress, wire.HookEgress}
	for i, hook := range r.Hooks {
		field := fmt.Sprintf("hooks[%d]", i)
		if !slices.Contains(hooks, hook) {
			return invalid(field, fmt.Sprintf("%s: %s is not a hook", field, shown(hook)), nearest.Hint(hook, hooks))
		}
		if slices.Contains(r.Hooks[:i], hook) {
			return invalid(field, fmt.Sprintf("%s: %s stands there twice", field, shown(hook)), "leave one out")
		}
		if (hook == wire.HookIngress || hook == wire.HookEgress) && len(r.Interfaces) == 0 {
			return invalid(field, fmt.Sprintf("%s: %s needs an interface", field, shown(hook)), `name one in interfaces, such as "eth0"`)
		}
	}
	return nil
}

// unquotable tells characters that nft's quoted strings cannot carry. The kernel takes
// most of them in an interface's name (net/core/dev.c, dev_valid_name); * at the end still
// reaches such an interface.
func unquotable(c rune) bool {
	return c > unicode.MaxASCII || !unicode.IsPrint(c) || strings.ContainsRune(" \"\\", c)
}

// numberHint says what a field of whole numbers takes; most is what its type holds, which
// is the range of those that have none of their own.
func numberHint(field string, most uint64) string {
	if own := wire.NumberRange(field); own != "" {
		return "write " + own
	}
	return fmt.Sprintf("write a whole number from 0 to %d", most)
}

func validateNumbers(r *wire.StartRequest) *wire.Error {
	out := func(field string, value any, hint string) *wire.Error {
		return invalid(field, fmt.Sprintf("%s: %v is out of range", field, value), hint)
	}
	if n := r.Snaplen; n != nil && *n != 0 && (*n < wire.MinSnaplen || *n > wire.MaxSnaplen) {
		return out("snaplen", *n, numberHint("snaplen", math.MaxUint32))
	}
	if n := r.Sample; n != nil && (*n < 1 || *n > wire.MaxSample) {
		return out("sample", *n, numberHint("sample", math.MaxUint32))
	}
	if n := r.TimeLimit; n != nil && *n <= 0 {
		return out("time_limit", *n, "write more than 0 seconds, or leave it out for the box's default")
	}
	if n := r.ByteLimit; n != nil && *n < wire.MinByteLimit {
		return out("byte_limit", int64(*n), fmt.Sprintf("at least %d: a file's own headers must fit; or leave it out for the box's default", wire.MinByteLimit))
	}
	if n := r.PacketLimit; n != nil && *n > wire.MaxPacketLimit {
		return out("packet_limit", *n, numberHint("packet_limit", math.MaxUint64))
	}
	if n := r.SegmentSize; n != nil && *n < wire.MinSegmentSize {
		return out("segment_size", int64(*n), fmt.Sprintf("at least %d, or leave it out for the default", wire.MinSegmentSize))
	}
	if n := r.SegmentTime; n != nil && *n != 0 && *n < 1e9 {
		return out("segment_time", *n, "write 0 for none, or at least 1 second")
	}
	if n := r.Ring; n != nil && *n > wire.MaxRing {
		return out("ring", *n, numberHint("ring", math.MaxUint32))
	}
	return nil
}

func validateLabels(r *wire.StartRequest) *wire.Error {
	if len(r.Labels) > maxLabels {
		return invalid("labels", fmt.Sprintf("labels: these are %d", len(r.Labels)), fmt.Sprintf("at most %d", maxLabels))
	}
	keys := make([]string, 0, len(r.Labels))
	for key := range r.Labels {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		value, field := r.Labels[key], join("labels", key)
		if !wire.ValidName(key) {
			return invalid(field, fmt.Sprintf("labels: %s is not a label's key", shown(key)), wire.NameHint)
		}
		if len(value) > maxLabelValue {
			return invalid(field, fmt.Sprintf("%s: the value is %d bytes long", field, len(value)), fmt.Sprintf("at most %d", maxLabelValue))
		}
		if strings.ContainsFunc(value, unicode.IsControl) {
			return invalid(field, fmt.Sprintf("%s: %s has a control character", field, shown(value)), "write plain text")
		}
	}
	return nil
}

func validateExclude(r *wire.StartRequest) *wire.Error {
	if len(r.Exclude) > maxExclude {
		return invalid("exclude", fmt.Sprintf("exclude: these are %d flows", len(r.Exclude)), fmt.Sprintf("at most %d", maxExclude))
	}
	for i, flow := range r.Exclude {
		var ends [2]netip.Addr
		for j, end := range []struct{ name, value string }{{"source", flow.Source}, {"destination", flow.Destination}} {
			if end.value == "" {
				continue
			}
			field := fmt.Sprintf("exclude[%d].%s", i, end.name)
			a, err := netip.ParseAddr(end.value)
			if err != nil || a.Zone() != "" {
				return invalid(field, fmt.Sprintf("%s: %s is not an address", field, shown(end.value)), "write one IPv4 or IPv6 address, without a mask and without a zone")
			}
			ends[j] = a.Unmap()
		}
		field := fmt.Sprintf("exclude[%d]", i)
		if !ends[0].IsValid() && !ends[1].IsValid() {
			return invalid(field, field+": it names no address", "give source, destination or both: without them every packet would be excluded")
		}
		if ends[0].IsValid() && ends[1].IsValid() && ends[0].Is4() != ends[1].Is4() {
			return invalid(field, fmt.Sprintf("%s: %s and %s are of different families", field, flow.Source, flow.Destination), "write two IPv4 or two IPv6 addresses")
		}
	}
	return nil
}
