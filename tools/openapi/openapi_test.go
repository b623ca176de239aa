// Package openapi holds the answers of a real capd against the description that it serves,
// by a validator that knows nothing of capd. It is a module of its own, so that capd does
// not depend on the validator.
package openapi

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"

	"capd/testbed"
)

func TestMain(m *testing.M) { os.Exit(testbed.Alone(m)) }

// described is a capd and its description.
type described struct {
	t *testing.T
	d *testbed.Daemon
	v validator.Validator
}

func start(t *testing.T, toml string) *described {
	t.Helper()
	testbed.NeedRoot(t)
	d := testbed.StartDaemon(t, "", toml)
	status, text := d.Call("GET", "/v1/openapi.json", "")
	if status != 200 {
		t.Fatalf("the description: %d %s", status, text)
	}
	document, err := libopenapi.NewDocument([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	v, errs := validator.NewValidator(document)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	if ok, problems := v.ValidateDocument(); !ok {
		for _, p := range problems {
			t.Errorf("it is no OpenAPI 3.1: %s %s", p.Message, p.Reason)
			for _, s := range p.SchemaValidationErrors {
				t.Errorf("  %s: %s", s.FieldPath, s.Reason)
			}
		}
	}
	return &described{t, d, v}
}

// call makes a call, holds the answer against the description (and the request, where it
// is to be a good one), and gives its body.
func (s *described) call(method, path, body string, status int) string {
	s.t.Helper()
	make := func() *http.Request {
		req, err := http.NewRequest(method, "http://capd"+path, strings.NewReader(body))
		if err != nil {
			s.t.Fatal(err)
		}
		if body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		return req
	}
	resp, err := s.d.HTTP().Do(make())
	if err != nil {
		s.t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		s.t.Fatal(err)
	}
	what := fmt.Sprintf("%s %s %s", method, path, body)
	if resp.StatusCode != status {
		s.t.Errorf("%s: %d %s, want %d", what, resp.StatusCode, text, status)
	}
	if status < 300 {
		if ok, problems := s.v.ValidateHttpRequest(make()); !ok {
			for _, p := range problems {
				s.t.Errorf("%s: the request is not as described: %s %s %v", what, p.Message, p.Reason, p.SchemaValidationErrors)
			}
		}
	}
	resp.Body = io.NopCloser(bytes.NewReader(text))
	if ok, problems := s.v.ValidateHttpResponse(make(), resp); !ok {
		for _, p := range problems {
			s.t.Errorf("%s: the answer is not as described: %s %s", what, p.Message, p.Reason)
			for _, e := range p.SchemaValidationErrors {
				s.t.Errorf("  %s: %s", e.FieldPath, e.Reason)
			}
		}
	}
	return string(text)
}

const talkPort = 47313

func talk(t *testing.T, count int) {
	t.Helper()
	testbed.TalkToLoopback(t, talkPort, "openapi", count, 200)
}

// TestAnswers goes through a capture's life, with everything that can be asked on the way.
func TestAnswers(t *testing.T) {
	sshd := testbed.NewSSHD(t)
	s := start(t, fmt.Sprintf("[destination.soc]\ntype = \"sftp\"\naddress = %q\nuser = %q\nprivate_key = %q\nknown_hosts = %q\n", sshd.Address, sshd.User, sshd.PrivateKey, sshd.KnownHosts))
	filter := fmt.Sprintf(`"filter_v1": {"destination_address": "127.0.0.1", "destination_port": %d, "protocol": 17}`, talkPort)

	s.call("GET", "/v1/captures", "", 200)
	s.call("GET", "/v1/destinations", "", 200)
	s.call("POST", "/v1/destinations/soc/check", "", 200)
	s.call("POST", "/v1/explain", `{`+filter+`, "snaplen": 96}`, 200)
	s.call("POST", "/v1/captures", `{"name": "one", `+filter+`, "byte_limit": "10mb", "time_limit": "5m", "labels": {"ticket": "N1"}, "destination": "soc"}`, 201)
	s.call("POST", "/v1/captures", `{"name": "two", `+filter+`, "type": "simple", "sample": 1, "time_limit": 60.5, "packet_limit": 5, "exclude": [{"source": "192.0.2.1", "source_port": 5}]}`, 201)
	s.call("GET", "/v1/captures/one", "", 200)
	s.call("GET", "/v1/status", "", 200)
	s.call("GET", "/v1/doctor", "", 200)
	s.call("GET", "/metrics", "", 200)
	talk(t, 20)
	s.call("POST", "/v1/captures/one/stop", "", 200)
	s.call("POST", "/v1/captures/two/stop", "", 200)
	for deadline := time.Now().Add(3 * time.Minute); s.d.Show("one").Status != "complete" && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond)
	}
	one := s.call("GET", "/v1/captures/one", "", 200)
	if !strings.Contains(one, `"status":"complete"`) || !strings.Contains(one, `"verified":"readback"`) || !strings.Contains(one, `"actions":[{`) {
		t.Errorf("the delivered capture: %s", one)
	}
	s.call("GET", "/v1/captures?all=true", "", 200)
	s.call("GET", "/v1/captures/two/files/"+s.d.Show("two").Files[0].Name, "", 200)
	s.call("POST", "/v1/captures/one/retry", "", 200)
	s.call("DELETE", "/v1/captures/two?force=true", "", 204)

	for _, c := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "/v1/captures/two", "", 404}, {"GET", "/v1/captures/one/files/x", "", 404}, {"POST", "/v1/captures/two/retry", "", 404}, {"DELETE", "/v1/captures/two", "", 404},
		{"POST", "/v1/captures", "{", 400}, {"POST", "/v1/captures", `{"snaplen": 5}`, 422}, {"POST", "/v1/captures", `{"nmae": "x"}`, 422}, {"POST", "/v1/captures", `{"destination": "none"}`, 422},
		{"POST", "/v1/explain", `{"filter": "por 53"}`, 422}, {"POST", "/v1/destinations/none/check", "", 404}, {"GET", "/v1/captures/one/stream", "", 409}, {"POST", "/v1/stream", `{"destination": "soc"}`, 422},
		{"GET", "/v1/events?x=y", "", 422},
	} {
		s.call(c.method, c.path, c.body, c.status)
	}
}
