package daemon

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"capd/ctl"
	"capd/ctl/wire"
	"capd/daemon/config"
)

// What capctl explains without capd is what capd with its default settings explains.
func TestExplainIsOne(t *testing.T) {
	t.Setenv("SSH_CONNECTION", "")
	for _, body := range []string{
		`{}`,
		`{"type": "simple"}`,
		`{"type": "simple", "interfaces": ["eth0", "wg*"]}`,
		`{"filter_v1": {"source_address": "192.0.2.0/24", "protocol": 6}, "sample": 10, "sample_by": "flow", "snaplen": 96}`,
		`{"hooks": ["postrouting", "input"], "interfaces": ["eth*"], "name": "voip"}`,
		`{"interfaces": ["eth0"], "exclude": [{"source": "198.51.100.7", "source_port": 50022, "destination": "192.0.2.1", "destination_port": 22}]}`,
		`{"filter": "udp port 53 and not host 192.0.2.7"}`,
		`{"filter": "ip[2:2] > ip[8] and tcp", "sample": 7, "snaplen": 100}`,
		`{"filter": "vlan 5 and port 80", "interfaces": ["eth0"]}`,
		`{"filter": "ip6 and greater 100", "filter_v1": {"protocol": 17}, "hooks": ["ingress", "input"], "interfaces": ["eth0"]}`,
		`{"hooks": ["egress", "output"], "interfaces": ["eth0"], "filter_v1": {"destination_port": 53}}`,
	} {
		file := filepath.Join(t.TempDir(), "request.json")
		if err := os.WriteFile(file, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		var out, errs bytes.Buffer
		if exit := ctl.Main([]string{"explain", "--json", "-f", file}, nil, &out, &errs); exit != 0 {
			t.Fatalf("%s: exit %d: %s", body, exit, errs.String())
		}
		var local wire.Explain
		if err := json.Unmarshal(out.Bytes(), &local); err != nil {
			t.Fatal(err)
		}
		var req wire.StartRequest
		if err := json.Unmarshal([]byte(body), &req); err != nil {
			t.Fatal(err)
		}
		p, err := newPlan(req, config.Default(), &links{})
		if err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		remote, err := p.explain(config.Default())
		if err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		// What is in the kernel's way is looked for on the box.
		local.Warnings, remote.Warnings = nil, nil
		remote.Reader = nil // does not travel
		if !reflect.DeepEqual(local, remote) {
			t.Errorf("%s: capctl explains\n%+v\ncapd\n%+v", body, local, remote)
		}
	}
}
