package ctl

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"capd/ctl/wire"
)

// hooks are the places where packets are seen, in a packet's order.
var hooks = []string{
	wire.HookIngress, wire.HookPrerouting, wire.HookInput, wire.HookForward,
	wire.HookOutput, wire.HookPostrouting, wire.HookEgress,
}

// requestFlags are the flags that describe a capture, of start and explain alike.
type requestFlags struct {
	given   wire.StartRequest // as the flags say; only fields of flags that were given count
	noCheck bool
	resolve bool
	file    string
}

// add declares the flags under their headings.
func (r *requestFlags) add(cmd *cobra.Command) {
	f, g := cmd.Flags(), &r.given
	group := ""
	flag := func(v *flagValue, name, short, usage string) {
		f.VarP(v, name, short, usage)
		_ = f.SetAnnotation(name, flagGroup, []string{group}) // fails only for a flag that is not there
	}
	word := func(to *string, kind string) *flagValue {
		return &flagValue{kind: kind, set: func(s string) error { *to = s; return nil }}
	}
	// A second one would silently take the first one's place, of which a user expects both.
	only := func(v *flagValue, why string) *flagValue {
		set, given := v.set, false
		v.set = func(s string) error {
			if given {
				return errors.New(why)
			}
			given = true
			return set(s)
		}
		return v
	}
	yes := func(to *bool, name, usage string) {
		f.BoolVar(to, name, false, usage)
		_ = f.SetAnnotation(name, flagGroup, []string{group})
	}

	group = "Which packets (besides EXPRESSION)"
	flag(listFlag(&g.Interfaces, "IF", checkInterface), "interface", "i", "this interface, in and out; eth* for all that begin so; repeatable")
	flag(listFlag(&g.Hooks, "H[,H]", func(s string) error { return oneOf(s, hooks) }), "hook", "", "where in the kernel: "+strings.Join(hooks, ", "))
	flag(numberFlag(&g.Sample, wire.MaxSample), "sample", "", "one in N of them")
	flag(choiceFlag(&g.SampleBy, "WHAT", wire.SampleByPacket, wire.SampleByFlow), "sample-by", "", "packet: any one in N; flow: whole conversations")
	yes(&r.resolve, "resolve", "replace names of hosts in EXPRESSION by their addresses as of now")
	flag(choiceFlag(&g.Type, "TYPE", wire.TypeFull, wire.TypeSimple), "type", "", "full: whole packets; simple: the first 160 bytes of one in 100")

	group = "How much"
	flag(secondsFlag(&g.TimeLimit), "time-limit", "t", "end after that long: 90s, 5m, 1h30m or seconds")
	flag(numberFlag(&g.PacketLimit, wire.MaxPacketLimit), "packet-limit", "c", "end after exactly N packets")
	flag(sizeFlag(&g.ByteLimit), "byte-limit", "b", "end before the files are larger: 10mb, 2gb")
	flag(numberFlag(&g.Snaplen, wire.MaxSnaplen), "snaplen", "s", "keep the first N bytes of each packet; 0: whole")
	yes(&g.HeadersOnly, "headers-only", "keep headers and cut every payload")
	flag(choiceFlag(&g.OnOverload, "WHAT", wire.OverloadSample, wire.OverloadStop), "on-overload", "", "above the box's packet rate: sample what it allows, or stop")

	group = "Where to"
	flag(only(word(&g.Destination, "NAME"), "a capture has one destination: start another for a second one"), "destination", "d", "deliver to this profile (capctl destination list); without: kept for capctl download")
	yes(&r.noCheck, "no-check", "begin although the destination may not work")
	flag(word(&g.Name, "NAME"), "name", "n", "call the capture so")
	flag(labelFlag(&g.Labels), "label", "", "remember K=V with it, also for the path at the destination; repeatable")

	group = "What the files are like"
	flag(choiceFlag(&g.Format, "FORMAT", wire.FormatPcapng, wire.FormatPcap), "format", "", "pcapng or pcap")
	flag(choiceFlag(&g.LinkType, "TYPE", wire.LinkAuto, wire.LinkEthernet, wire.LinkRaw, wire.LinkSLL2), "link-type", "", "auto, ethernet, raw or sll2")
	flag(sizeFlag(&g.SegmentSize), "segment-size", "", "begin a new file at that size")
	flag(secondsFlag(&g.SegmentTime), "segment-time", "", "begin a new file after that long; 0: by size only")
	flag(numberFlag(&g.Ring, wire.MaxRing), "ring", "", "keep only the newest N files")
	yes(&g.Annotate, "annotate", "mark, connection tracking and socket owner as packet comments")

	group = "All of it"
	flag(word(&r.file, "FILE"), "request", "f", "a request as JSON, from a file or - for stdin; flags override its fields")
}

// checkInterface refuses what the kernel would not take as a name (dev_valid_name, and
// IFNAMSIZ with its final zero), and tcpdump's "any".
func checkInterface(s string) error {
	switch name := strings.TrimSuffix(s, "*"); {
	case s == "any":
		return errors.New("leave -i out to see every interface; -i any is tcpdump's")
	case s == "":
		return errors.New("an interface has a name (ip link)")
	case len(name) > 15, strings.ContainsAny(name, ":/ \t\n*"):
		return fmt.Errorf("%q is not a name that an interface can have (ip link)", s)
	}
	return nil
}

// request puts the request together: the file, over it the flags that were given, the
// expression, and the user's own SSH connection, which is left out of the capture.
func (a *app) request(cmd *cobra.Command, r *requestFlags, expression []string) (wire.StartRequest, error) {
	var req wire.StartRequest
	if r.file != "" {
		var err error
		if req, err = a.readRequest(r.file); err != nil {
			return req, err
		}
	}
	g := &r.given
	for name, take := range map[string]func(){
		"interface":    func() { req.Interfaces = g.Interfaces },
		"hook":         func() { req.Hooks = g.Hooks },
		"sample":       func() { req.Sample = g.Sample },
		"sample-by":    func() { req.SampleBy = g.SampleBy },
		"type":         func() { req.Type = g.Type },
		"time-limit":   func() { req.TimeLimit = g.TimeLimit },
		"packet-limit": func() { req.PacketLimit = g.PacketLimit },
		"byte-limit":   func() { req.ByteLimit = g.ByteLimit },
		"snaplen":      func() { req.Snaplen = g.Snaplen },
		"headers-only": func() { req.HeadersOnly = g.HeadersOnly },
		"on-overload":  func() { req.OnOverload = g.OnOverload },
		"destination":  func() { req.Destination = g.Destination },
		"no-check":     func() { check := !r.noCheck; req.Check = &check },
		"name":         func() { req.Name = g.Name },
		"format":       func() { req.Format = g.Format },
		"link-type":    func() { req.LinkType = g.LinkType },
		"segment-size": func() { req.SegmentSize = g.SegmentSize },
		"segment-time": func() { req.SegmentTime = g.SegmentTime },
		"ring":         func() { req.Ring = g.Ring },
		"annotate":     func() { req.Annotate = g.Annotate },
		"label": func() {
			if req.Labels == nil {
				req.Labels = map[string]string{}
			}
			for k, v := range g.Labels {
				req.Labels[k] = v
			}
		},
	} {
		if cmd.Flags().Changed(name) {
			take()
		}
	}
	if len(expression) > 0 {
		req.Filter = strings.Join(expression, " ")
	}
	if r.resolve && req.Filter != "" {
		var err error
		if req.Filter, err = a.resolve(cmd.Context(), req.Filter); err != nil {
			return req, err
		}
	}
	if flow, ok := sshFlow(a.getenv("SSH_CONNECTION")); ok && !slices.Contains(req.Exclude, flow) {
		req.Exclude = append(req.Exclude, flow)
	}
	return req, nil
}

// sshFlow reads what sshd tells of the connection through which the user came: client
// address and port, server address and port (ssh(1), SSH_CONNECTION). A capture of it
// would see itself in every line that it makes appear.
func sshFlow(connection string) (wire.Flow, bool) {
	parts := strings.Fields(connection)
	if len(parts) != 4 {
		return wire.Flow{}, false
	}
	var ends [2]netip.AddrPort
	for i := range ends {
		addr, err := netip.ParseAddr(parts[2*i])
		port, portErr := strconv.ParseUint(parts[2*i+1], 10, 16)
		if err != nil || portErr != nil || port == 0 {
			return wire.Flow{}, false
		}
		ends[i] = netip.AddrPortFrom(addr.Unmap().WithZone(""), uint16(port))
	}
	return wire.Flow{
		Source: ends[0].Addr().String(), SourcePort: wire.Port(ends[0].Port()),
		Destination: ends[1].Addr().String(), DestinationPort: wire.Port(ends[1].Port()),
	}, true
}

// readRequest reads a request from a file, or from stdin for "-".
func (a *app) readRequest(name string) (wire.StartRequest, error) {
	in, what := a.stdin, "the request on stdin"
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return wire.StartRequest{}, usagef("--request: %v", err)
		}
		defer f.Close()
		in, what = f, name
	}
	data, err := io.ReadAll(io.LimitReader(in, wire.MaxRequestBody+1))
	if err != nil {
		return wire.StartRequest{}, usagef("--request: %v", err)
	}
	if len(data) > wire.MaxRequestBody {
		return wire.StartRequest{}, usagef("%s is larger than a request may be (1 MiB)", what)
	}
	req, err := parseRequest(data)
	if err != nil {
		var own *exitError
		if errors.As(err, &own) {
			own.message = what + ": " + own.message
		}
		return req, err
	}
	return req, nil
}

// parseRequest reads a request strictly: what it does not know it names, and each error
// names its field.
func parseRequest(data []byte) (wire.StartRequest, error) {
	var req wire.StartRequest
	d := json.NewDecoder(bytes.NewReader(data))
	fields := map[string]json.RawMessage{}
	if err := d.Decode(&fields); err != nil {
		return req, syntaxError(data, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return req, usagef("there is more after the request's closing brace").withHint("one request is one JSON object")
	}
	known := fieldNames(reflect.TypeFor[wire.StartRequest]())
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if err := knownField(name, "", known); err != nil {
			return req, err
		}
		one, err := json.Marshal(map[string]json.RawMessage{name: fields[name]})
		if err != nil {
			return req, usagef("%s: %v", name, err)
		}
		strict := json.NewDecoder(bytes.NewReader(one))
		strict.DisallowUnknownFields()
		if err := strict.Decode(&req); err != nil {
			return req, fieldError(name, err)
		}
	}
	return req, nil
}

// knownField refuses a field that a request does not have and names the nearest.
func knownField(name, within string, known []string) error {
	for _, k := range known {
		if k == name {
			return nil
		}
	}
	e := usagef("unknown field %q%s", name, within)
	if near := closest(name, known); near != "" {
		return e.withHint("did you mean %q?", near)
	}
	return e.withHint("fields: %s", strings.Join(known, ", "))
}

// fieldError says what is wrong with a field's value.
func fieldError(name string, err error) error {
	var kind *json.UnmarshalTypeError
	if errors.As(err, &kind) {
		field := name
		if kind.Field != "" {
			field = kind.Field
		}
		return usagef("%s: a JSON %s is not what belongs there (%s)", field, kind.Value, wants(field, kind.Type))
	}
	if unknown, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		if inner, unquoteErr := strconv.Unquote(unknown); unquoteErr == nil {
			nested := map[string]reflect.Type{"filter_v1": reflect.TypeFor[wire.FilterV1](), "exclude": reflect.TypeFor[wire.Flow]()}
			if t, ok := nested[name]; ok {
				return knownField(inner, " in "+name, fieldNames(t))
			}
		}
	}
	return usagef("%s: %v", name, err)
}

// wants says in JSON's words what a field takes, of a Go type where it has no range of its
// own.
func wants(field string, t reflect.Type) string {
	if own := wire.NumberRange(field); own != "" {
		return "a whole number: " + own
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a string"
	case reflect.Slice:
		return "a list"
	case reflect.Map, reflect.Struct:
		return "an object"
	case reflect.Uint16:
		return "a whole number: 0 to 65535"
	}
	return t.String()
}

// fieldNames lists the JSON names of a struct's fields.
func fieldNames(t reflect.Type) []string {
	var names []string
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		names = append(names, name)
	}
	return names
}

// syntaxError says where a request is not JSON.
func syntaxError(data []byte, err error) error {
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax):
		before := data[:min(max(syntax.Offset-1, 0), int64(len(data)))]
		line := bytes.Count(before, []byte("\n")) + 1
		column := len(before) - bytes.LastIndexByte(before, '\n')
		return usagef("not JSON, at line %d, column %d: %v", line, column, err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return usagef("not JSON: it ends too early")
	}
	return usagef("a request is a JSON object, such as {\"filter\": \"udp port 53\"}")
}
