package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"capd/testbed"
)

// dashboard is what a test looks at of a Grafana dashboard.
type dashboard struct {
	Title, UID    string
	SchemaVersion int
	Templating    struct {
		List []struct{ Name, Type string }
	}
	Panels []struct {
		ID      int
		Title   string
		Type    string
		GridPos struct{ X, Y, W, H int }
		Targets []struct{ Expr, RefID string }
	}
}

// TestGrafana holds the dashboard and the alert rules against Prometheus' own checkers,
// and every metric that they name against those that capd gives.
func TestGrafana(t *testing.T) {
	testbed.NeedCommand(t, "promtool")
	folder := filepath.Join(testbed.RepositoryRoot(t), "contrib", "grafana")
	for _, args := range [][]string{{"check", "rules", "alerts.yml"}, {"test", "rules", "alerts_test.yml"}} {
		cmd := exec.Command("promtool", args...)
		cmd.Dir = folder
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	text, err := os.ReadFile(filepath.Join(folder, "dashboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	if d.Title == "" || d.UID == "" || d.SchemaVersion < 39 || len(d.Templating.List) != 2 || len(d.Panels) < 15 {
		t.Errorf("the dashboard: %q %q schema %d, %d variables, %d panels", d.Title, d.UID, d.SchemaVersion, len(d.Templating.List), len(d.Panels))
	}
	expressions := "groups:\n- name: dashboard\n  rules:\n"
	taken, ids := map[[2]int]string{}, map[int]bool{}
	for _, p := range d.Panels {
		if ids[p.ID] || p.Title == "" || len(p.Targets) == 0 {
			t.Errorf("panel %d %q has its id twice, no title or no query", p.ID, p.Title)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("panel %q lies over %q, or outside", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		for i, target := range p.Targets {
			expr := strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*").Replace(target.Expr)
			quoted, err := json.Marshal(expr)
			if err != nil || strings.Contains(expr, "$") {
				t.Errorf("panel %q: %s %v", p.Title, expr, err)
			}
			expressions += fmt.Sprintf("  - record: panel:%d_%d\n    expr: %s\n", p.ID, i, quoted)
		}
	}
	rules := filepath.Join(t.TempDir(), "rules.yml")
	if err := os.WriteFile(rules, []byte(expressions), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("promtool", "check", "rules", rules).CombinedOutput(); err != nil {
		t.Errorf("the dashboard's queries: %v\n%s", err, out)
	}

	daemon := testbed.StartDaemon(t, testbed.NewNS(t), "[destination.soc]\ntype = \"sftp\"\naddress = \"192.0.2.1\"\nuser = \"x\"\nprivate_key = \"/none\"\nhost_key = \"SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\"\n")
	_, page := daemon.Call("GET", "/metrics", "")
	alerts, err := os.ReadFile(filepath.Join(folder, "alerts.yml"))
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for _, name := range regexp.MustCompile(`\b(capd|process)_[a-z_]+\b`).FindAllString(expressions+string(alerts), -1) {
		named[name] = true
		if !regexp.MustCompile(`(?m)^` + name + `[{ ]`).MatchString(page) {
			t.Errorf("%s is no metric of capd's", name)
		}
	}
	if len(named) < 20 {
		t.Errorf("only %d metrics are named: %v", len(named), named)
	}
}
