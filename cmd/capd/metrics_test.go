package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"capd/ctl/wire"
	"capd/testbed"
)

// eventually polls for a minute.
func eventually(ok func() bool) bool {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return true
		}
	}
	return false
}

// samples reads a metrics page: values by name and labels as they stand there.
func samples(t *testing.T, page string) map[string]float64 {
	t.Helper()
	out := map[string]float64{}
	for line := range strings.Lines(page) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		i := strings.LastIndexByte(strings.TrimSuffix(line, "\n"), ' ')
		v, err := strconv.ParseFloat(strings.TrimSpace(line[i+1:]), 64)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		out[line[:i]] = v
	}
	return out
}

// promtool has Prometheus' own checker judge a page.
func promtool(t *testing.T, page string) {
	t.Helper()
	testbed.NeedCommand(t, "promtool")
	cmd := exec.Command("promtool", "check", "metrics")
	cmd.Stdin = strings.NewReader(page)
	if out, err := cmd.CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("promtool check metrics: %v\n%s\n%s", err, out, page)
	}
}

// TestMetrics follows captures and deliveries in the metrics: at the socket, in the file
// and at the TCP address, which capd itself does not hold.
func TestMetrics(t *testing.T) {
	sshd := testbed.NewSSHD(t)
	address := testbed.FreeAddress(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "capd.prom")
	d := testbed.StartDaemon(t, "", fmt.Sprintf("[daemon]\nmetrics_file = %q\nmetrics_listen = %q\n", file, address)+fmt.Sprintf(
		"[destination.soc]\ntype = \"sftp\"\naddress = %q\nuser = %q\nprivate_key = %q\nknown_hosts = %q\n[destination.down]\ntype = \"sftp\"\naddress = \"127.0.0.1:1\"\nuser = \"x\"\nprivate_key = %q\nknown_hosts = %q\n",
		sshd.Address, sshd.User, sshd.PrivateKey, sshd.KnownHosts, sshd.PrivateKey, sshd.KnownHosts))
	page := func() string {
		status, text := d.Call("GET", "/metrics", "")
		if status != 200 {
			t.Fatalf("GET /metrics: %d %s", status, text)
		}
		return text
	}

	delivered := d.Must("start", "-q", "-d", "soc", "-f", writeRequest(t))
	if v := samples(t, page()); v[`capd_captures{status="running"}`] != 1 || v["capd_ring_size_bytes"] == 0 {
		t.Errorf("while one runs: %v", v)
	}
	talkTo(t, 50)
	d.Must("stop", delivered)
	d.Await(delivered, "complete", isComplete)
	stuck := d.Must("start", "-q", "-d", "down", "--no-check", "-c", "10", "-f", writeRequest(t))
	talkTo(t, 20)
	d.Await(stuck, "at its limit", func(c wire.Capture) bool { return c.StopReason == wire.StopPacketLimit })
	if !eventually(func() bool {
		v := samples(t, page()) // what comes after the end of a capture: the ring is given back, the first try fails
		return v[`capd_delivery_failures_total{destination="down"}`] > 0 && v[`capd_delivery_pending_files{destination="down"}`] == 1 && v["capd_ring_size_bytes"] == 0
	}) {
		t.Error("a failed delivery is not counted, or the ring not given back")
	}
	text := page()
	promtool(t, text)
	got := samples(t, text)
	first, second := d.Show(delivered), d.Show(stuck)
	for name, want := range map[string]float64{
		`capd_captures{status="running"}`: 0, `capd_captures{status="complete"}`: 1, `capd_captures{status="delivering"}`: 1,
		`capd_captures_ended_total{reason="requested"}`:            1,
		`capd_captures_ended_total{reason="packet_limit"}`:         1,
		"capd_packets_seen_total":                                  70,
		"capd_packets_matched_total":                               70,
		"capd_packets_captured_total":                              60,
		"capd_packets_discarded_total":                             10,
		`capd_packets_lost_total{cause="sequence"}`:                0,
		"capd_captured_bytes_total":                                float64(first.Bytes.Captured + second.Bytes.Captured),
		"capd_file_bytes_total":                                    float64(first.Bytes.Written + second.Bytes.Written),
		"capd_batch_packets_sum":                                   70,
		`capd_batch_packets_bucket{le="512"}`:                      got["capd_batch_packets_count"],
		`capd_batch_packets_bucket{le="+Inf"}`:                     got["capd_batch_packets_count"],
		`capd_delivered_files_total{destination="soc"}`:            3, // with the manifest and its signature
		`capd_delivery_failures_total{destination="soc"}`:          0,
		`capd_delivery_pending_files{destination="down"}`:          1,
		`capd_delivery_pending_files{destination="soc"}`:           0,
		`capd_delivery_duration_seconds_count{destination="soc"}`:  3,
		`capd_delivery_duration_seconds_count{destination="down"}`: 0,
		"capd_ring_size_bytes":                                     0,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v, want %v", name, v, want)
		}
	}
	if got["capd_batch_packets_count"] < 1 || got["capd_batch_packets_count"] > 70 || got[`capd_delivery_attempts_total{destination="soc"}`] < 3 ||
		got[`capd_delivery_attempts_total{destination="down"}`] < 1 || got["capd_spool_size_bytes"] < 1 || got["capd_spool_used_bytes"] < 1 {
		t.Errorf("the page:\n%s", text)
	}

	// Counters do not go back when a capture is removed.
	d.Must("rm", "--force", delivered)
	if v := samples(t, page()); v["capd_packets_matched_total"] != 70 || v[`capd_captures{status="complete"}`] != 0 {
		t.Errorf("after rm: %v", v)
	}

	checkScrape(t, d, address)
	if !eventually(func() bool {
		text, err := os.ReadFile(file)
		return err == nil && samples(t, string(text))["capd_packets_matched_total"] == 70
	}) {
		t.Error("the file does not follow")
	}
	text2, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	promtool(t, string(text2))
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("the file: %v %v", info, err)
	}
	d.Stop()
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("after the end there are %v, %v", left, err)
	}
	if _, err := net.Dial("tcp", address); err == nil {
		t.Error("somebody listens after the end")
	}
}

// checkScrape scrapes over TCP: it is another process that answers, without rights and
// with nothing but the metrics, and one that ends is replaced.
func checkScrape(t *testing.T, d *testbed.Daemon, address string) {
	t.Helper()
	get := func(path string) (int, string) {
		resp, err := http.Get("http://" + address + path)
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}
	scraped := func() bool {
		status, text := get("/metrics")
		return status == 200 && samples(t, text)["capd_packets_matched_total"] == 70
	}
	if !eventually(scraped) {
		t.Fatalf("no scrape: %s", d.Log)
	}
	if status, text := get("/v1/status"); status != 404 {
		t.Errorf("another call over TCP: %d %s", status, text)
	}
	noInternetSockets(t, d)
	pid := metricsProcess(t, d.PID())
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("the metrics process lacks %q:\n%s", want, status)
		}
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if !eventually(scraped) {
		t.Errorf("a killed metrics process is not replaced: %s", d.Log)
	}
}

// metricsProcess finds the child of capd that listens.
func metricsProcess(t *testing.T, parent int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", parent, parent))
	list := string(text)
	if tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", parent)); err == nil {
		for _, task := range tasks {
			more, _ := os.ReadFile(task)
			list += " " + string(more)
		}
	}
	for _, field := range strings.Fields(list) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		if line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); regexp.MustCompile(`\x00metrics\x00`).Match(line) {
			return pid
		}
	}
	t.Fatalf("capd has no metrics process among its children %q", list)
	return 0
}

// TestMetricsProcess runs `capd metrics` as a unit of its own does: at capd's socket, as
// somebody who may view.
func TestMetricsProcess(t *testing.T) {
	testbed.NeedRoot(t)
	d := testbed.StartDaemon(t, testbed.NewNS(t), "")
	for _, c := range []struct {
		args string
		want string
	}{
		{"--help", "usage: capd metrics"},
		{"--bad", "-bad"},
		{"now", `unexpected argument "now"`},
		{"--config " + filepath.Join(d.Dir, "capd.toml"), "no address to listen at: set daemon.metrics_listen"},
		{"--listen 127.0.0.1 --socket " + d.Socket, "missing port in address"},
	} {
		var out bytes.Buffer
		cmd := exec.Command(filepath.Join(testbed.Build(t), "capd"), append([]string{"metrics"}, strings.Fields(c.args)...)...)
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); (err == nil) != (c.args == "--help") || !strings.Contains(out.String(), c.want) {
			t.Errorf("capd metrics %s: %v %s", c.args, err, &out)
		}
	}
	log := new(testbed.Buffer)
	cmd := exec.Command(filepath.Join(testbed.Build(t), "capd"), "metrics", "--listen", "127.0.0.1:0", "--socket", d.Socket)
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("its end: %v\n%s", err, log)
		}
	}()
	var address string
	if !eventually(func() bool {
		m := regexp.MustCompile(`address=(\S+)`).FindStringSubmatch(log.String())
		if m != nil {
			address = m[1]
		}
		return m != nil
	}) {
		t.Fatalf("it does not listen: %s", log)
	}
	for range 3 {
		resp, err := http.Get("http://" + address + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/plain; version=0.0.4; charset=utf-8" {
			t.Errorf("scrape: %v %d %s %s", err, resp.StatusCode, resp.Header.Get("Content-Type"), text)
		}
		promtool(t, string(text))
	}
	d.Stop()
	resp, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadGateway {
		t.Errorf("without capd: %d", resp.StatusCode)
	}
	d.Start() // and it goes on with the next
	if resp, err = http.Get("http://" + address + "/metrics"); err != nil || resp.StatusCode != 200 {
		t.Fatalf("with capd again: %v %v", resp, err)
	}
	resp.Body.Close()
}
