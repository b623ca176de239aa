package api

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"capd/ctl/wire"
)

// golden writes an error as the tables here do: status, code, field, message, hint.
func golden(e *wire.Error) string {
	if e == nil {
		return "taken"
	}
	return fmt.Sprintf("%d %s %s | %s | %s", e.Status, e.Code, e.Field, e.Message, e.Hint)
}

func TestDecodeMistakes(t *testing.T) {
	for _, c := range []struct{ body, want string }{
		{``, `taken`},
		{" \n", `taken`},
		{`{}`, `taken`},
		{`{"filter": null, "filter_v1": null, "labels": null, "interfaces": null, "snaplen": null}`, `taken`},
		{`{"packet_limit": 1e4, "snaplen": 96.0, "time_limit": "5m", "byte_limit": 10000000}`, `taken`},

		// Form.
		{`[]`, `400 bad_request  | the body is not a JSON object | write {"field": value, ...}`},
		{`"start"`, `400 bad_request  | the body is not a JSON object | write {"field": value, ...}`},
		{`null`, `400 bad_request  | the body is not a JSON object | write {"field": value, ...}`},
		{"{\n  \"name\": \"a\",\n}", `400 bad_request  | the body is not JSON at line 3, column 1: invalid character '}' looking for beginning of object key string | `},
		{`{"name": "a"`, `400 bad_request  | the body is not JSON at line 1, column 12: unexpected end of JSON input | `},
		{`{} {}`, `400 bad_request  | the body is not JSON at line 1, column 4: invalid character '{' after top-level value | `},
		{`name=a`, `400 bad_request  | the body is not JSON at line 1, column 2: invalid character 'a' in literal null (expecting 'u') | `},
		{"{\"name\": \"\xff\"}", `400 bad_request  | the body is not UTF-8 | `},
		{`{"name": "a", "name": "b"}`, `400 bad_request name | field "name" is given twice | leave one of them out`},
		{`{"labels": {"a": "1", "a": "2"}}`, `400 bad_request labels.a | field "labels.a" is given twice | leave one of them out`},
		{`{"filter_v1": {"protocol": 6, "protocol": 17}}`, `400 bad_request filter_v1.protocol | field "filter_v1.protocol" is given twice | leave one of them out`},

		// Names.
		{`{"pakcet_limit": 5}`, `422 unknown_field pakcet_limit | unknown field "pakcet_limit" | did you mean "packet_limit"?`},
		{`{"Name": "a"}`, `422 unknown_field Name | unknown field "Name" | did you mean "name"?`},
		{`{"filter_v1": {"src_port": 5}}`, `422 unknown_field filter_v1.src_port | unknown field "filter_v1.src_port" | did you mean "source_port"?`},
		{`{"filter_v1": {"vlan": 5}}`, `422 unknown_field filter_v1.vlan | unknown field "filter_v1.vlan" | valid here: destination_address, destination_port, protocol, source_address, source_port`},
		{`{"filter_v1": {"source_prot": 5}}`, `422 unknown_field filter_v1.source_prot | unknown field "filter_v1.source_prot" | did you mean "source_port"?`},
		{`{"exclude": [{"source": "192.0.2.1"}, {"sorce": "192.0.2.1"}]}`, `422 unknown_field exclude[1].sorce | unknown field "exclude[1].sorce" | did you mean "source"?`},
		{`{"": 1}`, `422 unknown_field  | unknown field "" | valid here: annotate, byte_limit, check, destination, exclude, filter, filter_v1, format, headers_only, hooks, interfaces, labels, link_type, name, on_overload, packet_limit, ring, sample, sample_by, segment_size, segment_time, snaplen, system, time_limit, type`},

		// Types.
		{`{"name": 5}`, `422 invalid name | name: 5 is not a string | write it in quotes`},
		{`{"headers_only": "true"}`, `422 invalid headers_only | headers_only: "true" is not true or false | write true or false, without quotes`},
		{`{"check": 1}`, `422 invalid check | check: 1 is not true or false | write true or false, without quotes`},
		{`{"snaplen": "96"}`, `422 invalid snaplen | snaplen: "96" is not a number | write it without quotes`},
		{`{"snaplen": -1}`, `422 invalid snaplen | snaplen: -1 is not a number that fits | write 0 for whole packets, or 34 to 262144`},
		{`{"sample": 4294967296}`, `422 invalid sample | sample: 4294967296 is not a number that fits | write 1 for every packet, or N for one in N, at most 1000000000`},
		{`{"ring": "all"}`, `422 invalid ring | ring: "all" is not a number | write it without quotes`},
		{`{"ring": 0.5}`, `422 invalid ring | ring: 0.5 is not a number that fits | write 0 to keep all segments, or 1 to 10000`},
		{`{"packet_limit": 1.5}`, `422 invalid packet_limit | packet_limit: 1.5 is not a number that fits | write 0 for none, or 1 to 9223372036854775807`},
		{`{"packet_limit": 1e300}`, `422 invalid packet_limit | packet_limit: 1e300 is not a number that fits | write 0 for none, or 1 to 9223372036854775807`},
		{`{"filter_v1": {"source_port": 70000}}`, `422 invalid filter_v1.source_port | filter_v1.source_port: 70000 is not a number that fits | write a whole number from 0 to 65535`},
		{`{"filter_v1": {"protocol": [6]}}`, `422 invalid filter_v1.protocol | filter_v1.protocol: [6] is neither a number nor a string | write a number or a string`},
		{`{"filter_v1": "tcp"}`, `422 invalid filter_v1 | filter_v1: "tcp" is not an object | write {"field": value, ...}`},
		{`{"labels": ["a"]}`, `422 invalid labels | labels: ["a"] is not an object | write {"key": "value", ...}`},
		{`{"labels": {"a": 1}}`, `422 invalid labels.a | labels.a: 1 is not a string | write it in quotes`},
		{`{"labels": {"a": null}}`, `422 invalid labels.a | labels.a: null is not a string | write it in quotes`},
		{`{"interfaces": "eth0"}`, `422 invalid interfaces | interfaces: "eth0" is not a list | write ["eth0"]`},
		{`{"interfaces": ["eth0", null]}`, `422 invalid interfaces[1] | interfaces[1]: null is not a string | write it in quotes`},
		{`{"byte_limit": "10 apples"}`, `422 invalid byte_limit | byte_limit: "10 apples" is not a size | write bytes as a number, or with b, kb, mb, gb, KiB, MiB or GiB (10mb)`},
		{`{"byte_limit": -5}`, `422 invalid byte_limit | byte_limit: "-5" is not a size | write bytes as a number, or with b, kb, mb, gb, KiB, MiB or GiB (10mb)`},
		{`{"byte_limit": true}`, `422 invalid byte_limit | byte_limit: true is neither a number nor a string | write a number or a string`},
		{`{"time_limit": "soon"}`, `422 invalid time_limit | time_limit: "soon" is not a duration | write seconds as a number, or 90s, 5m, 1h30m`},
		{`{"time_limit": {}}`, `422 invalid time_limit | time_limit: {} is neither a number nor a string | write a number or a string`},
		{`{"name": {"a": "` + strings.Repeat("x", 100) + `"}}`, `422 invalid name | name: {"a": "` + strings.Repeat("x", 53) + ` ... is not a string | write it in quotes`},
	} {
		var r wire.StartRequest
		if got := golden(decodeJSON([]byte(c.body), &r)); got != c.want {
			t.Errorf("%s\n got %s\nwant %s", c.body, got, c.want)
		}
	}
}

// TestDecodeContract reads the contract's request and writes it again.
func TestDecodeContract(t *testing.T) {
	const body = `{"type":"full","name":"voip-drops","filter":"udp port 5060 and host 192.0.2.7",
 "filter_v1": {"source_address": "192.0.2.0/24", "source_port": 5060, "destination_address": "", "destination_port": 0, "protocol": 17},
 "interfaces": ["eth0"], "hooks": ["prerouting", "output"], "snaplen": 0, "sample": 1, "sample_by": "packet", "headers_only": false, "annotate": false,
 "time_limit": 300, "byte_limit": "10mb", "packet_limit": 10000, "on_overload": "sample",
 "format": "pcapng", "link_type": "auto", "segment_size": "64mb", "segment_time": 60, "ring": 0, "destination": "soc", "check": true, "labels": {"ticket": "NET-1234"},
 "exclude": [{"source": "198.51.100.7", "source_port": 50022, "destination": "192.0.2.1", "destination_port": 22}]}`
	var strict, loose wire.StartRequest
	if e := decodeJSON([]byte(body), &strict); e != nil {
		t.Fatal(golden(e))
	}
	if err := json.Unmarshal([]byte(body), &loose); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(strict, loose) {
		t.Errorf("read as %+v, encoding/json reads %+v", strict, loose)
	}
	if e := validateRequest(&strict); e != nil {
		t.Error(golden(e))
	}
}

func TestValidateMistakes(t *testing.T) {
	for _, c := range []struct{ body, want string }{
		{`{"type": "half"}`, `422 invalid type | type: "half" is unknown | write full, simple`},
		{`{"system": "magic"}`, `422 invalid system | system: "magic" is unknown | write magic-transit`},
		{`{"sample_by": "byte"}`, `422 invalid sample_by | sample_by: "byte" is unknown | write packet, flow`},
		{`{"on_overload": "panic"}`, `422 invalid on_overload | on_overload: "panic" is unknown | write sample, stop`},
		{`{"format": "pcapg"}`, `422 invalid format | format: "pcapg" is unknown | write pcapng, pcap`},
		{`{"link_type": "wifi"}`, `422 invalid link_type | link_type: "wifi" is unknown | write auto, ethernet, raw, sll2`},
		{`{"name": "a b"}`, `422 invalid name | name: "a b" is not a name | 1 to 64 of a-z, A-Z, 0-9, dot, dash and underscore, beginning with a letter or digit`},
		{`{"name": "../x"}`, `422 invalid name | name: "../x" is not a name | 1 to 64 of a-z, A-Z, 0-9, dot, dash and underscore, beginning with a letter or digit`},
		{`{"name": "` + testID + `"}`, `422 invalid name | name: "` + testID + `" looks like a capture's id | write something else, such as the ticket's number`},
		{`{"destination": "a/b"}`, `422 invalid destination | destination: "a/b" is not a destination's name | GET /v1/destinations (capctl destination list) shows them`},
		{`{"filter": "udp\u0000"}`, `422 invalid filter | filter: there is a control character at column 4 | write plain text, as pcap-filter(7) says`},
		{`{"filter": "` + strings.Repeat("x", 65537) + `"}`, `422 invalid filter | filter: it is 65537 bytes long | at most 65536`},
		{`{"filter": "udp\n\tport 53"}`, `taken`},
		{`{"annotate": true, "format": "pcap"}`, `422 invalid annotate | annotate: a pcap file has no room for comments on packets | write "format": "pcapng", or leave annotate out`},
		{`{"interfaces": [""]}`, `422 invalid interfaces[0] | interfaces[0]: "" is not an interface | 1 to 15 printable ASCII characters without space, slash, colon, " and \; * at the end for a prefix`},
		{`{"interfaces": ["eth0", "et*0"]}`, `422 invalid interfaces[1] | interfaces[1]: "et*0" is not an interface | 1 to 15 printable ASCII characters without space, slash, colon, " and \; * at the end for a prefix`},
		{`{"interfaces": ["a-name-of-sixteen"]}`, `422 invalid interfaces[0] | interfaces[0]: "a-name-of-sixteen" is not an interface | 1 to 15 printable ASCII characters without space, slash, colon, " and \; * at the end for a prefix`},
		{`{"interfaces": ["eth0", "eth0"]}`, `422 invalid interfaces[1] | interfaces[1]: "eth0" stands there twice | leave one out`},
		{`{"interfaces": ["*", "wg*", "eth0.100"]}`, `taken`},
		{`{"hooks": ["pre-routing"]}`, `422 invalid hooks[0] | hooks[0]: "pre-routing" is not a hook | did you mean "prerouting"?`},
		{`{"hooks": ["xdp"]}`, `422 invalid hooks[0] | hooks[0]: "xdp" is not a hook | valid here: egress, forward, ingress, input, output, postrouting, prerouting`},
		{`{"hooks": ["input", "input"]}`, `422 invalid hooks[1] | hooks[1]: "input" stands there twice | leave one out`},
		{`{"hooks": ["ingress"]}`, `422 invalid hooks[0] | hooks[0]: "ingress" needs an interface | name one in interfaces, such as "eth0"`},
		{`{"hooks": ["ingress", "egress"], "interfaces": ["eth0"]}`, `taken`},
		{`{"snaplen": 33}`, `422 invalid snaplen | snaplen: 33 is out of range | write 0 for whole packets, or 34 to 262144`},
		{`{"snaplen": 262145}`, `422 invalid snaplen | snaplen: 262145 is out of range | write 0 for whole packets, or 34 to 262144`},
		{`{"snaplen": 0}`, `taken`},
		{`{"sample": 0}`, `422 invalid sample | sample: 0 is out of range | write 1 for every packet, or N for one in N, at most 1000000000`},
		{`{"sample": 1000000001}`, `422 invalid sample | sample: 1000000001 is out of range | write 1 for every packet, or N for one in N, at most 1000000000`},
		{`{"time_limit": 0}`, `422 invalid time_limit | time_limit: 0s is out of range | write more than 0 seconds, or leave it out for the box's default`},
		{`{"byte_limit": "1kb"}`, `422 invalid byte_limit | byte_limit: 1000 is out of range | at least 4096: a file's own headers must fit; or leave it out for the box's default`},
		{`{"packet_limit": 18446744073709551615}`, `422 invalid packet_limit | packet_limit: 18446744073709551615 is out of range | write 0 for none, or 1 to 9223372036854775807`},
		{`{"packet_limit": 0}`, `taken`},
		{`{"segment_size": 100}`, `422 invalid segment_size | segment_size: 100 is out of range | at least 65536, or leave it out for the default`},
		{`{"segment_time": 0.5}`, `422 invalid segment_time | segment_time: 500ms is out of range | write 0 for none, or at least 1 second`},
		{`{"ring": 10001}`, `422 invalid ring | ring: 10001 is out of range | write 0 to keep all segments, or 1 to 10000`},
		{`{"labels": {"a b": "c"}}`, `422 invalid labels.a b | labels: "a b" is not a label's key | 1 to 64 of a-z, A-Z, 0-9, dot, dash and underscore, beginning with a letter or digit`},
		{`{"labels": {"a": "x\ny"}}`, `422 invalid labels.a | labels.a: "x\ny" has a control character | write plain text`},
		{`{"labels": {"a": "` + strings.Repeat("x", 257) + `"}}`, `422 invalid labels.a | labels.a: the value is 257 bytes long | at most 256`},
		{`{"labels": {"ticket": "NET-1234 / ../x"}}`, `taken`},
		{`{"exclude": [{"source": "192.0.2.0/24"}]}`, `422 invalid exclude[0].source | exclude[0].source: "192.0.2.0/24" is not an address | write one IPv4 or IPv6 address, without a mask and without a zone`},
		{`{"exclude": [{"destination": "fe80::1%eth0"}]}`, `422 invalid exclude[0].destination | exclude[0].destination: "fe80::1%eth0" is not an address | write one IPv4 or IPv6 address, without a mask and without a zone`},
		{`{"exclude": [{"source_port": 22}]}`, `422 invalid exclude[0] | exclude[0]: it names no address | give source, destination or both: without them every packet would be excluded`},
		{`{"exclude": [{"source": "192.0.2.1", "destination": "2001:db8::1"}]}`, `422 invalid exclude[0] | exclude[0]: 192.0.2.1 and 2001:db8::1 are of different families | write two IPv4 or two IPv6 addresses`},
		{`{"exclude": [{"source": "::ffff:192.0.2.1", "destination": "192.0.2.2", "destination_port": 22}]}`, `taken`},
	} {
		var r wire.StartRequest
		if e := decodeJSON([]byte(c.body), &r); e != nil {
			t.Errorf("%s: %s", c.body, golden(e))
			continue
		}
		if got := golden(validateRequest(&r)); got != c.want {
			t.Errorf("%.200s\n got %s\nwant %s", c.body, got, c.want)
		}
	}
	many := func(n int) (out []string) {
		for i := range n {
			out = append(out, fmt.Sprintf("if%d", i))
		}
		return out
	}
	labels := map[string]string{}
	for _, name := range many(maxLabels + 1) {
		labels[name] = "x"
	}
	for want, r := range map[string]wire.StartRequest{
		`422 invalid interfaces | interfaces: these are 65 | at most 64; one with * at the end stands for many`: {Interfaces: many(65)},
		`422 invalid labels | labels: these are 33 | at most 32`:                                                {Labels: labels},
		`422 invalid exclude | exclude: these are 65 flows | at most 64`:                                        {Exclude: make([]wire.Flow, 65)},
	} {
		if got := golden(validateRequest(&r)); got != want {
			t.Errorf("got %s\nwant %s", got, want)
		}
	}
}
