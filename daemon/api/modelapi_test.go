package api

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"capd/ctl/wire"
)

func modelFake(t *testing.T) *fakeDaemon {
	limit, bytes := wire.Seconds(300e9), wire.Size(10e6)
	at := wire.Time{Time: time.Date(2026, 11, 23, 10, 0, 0, 5, time.UTC)}
	request := wire.StartRequest{Type: wire.TypeFull, Format: wire.FormatPcap, TimeLimit: &limit, ByteLimit: &bytes,
		FilterV1: &wire.FilterV1{SourceAddress: "192.0.2.0/24", DestinationPort: 53, Protocol: "UDP"}, Destination: "evidence", Name: "full"}
	full := wire.Capture{ID: testID, Host: "edge-1", Status: wire.StatusComplete, StartRequest: request, Submitted: at, Stopped: &at, StopReason: wire.StopRequested,
		Packets: wire.Packets{Captured: 7}, Files: []wire.File{{Name: "0001.pcap"}, {Name: "0002.pcap"}, {Name: "0003.pcap"}, {Name: "manifest.json"}}}
	simple := full
	simple.ID, simple.Name, simple.Type, simple.Destination = strings.Repeat("1", 32), "simple", wire.TypeSimple, ""
	failed := full
	failed.ID, failed.Name, failed.Status, failed.StopReason, failed.Error, failed.FilterV1 = strings.Repeat("2", 32), "failed", wire.StatusFailed, wire.StopError, &wire.Problem{Message: "no space"}, nil
	failed.Files = nil
	running := full
	running.ID, running.Name, running.Status = strings.Repeat("3", 32), "running", wire.StatusRunning
	other := full
	other.ID, other.Name, other.Format, other.Destination = strings.Repeat("4", 32), "other", wire.FormatPcapng, "soc"
	d := &fakeDaemon{dir: t.TempDir(), captures: []wire.Capture{full, simple, failed, running, other}}
	header := strings.Repeat("H", pcapHeader)
	for name, text := range map[string]string{"0001.pcap": header + "one", "0002.pcap": header + "two", "0003.pcap": header} {
		if err := os.WriteFile(filepath.Join(d.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// TestModelAnswers holds each answer of the model API to the letter: a field too many
// makes its SDKs take a full capture for a simple one.
func TestModelAnswers(t *testing.T) {
	s := serve(t, modelFake(t), Access{})
	const pcaps = "/client/v4/accounts/023e105f4ecef8ad9ca31a8372d0c353/pcaps"
	ok := func(result string) string {
		return `{"success":true,"errors":[],"messages":[],"result":` + result + `}`
	}
	refused := func(code int, message string) string {
		return fmt.Sprintf(`{"success":false,"errors":[{"code":%d,"message":"%s"}],"messages":[],"result":null}`, code, message)
	}
	owned := func(conf, status, validated string) string {
		return `{"id":"` + testID + `","destination_conf":"` + conf + `","filename":"f.txt","status":"` + status + `","submitted":"0001-01-01T00:00:00.000000000Z","validated":"` + validated + `"}`
	}
	const fullTail = `"byte_limit":10000000,"colo_name":"edge-1","destination_conf":"s3://captures/box?region=eu-central-1","error_message":"","packets_captured":7`
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", pcaps + "/full", "", 200, ok(`{"id":"` + testID + `","filter_v1":{"source_address":"192.0.2.0/24","destination_port":53,"protocol":17},"status":"success","submitted":"2026-11-23T10:00:00.000000005Z","system":"magic-transit","time_limit":300,"type":"full",` + fullTail + `,"stop_requested":"2026-11-23T10:00:00.000000005Z"}`)},
		{"GET", pcaps + "/simple", "", 200, ok(`{"id":"11111111111111111111111111111111","filter_v1":{"source_address":"192.0.2.0/24","destination_port":53,"protocol":17},"status":"success","submitted":"2026-11-23T10:00:00.000000005Z","system":"magic-transit","time_limit":300,"type":"simple"}`)},
		{"GET", pcaps + "/failed", "", 200, ok(`{"id":"22222222222222222222222222222222","filter_v1":{},"status":"failed","submitted":"2026-11-23T10:00:00.000000005Z","system":"magic-transit","time_limit":300,"type":"full","byte_limit":10000000,"colo_name":"edge-1","destination_conf":"s3://captures/box?region=eu-central-1","error_message":"no space","packets_captured":7}`)},
		{"GET", pcaps + "/nope", "", 404, refused(1404, `no capture is called \"nope\"`)},
		{"PUT", pcaps + "/full/stop", "", 204, ""},
		{"PUT", pcaps + "/nope/stop", "", 404, refused(1404, `no capture is called \"nope\"`)},
		{"POST", pcaps + "/full/stop", "", 405, refused(1405, `\"`+(pcaps + "/full/stop")[:60]+` ...\" does not take \"POST\" (it takes PUT)`)},
		{"GET", "/client/v4/accounts/x/zones", "", 404, refused(1404, `there is no \"/client/v4/accounts/x/zones\" here (paths begin with /v1/captures, /v1/destinations, /v1/explain, /v1/status)`)},
		{"GET", pcaps + "/full/download", "", 200, strings.Repeat("H", pcapHeader) + "onetwo"},
		{"GET", pcaps + "/other/download", "", 404, refused(1404, `the capture is in the format pcapng, not pcap (capctl download fetches it)`)},
		{"GET", pcaps + "/running/download", "", 409, refused(1409, `the capture is still running (stop it, or wait for its end)`)},
		{"GET", pcaps + "/failed/download", "", 404, refused(1404, `the capture has no file \"22222222222222222222222222222222.pcap\" here (capctl show names the files and says where they went)`)},
		{"POST", pcaps, `{"name": "x"}`, 422, refused(1422, `unknown field \"name\" (valid here: byte_limit, colo_name, destination_conf, filter_v1, offset_time, packet_limit, system, time_limit, type)`)},
		{"POST", pcaps, `{"type": "half"}`, 422, refused(1422, `type: \"half\" is unknown (write full, simple)`)},
		{"POST", pcaps, `{"type": "simple", "offset_time": "2020-01-01T00:00:00Z"}`, 422, refused(1422, `offset_time: capd keeps nothing of the time before a request (\"2020-01-01T00:00:00Z\") (leave it out; a ring capture started beforehand keeps the past)`)},
		{"POST", pcaps, `{"destination_conf": "s3://nowhere"}`, 422, refused(1422, `destination_conf: \"s3://nowhere\" fits no destination of this box (this box has sftp://soc, s3://captures/box?region=eu-central-1, s3://twins/a, s3://twins/b)`)},
		{"POST", pcaps, `{"destination_conf": "s3://twins"}`, 422, refused(1422, `destination_conf: \"s3://twins\" fits the destinations twin-a and twin-b (name the folder, too: sftp://soc, s3://captures/box?region=eu-central-1, s3://twins/a, s3://twins/b)`)},
		{"POST", pcaps, `{"destination_conf": "s3://captures/dir"}`, 422, refused(1422, `destination_conf: \"s3://captures/dir\" fits no destination of this box (this box has sftp://soc, s3://captures/box?region=eu-central-1, s3://twins/a, s3://twins/b)`)},
		{"POST", pcaps, `{"destination_conf": "s3://captures?region=auto"}`, 422, refused(1422, `destination_conf: \"s3://captures?region=auto\" fits no destination of this box (this box has sftp://soc, s3://captures/box?region=eu-central-1, s3://twins/a, s3://twins/b)`)},
		{"POST", pcaps, `{"destination_conf": "s3://captures?acl=x"}`, 422, refused(1422, `destination_conf: \"s3://captures?acl=x\" is not a destination: unknown parameter acl (after ? only region=REGION can stand, and for s3 alone)`)},
		{"POST", pcaps, `{"time_limit": 301}`, 422, refused(1422, `time_limit: 5m1s is out of range (write 1 to 300 seconds, or start it by POST /v1/captures)`)},
		{"POST", pcaps, `{"packet_limit": 10001}`, 422, refused(1422, `packet_limit: 10001 is out of range (write 1 to 10000, or start it by POST /v1/captures)`)},
		{"POST", pcaps, `{"packet_limit": 0}`, 422, refused(1422, `packet_limit: 0 is out of range (write 1 to 10000, or start it by POST /v1/captures)`)},
		{"POST", pcaps, `{"byte_limit": "2gb"}`, 422, refused(1422, `byte_limit: 2000000000 is out of range (write at most 1000000000, or start it by POST /v1/captures)`)},
		{"POST", pcaps + "/ownership", `{"destination_conf": "s3://twins/b"}`, 200, ok(owned("s3://twins/b", "pending", ""))},
		{"POST", pcaps + "/ownership", ``, 422, refused(1422, `destination_conf is missing (write s3://BUCKET/FOLDER or sftp://PROFILE)`)},
		{"GET", pcaps + "/ownership", ``, 200, ok("[" + owned("s3://captures/box?region=eu-central-1", "pending", "") + "]")},
		{"POST", pcaps + "/ownership/validate", `{"destination_conf": "sftp://soc", "ownership_challenge": "abc"}`, 200, ok(owned("sftp://soc", "success", "1970-01-01T00:00:00.000000000Z"))},
		{"POST", pcaps + "/ownership/validate", `{"destination_conf": "sftp://soc"}`, 422, refused(1422, `ownership_challenge is missing (send the contents of the challenge file)`)},
		{"DELETE", pcaps + "/ownership/" + testID, ``, 204, ""},
		{"POST", pcaps, `{"destination_conf": "gs://captures"}`, 422, refused(1422, `destination_conf: \"gs://captures\" is not a destination (write s3://BUCKET/FOLDER?region=REGION or sftp://PROFILE/FOLDER)`)},
		{"POST", pcaps, `{"type": "full", "system": "magic-transit", "colo_name": "ORD", "time_limit": 10, "destination_conf": "s3://captures?region=eu-central-1"}`, 200, ok(`{"id":"` + testID + `","filter_v1":{},"status":"running","submitted":"0001-01-01T00:00:00.000000000Z","system":"magic-transit","time_limit":10,"type":"full","byte_limit":0,"colo_name":"edge-1","destination_conf":"s3://captures/box?region=eu-central-1","error_message":"","packets_captured":0}`)},
		{"POST", pcaps, `{"destination_conf": "sftp://soc"}`, 200, ok(`{"id":"` + testID + `","filter_v1":{},"status":"running","submitted":"0001-01-01T00:00:00.000000000Z","system":"magic-transit","time_limit":0,"type":"full","byte_limit":0,"colo_name":"edge-1","destination_conf":"sftp://soc","error_message":"","packets_captured":0}`)},
	} {
		resp, body := s.do(c.method, c.path, c.body)
		if resp.StatusCode != c.status || body != c.want {
			t.Errorf("%s %s %s\n got %d %s\nwant %d %s", c.method, c.path, c.body, resp.StatusCode, body, c.status, c.want)
		}
		if retry := resp.Header.Get("X-Should-Retry"); (retry == "false") != (c.status >= 400) {
			t.Errorf("%s %s: X-Should-Retry %q", c.method, c.path, retry)
		}
		if strings.HasPrefix(body, "{") && resp.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s: content type %q", c.method, c.path, resp.Header.Get("Content-Type"))
		}
	}
	resp, _ := s.do("GET", pcaps+"/full/download", "")
	if got := resp.Header.Get("Content-Type"); got != "application/vnd.tcpdump.pcap" {
		t.Errorf("download: %q", got)
	}
	_, body := s.do("GET", pcaps, "")
	envelope := keys(t, body)
	if got := slices.Sorted(maps.Keys(envelope)); !slices.Equal(got, []string{"errors", "messages", "result", "success"}) {
		t.Errorf("the list's envelope has %v", got)
	}
	if n := strings.Count(string(envelope["result"]), `"id":`); n != 5 {
		t.Errorf("the list has %d captures", n)
	}
}

func TestModelStatus(t *testing.T) {
	known := []string{"unknown", "success", "pending", "running", "conversion_pending", "conversion_running", "complete", "failed"}
	for _, status := range []string{wire.StatusPending, wire.StatusRunning, wire.StatusDelivering, wire.StatusComplete, wire.StatusFailed, "new"} {
		if got := modelStatus(status); !slices.Contains(known, got) {
			t.Errorf("%s is shown as %q, which no SDK knows", status, got)
		}
	}
}
