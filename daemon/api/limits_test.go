package api

import (
	"net/http"
	"reflect"
	"strings"
	"testing"

	"capd/ctl/wire"
	"capd/testbed"
)

// TestLimits goes through what a group's limits do to a request.
func TestLimits(t *testing.T) {
	all := Limits{Destinations: []string{"soc", "evidence"}, Interfaces: []string{"eth1", "wan*"}, MaxSnaplen: 96, MaxTimeLimit: 60e9, DefaultTimeLimit: 300e9,
		RequireLabels: []string{"ticket"}, Sealed: []string{"evidence", "vault"}}
	good := func(change func(*wire.StartRequest)) wire.StartRequest {
		r := wire.StartRequest{Destination: "evidence", Interfaces: []string{"eth1"}, Labels: map[string]string{"ticket": "NET-1"}}
		change(&r)
		return r
	}
	n := func(v uint32) *uint32 { return &v }
	sec := func(v wire.Seconds) *wire.Seconds { return &v }
	for _, c := range []struct {
		limits  Limits
		request wire.StartRequest
		snaplen uint32 // in force; 0 = as asked
		time    wire.Seconds
		field   string // of the refusal; "" = taken
		message string
	}{
		{limits: all, request: good(func(*wire.StartRequest) {}), snaplen: 96, time: 60e9},
		{limits: all, request: good(func(r *wire.StartRequest) { r.Snaplen, r.TimeLimit = n(64), sec(5e9) }), snaplen: 64, time: 5e9},
		{limits: all, request: good(func(r *wire.StartRequest) { r.Interfaces = []string{"wan0", "wan*", "wan1*"} }), snaplen: 96, time: 60e9},
		{limits: all, request: good(func(r *wire.StartRequest) { r.Labels = nil }), field: "labels.ticket", message: "labels.ticket: captures of the group noc carry this label"},
		{limits: all, request: good(func(r *wire.StartRequest) { r.Labels = map[string]string{"ticket": ""} }), field: "labels.ticket", message: "labels.ticket: captures of the group noc carry this label"},
		{limits: all, request: good(func(r *wire.StartRequest) { r.Destination = "vault" }), field: "destination", message: `destination: the group noc may not deliver to "vault"`},
		{limits: all, request: good(func(r *wire.StartRequest) { r.Destination = "soc" }), field: "destination", message: `destination: captures of the group noc are sealed, and "soc" does not seal`},
		{limits: all, request: good(func(r *wire.StartRequest) { r.Destination = "" }), field: "destination", message: "destination: captures of the group noc are sealed, so they name a destination that seals"},
		{limits: all, request: good(func(r *wire.StartRequest) { r.Interfaces = nil }), field: "interfaces", message: "interfaces: captures of the group noc name their interfaces"},
		{limits: all, request: good(func(r *wire.StartRequest) { r.Interfaces = []string{"eth1", "eth*"} }), field: "interfaces[1]", message: `interfaces[1]: the group noc may not capture at "eth*"`},
		{limits: all, request: good(func(r *wire.StartRequest) { r.Interfaces = []string{"w*"} }), field: "interfaces[0]", message: `interfaces[0]: the group noc may not capture at "w*"`},
		{limits: all, request: good(func(r *wire.StartRequest) { r.Snaplen = n(0) }), field: "snaplen", message: "snaplen: 0 is more than the group noc may keep of a packet, which is 96 bytes"},
		{limits: all, request: good(func(r *wire.StartRequest) { r.Snaplen = n(97) }), field: "snaplen", message: "snaplen: 97 is more than the group noc may keep of a packet, which is 96 bytes"},
		{limits: all, request: good(func(r *wire.StartRequest) { r.TimeLimit = sec(61e9) }), field: "time_limit", message: "time_limit: 1m1s is longer than captures of the group noc may run, which is 1m"},
		{limits: Limits{}, request: wire.StartRequest{}},
		{limits: Limits{Destinations: []string{"soc"}}, request: wire.StartRequest{}}, // stays on the box
		{limits: Limits{Destinations: []string{}}, request: wire.StartRequest{Destination: "soc"}, field: "destination", message: `destination: the group noc may not deliver to "soc"`},
		{limits: Limits{MaxSnaplen: 160, SimpleSnaplen: 160}, request: wire.StartRequest{Type: wire.TypeSimple}}, // its default is within
		{limits: Limits{MaxSnaplen: 100, SimpleSnaplen: 160}, request: wire.StartRequest{Type: wire.TypeSimple}, snaplen: 100},
		{limits: Limits{MaxTimeLimit: 3600e9, DefaultTimeLimit: 300e9}, request: wire.StartRequest{}, time: 300e9},
		{limits: Limits{Interfaces: []string{"*"}}, request: wire.StartRequest{Interfaces: []string{"eth*", "lo"}}},
		{limits: Limits{Interfaces: []string{}}, request: wire.StartRequest{Interfaces: []string{"lo"}}, field: "interfaces[0]", message: `interfaces[0]: the group noc may not capture at "lo"`},
	} {
		request := c.request
		e := grant{held: []heldRole{{"noc", c.limits}}}.fit(&request)
		switch {
		case c.field == "" && e != nil:
			t.Errorf("%+v: %+v", c.request, e)
		case c.field != "" && (e == nil || e.Field != c.field || e.Message != c.message || e.Status != http.StatusForbidden || e.Code != wire.CodeForbidden):
			t.Errorf("%+v: %+v, want %s %s", c.request, e, c.field, c.message)
		case c.field != "" && !reflect.DeepEqual(request, c.request):
			t.Errorf("a refused request was changed: %+v", request)
		}
		if c.field != "" || e != nil {
			continue
		}
		if c.snaplen != 0 && (request.Snaplen == nil || *request.Snaplen != c.snaplen) || c.snaplen == 0 && request.Snaplen != nil {
			t.Errorf("%+v: snaplen %v, want %d", c.request, request.Snaplen, c.snaplen)
		}
		if c.time != 0 && (request.TimeLimit == nil || *request.TimeLimit != c.time) || c.time == 0 && request.TimeLimit != nil {
			t.Errorf("%+v: time limit %v, want %s", c.request, request.TimeLimit, c.time)
		}
		control := c.request
		if e := (grant{all: true}).fit(&control); e != nil || !reflect.DeepEqual(control, c.request) {
			t.Errorf("the control group is held to limits: %+v %+v", e, control)
		}
	}

	two := grant{held: []heldRole{{"noc", Limits{Destinations: []string{"soc"}}}, {"voip", Limits{Interfaces: []string{"eth5"}}}}}
	for _, r := range []wire.StartRequest{{Destination: "soc"}, {Destination: "vault", Interfaces: []string{"eth5"}}} {
		if e := two.fit(&r); e != nil {
			t.Errorf("one group of two is enough: %+v", e)
		}
	}
	r := wire.StartRequest{Destination: "vault", Interfaces: []string{"eth0"}}
	if e := two.fit(&r); e == nil || !strings.Contains(e.Message, `the group noc may not deliver to "vault"; interfaces[0]: the group voip may not capture at "eth0"`) {
		t.Errorf("no group takes it: %+v", e)
	}
}

// TestLimitedGroup has processes of a group with limits call: they may start what fits,
// see everything that holds no packets, and have their own captures only.
func TestLimitedGroup(t *testing.T) {
	testbed.NeedRoot(t)
	program := caller(t)
	d := fakeWithFiles(t)
	theirs := d.captures[0]
	mine := theirs
	mine.ID, mine.Name, mine.RequestedBy = strings.Repeat("a", 32), "mine", wire.Requester{UID: 65534, User: "nobody"}
	theirs.RequestedBy = wire.Requester{UID: 0, User: "root"}
	d.captures = []wire.Capture{theirs, mine}
	s := serve(t, d, Access{ControlGroup: "adm", ViewGroup: "mail", Groups: map[string]Limits{
		"users": {Destinations: []string{"soc"}, MaxSnaplen: 96},
		"games": {RequireLabels: []string{"ticket"}},
	}})
	users := gid(t, "users")
	limited := someone{uid: 65534, gid: 65534, groups: []uint32{users}}
	const model = "/client/v4/accounts/a/pcaps/"
	for _, c := range []struct {
		who    someone
		call   string
		status int
		want   string // in the answer
	}{
		{limited, "GET /v1/captures", 200, theirs.ID},
		{limited, "GET /v1/captures/voip", 200, theirs.ID},
		{limited, "GET /v1/destinations", 200, "soc"},
		{limited, "POST /v1/captures", 201, `"snaplen":96`},
		{limited, "POST " + strings.TrimSuffix(model, "/"), 200, testID},
		{limited, "POST /v1/captures/mine/stop", 200, mine.ID},
		{limited, "POST /v1/captures/mine/retry", 200, mine.ID},
		{limited, "GET /v1/captures/mine/files/0001.pcapng", 200, "packets"},
		{limited, "DELETE /v1/captures/mine", 204, ""},
		{limited, "DELETE /v1/captures/mine?force=true", 403, "may not remove what is not delivered"},
		{limited, "PUT " + model + "mine/stop", 204, ""},
		{limited, "POST /v1/destinations/soc/check", 200, `"ok":true`},
		{limited, "POST /v1/destinations/evidence/check", 403, `the group users may not deliver to \"evidence\"`},
		{limited, "POST /v1/captures/voip/stop", 403, `user nobody (uid 65534) may not stop captures of others","hint":"this one was started by root"`},
		{limited, "POST /v1/captures/voip/retry", 403, "of others"},
		{limited, "GET /v1/captures/voip/files/0001.pcapng", 403, "may not read packets of others"},
		{limited, "DELETE /v1/captures/voip", 403, "of others"},
		{limited, "PUT " + model + "voip/stop", 403, "of others"},
		{limited, "GET " + model + "voip/download", 403, "of others"},
		{limited, "POST /v1/captures/nope/stop", 404, "no capture is called"},
		// The control group wins over limits; the view group alone gives no capture of one's own.
		{someone{uid: 65534, gid: 65534, groups: []uint32{users, gid(t, "adm")}}, "POST /v1/captures/voip/stop", 200, theirs.ID},
		{someone{uid: 65534, gid: 65534, groups: []uint32{gid(t, "mail")}}, "POST /v1/captures/mine/stop", 403, "that takes root or the group adm"},
		{someone{uid: 65534, gid: 65534, groups: []uint32{gid(t, "games")}}, "POST /v1/captures", 403, `"field":"labels.ticket"`},
	} {
		method, path, _ := strings.Cut(c.call, " ")
		if status, body := s.doAs(program, c.who, method, path); status != c.status || !strings.Contains(body, c.want) {
			t.Errorf("%s: %d %s, want %d %s", c.call, status, body, c.status, c.want)
		}
	}
	if req, by := d.lastRequest(); req.Snaplen == nil || *req.Snaplen != 96 || by.UID != 65534 {
		t.Errorf("the request as started: %+v by %+v", req, by)
	}
	if lines := s.journal.lines("action=download result=forbidden"); len(lines) != 2 || !strings.Contains(lines[0], "uid=65534 user=nobody") {
		t.Errorf("refused downloads in the journal: %q", lines)
	}
}
