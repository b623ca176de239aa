package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"capd/ctl/client"
	"capd/ctl/wire"
	"capd/testbed"
)

// capd is a daemon in the bed.
type capd struct {
	b      *bed
	cmd    *exec.Cmd
	log    *os.File
	bin    string // folder of capd and capctl
	socket string
	client *client.Client
	ring   int64 // bytes
}

// startCapd starts capd on a CPU, without its rate guard. groups is [ring] groups: "auto"
// or a number; more is added to the configuration.
func startCapd(b *bed, cpu int, groups string, more ...string) (*capd, error) {
	return startLimitedCapd(b, cpu, groups, "max_packet_rate = 0\n", more...)
}

// startLimitedCapd is startCapd with limits, which are added to those of its disk.
func startLimitedCapd(b *bed, cpu int, groups, limits string, more ...string) (*capd, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	state, err := os.MkdirTemp(b.dir, "state-")
	if err != nil {
		return nil, err
	}
	if groups == "auto" {
		groups = `"auto"`
	}
	d := &capd{b: b, bin: filepath.Dir(exe), socket: filepath.Join(state, "capd.sock")}
	d.client = &client.Client{Socket: d.socket}
	toml := filepath.Join(state, "capd.toml")
	text := fmt.Sprintf("[daemon]\nsocket = %q\nstate_dir = %q\n[limits]\n%sspool_size = \"50gb\"\nmin_free_space = \"1%%\"\n[ring]\ngroups = %s\n", d.socket, state, limits, groups) + strings.Join(more, "")
	if err := os.WriteFile(toml, []byte(text), 0o600); err != nil {
		return nil, err
	}
	if d.log, err = os.Create(filepath.Join(state, "log")); err != nil {
		return nil, err
	}
	d.cmd = exec.Command(filepath.Join(d.bin, "capd"), "--config", toml)
	d.cmd.Stderr = d.log
	if err := b.start(d.cmd, cpu); err != nil {
		return nil, errors.Join(err, d.log.Close())
	}
	err = await("capd", 10*time.Second, func() (bool, error) {
		st, err := d.client.Status(context.Background())
		d.ring = int64(st.Limits.RingSize)
		return err == nil, nil
	})
	if err != nil {
		err = fmt.Errorf("%w; it said: %s", err, readAll(d.log.Name()))
		d.stop()
		return nil, err
	}
	return d, nil
}

// stop ends the daemon and deletes its state.
func (d *capd) stop() {
	d.client.Close()
	d.b.end(d.cmd, syscall.SIGTERM)
	_ = d.log.Close()
	_ = os.RemoveAll(filepath.Dir(d.log.Name()))
}

// ctl runs capctl and gives its stdout, and how long it took from the fork to its end.
func (d *capd) ctl(args ...string) (string, time.Duration, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(filepath.Join(d.bin, "capctl"), append([]string{"--socket", d.socket}, args...)...)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "SSH_CONNECTION=") })
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	start := time.Now()
	err := cmd.Run()
	took := time.Since(start)
	if err != nil {
		return "", took, fmt.Errorf("capctl %s: %w: %s; capd said: %s", strings.Join(args, " "), err, stderr.String(), readAll(d.log.Name()))
	}
	return strings.TrimSpace(stdout.String()), took, nil
}

// begin starts a capture of UDP to a port and gives its id.
func (d *capd) begin(port int, flags ...string) (string, time.Duration, error) {
	name := filepath.Join(d.b.dir, "request.json")
	request := fmt.Sprintf(`{"filter_v1": {"protocol": 17, "destination_port": %d}, "byte_limit": "50gb", "time_limit": 3600}`, port)
	if err := os.WriteFile(name, []byte(request), 0o600); err != nil {
		return "", 0, err
	}
	return d.ctl(append([]string{"start", "-q", "-f", name}, flags...)...)
}

// finish stops a capture and gives it as it then is.
func (d *capd) finish(id string) (wire.Capture, time.Duration, error) {
	var c wire.Capture
	out, took, err := d.ctl("stop", "--json", id)
	if err != nil {
		return c, took, err
	}
	if strings.HasPrefix(out, "[") { // stop takes several captures
		var list []wire.Capture
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			return c, took, err
		}
		return list[0], took, nil
	}
	return c, took, json.Unmarshal([]byte(out), &c)
}

// completed waits for a stopped capture's files to be hashed and gives it.
func (d *capd) completed(id string) (c wire.Capture, err error) {
	err = await("the capture's completion", 5*time.Minute, func() (bool, error) {
		c, err = d.client.Get(context.Background(), id)
		return c.Status == wire.StatusComplete || c.Status == wire.StatusFailed, err
	})
	return c, err
}

// processes are capd and its children (the delivery process).
func (d *capd) processes() []int {
	pid := d.cmd.Process.Pid
	all := []int{pid}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, t := range tasks {
		for _, f := range strings.Fields(readAll(t)) {
			if n, err := strconv.Atoi(f); err == nil {
				all = append(all, n)
			}
		}
	}
	return all
}

// usage is CPU time of capd and its children so far.
type usage struct {
	total   time.Duration
	user    float64 // share of total
	threads map[string]time.Duration
}

func (d *capd) usage() (usage, error) {
	u := usage{threads: make(map[string]time.Duration)}
	var user, system float64
	for _, pid := range d.processes() {
		t, err := cpuTime(pid)
		if err != nil {
			return u, err
		}
		u.total += t
		_, after, _ := strings.Cut(readAll(fmt.Sprintf("/proc/%d/stat", pid)), ") ")
		if f := strings.Fields(after); len(f) > 12 { // fields 14 and 15 of proc(5), in ticks
			a, _ := strconv.ParseFloat(f[11], 64)
			b, _ := strconv.ParseFloat(f[12], 64)
			user, system = user+a, system+b
		}
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		for _, name := range tasks {
			if f := strings.Fields(readAll(name)); len(f) > 0 {
				ns, _ := strconv.ParseInt(f[0], 10, 64)
				u.threads[name] = time.Duration(ns)
			}
		}
	}
	u.user = user
	if user+system > 0 {
		u.user = user / (user + system)
	}
	return u, nil
}

// busiest is the CPU time that the busiest thread used since an earlier look.
func (u usage) busiest(since usage) time.Duration {
	var most time.Duration
	for name, t := range u.threads {
		most = max(most, t-since.threads[name])
	}
	return most
}

// flood measures one flood of frames, captured from capctl start to capctl stop.
func (d *capd) flood(frames, length int, cpus []int, flags ...string) (s sample, err error) {
	s = sample{Reader: strings.Join(append([]string{"capd"}, flags...), " "), Frame: length, Ring: d.ring}
	s.Command = strings.Join(append([]string{"capctl start -f request.json"}, flags...), " ")
	if err := d.b.rule("udp dport 9 counter drop"); err != nil { // after capd's own chain
		return s, err
	}
	defer func() {
		if e := d.b.unrule(); err == nil {
			err = e
		}
	}()
	if err := back(); err != nil {
		return s, err
	}
	before, err := d.usage()
	if err != nil {
		return s, err
	}
	id, _, err := d.begin(9, flags...)
	if err != nil {
		return s, err
	}
	type result struct {
		testbed.Injected
		err error
	}
	results := make(chan result, len(cpus))
	for _, cpu := range cpus {
		go func() {
			sent, err := inject(d.b, frames/len(cpus), length, cpu)
			results <- result{sent, err}
		}()
	}
	// The sum of the CPUs' own rates: capd takes turns with one of them, which then ends
	// later, and what the other does meanwhile is not to be counted as standing still.
	sent := 0
	for range cpus {
		r := <-results
		sent, err = sent+r.Frames, errors.Join(err, r.err)
		s.Rate += r.Rate()
	}
	if err != nil {
		return s, err
	}
	c, _, err := d.finish(id)
	if err != nil {
		return s, err
	}
	after, err := d.usage()
	if err != nil {
		return s, err
	}
	s.PeakRSS = status(d.cmd.Process.Pid, "VmHWM")
	cpu := after.total - before.total
	s.User = time.Duration(float64(cpu) * after.user)
	s.System = cpu - s.User
	s.Other = cpu - after.busiest(before)
	if s.Sent, err = d.b.counter(); err != nil {
		return s, err
	}
	s.Captured = int(c.Packets.Captured)
	if s.Sent != sent {
		return s, fmt.Errorf("injected %d frames, the rule counted %d", sent, s.Sent)
	}
	if c.Packets.Matched == nil || *c.Packets.Matched != uint64(sent) || *c.Packets.Lost != uint64(s.lost()) {
		return s, fmt.Errorf("capd's account is wrong: injected %d, %s", sent, describe(c.Packets))
	}
	if c, err = d.completed(id); err != nil {
		return s, err
	}
	if c.Status != wire.StatusComplete {
		return s, fmt.Errorf("the capture failed: %+v", c.Error)
	}
	later, err := d.usage()
	if err != nil {
		return s, err
	}
	s.Later = later.total - after.total
	_, _, err = d.ctl("rm", id)
	return s, err
}

func describe(p wire.Packets) string {
	text, err := json.Marshal(p)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// threads lists a process's threads as folders of /proc.
func threads(pid int) []string {
	list, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	return list
}
