package main

import (
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

	"golang.org/x/sys/unix"

	"capd/testbed"
)

// The injector has one CPU and the readers the other, so that neither takes time from
// the other but through the kernel.
const (
	injectorCPU = 0
	readerCPU   = 1
	anyCPU      = -1
)

// device is where frames arrive, in the bed's namespace b.
const device = "vb"

// bed is two namespaces joined by a veth pair, a folder on a real disk, and whatever was
// started in them. Close takes all of it away.
type bed struct {
	a, b      string // namespaces; b is the one that captures
	dir       string
	processes []*exec.Cmd
	made      []string // namespaces to delete
}

// newBed makes a bed whose files lie in a new folder under parent.
func newBed(parent string) (*bed, error) {
	b := &bed{a: fmt.Sprintf("capd-bench-a%d", os.Getpid()), b: fmt.Sprintf("capd-bench-b%d", os.Getpid())}
	var err error
	if b.dir, err = os.MkdirTemp(parent, "capd-bench-"); err != nil {
		return nil, err
	}
	steps := [][]string{
		{"link", "add", "va", "netns", b.a, "type", "veth", "peer", "name", device, "netns", b.b},
		{"-n", b.a, "addr", "add", "10.9.0.1/24", "dev", "va"},
		{"-n", b.b, "addr", "add", "10.9.0.2/24", "dev", device},
		{"-n", b.a, "link", "set", "va", "up"},
		{"-n", b.b, "link", "set", device, "up"},
		{"-n", b.b, "link", "set", "lo", "up"},
	}
	for _, ns := range []string{b.a, b.b} {
		if err := run("ip", "netns", "add", ns); err != nil {
			return nil, errors.Join(err, b.Close())
		}
		b.made = append(b.made, ns)
	}
	for _, args := range steps {
		if err := run("ip", args...); err != nil {
			return nil, errors.Join(err, b.Close())
		}
	}
	return b, nil
}

// Close ends every process that is still there and deletes namespaces and files.
func (b *bed) Close() error {
	for _, cmd := range slices.Clone(b.processes) {
		b.end(cmd, syscall.SIGTERM)
	}
	var errs []error
	for _, ns := range b.made {
		errs = append(errs, run("ip", "netns", "del", ns))
	}
	b.made = nil
	return errors.Join(append(errs, os.RemoveAll(b.dir))...)
}

// path gives a file name in the bed's folder.
func (b *bed) path(name string) string { return filepath.Join(b.dir, name) }

// start starts a command in namespace b on one CPU (anyCPU: on all).
func (b *bed) start(cmd *exec.Cmd, cpu int) error {
	err := testbed.Do(b.b, func() error {
		if cpu != anyCPU {
			var set unix.CPUSet
			set.Set(cpu)
			if err := unix.SchedSetaffinity(0, &set); err != nil {
				return fmt.Errorf("sched_setaffinity to CPU %d: %w", cpu, err)
			}
		}
		return cmd.Start() // forks from this thread: the child has its namespace and CPU
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	b.processes = append(b.processes, cmd)
	return nil
}

// end signals a process and waits for it, at last with SIGKILL.
func (b *bed) end(cmd *exec.Cmd, signal syscall.Signal) {
	i := slices.Index(b.processes, cmd)
	if i < 0 {
		return
	}
	b.processes = slices.Delete(b.processes, i, i+1)
	_ = cmd.Process.Signal(signal)
	kill := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
	_ = cmd.Wait() // its end is all that is wanted: its files and counts are looked at
	kill.Stop()
}

// backed is how much memory is touched before each flood: more than any reader takes.
const backed = 256 << 20

// back has the machine's free memory backed by its host, where it is a virtual machine
// that gives free memory back: else what the host needs for that (here up to 300 ms for
// 64 MiB, which otherwise take 4) counts as the CPU time of whichever reader comes first.
func back() error {
	m, err := unix.Mmap(-1, 0, backed, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	_ = unix.Madvise(m, unix.MADV_HUGEPAGE)
	for i := 0; i < len(m); i += 4096 {
		m[i] = 1
	}
	return unix.Munmap(m)
}

// rule installs a table of our own at prerouting with one rule.
func (b *bed) rule(text string) error {
	return b.nft("add table inet bench; delete table inet bench; add table inet bench; " +
		"add chain inet bench pre { type filter hook prerouting priority -400; policy accept; }; " +
		"add rule inet bench pre " + text)
}

func (b *bed) unrule() error { return b.nft("delete table inet bench") }

func (b *bed) nft(script string) error { return run("ip", "netns", "exec", b.b, "nft", script) }

// counter reads the packets that rule's counter has seen.
func (b *bed) counter() (int, error) { return counter(b.b, "inet") }

// counter reads the only counter in a namespace's table bench of a family, in packets.
func counter(ns, family string) (int, error) {
	out, err := exec.Command("ip", "netns", "exec", ns, "nft", "list", "table", family, "bench").Output()
	if err != nil {
		return 0, fmt.Errorf("nft list table: %w", err)
	}
	_, after, ok := strings.Cut(string(out), "counter packets ")
	if !ok {
		return 0, fmt.Errorf("no counter in %q", out)
	}
	return strconv.Atoi(strings.Fields(after)[0])
}

// file reads a file of /proc/net as namespace b sees it.
func (b *bed) file(name string) (string, error) {
	var text []byte
	err := testbed.Do(b.b, func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/" + name)
		return err
	})
	return string(text), err
}

// bound tells whether a reader of NFLOG group (or, for 0, of AF_PACKET) is there.
func (b *bed) bound(group int) (bool, error) {
	name := "packet"
	if group != 0 {
		name = "netfilter/nfnetlink_log"
	}
	text, err := b.file(name)
	if err != nil {
		return false, err
	}
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if group == 0 {
		return len(lines) > 1, nil // the first line is a heading
	}
	return slices.ContainsFunc(lines, func(line string) bool {
		f := strings.Fields(line)
		return len(f) > 0 && f[0] == strconv.Itoa(group)
	}), nil
}

// unread is how many bytes wait in netlink sockets of namespace b.
func (b *bed) unread() (int, error) {
	text, err := b.file("netlink")
	if err != nil {
		return 0, err
	}
	sum := 0
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 4 {
			n, _ := strconv.Atoi(f[4]) // Rmem; the heading gives 0
			sum += n
		}
	}
	return sum, nil
}

// await polls until ok says so.
func await(what string, limit time.Duration, ok func() (bool, error)) error {
	for end := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		switch done, err := ok(); {
		case err != nil:
			return fmt.Errorf("waiting for %s: %w", what, err)
		case done:
			return nil
		case time.Now().After(end):
			return fmt.Errorf("%s did not come within %s", what, limit)
		}
	}
}

// drained waits until a process has read everything and rests: nothing waits for it and
// it used hardly any CPU for some 1.4 s, which is longer than any reader's flush timeout.
func (b *bed) drained(pid int) error {
	quiet := 0
	before, err := cpuTime(pid)
	if err != nil {
		return err
	}
	return await("the reader's rest", 5*time.Minute, func() (bool, error) {
		time.Sleep(230 * time.Millisecond)
		now, err := cpuTime(pid)
		if err != nil {
			return false, err
		}
		waiting, err := b.unread()
		if err != nil {
			return false, err
		}
		if quiet++; waiting > 0 || now-before > 2*time.Millisecond {
			quiet = 0
		}
		before = now
		return quiet >= 6, nil
	})
}

// cpuTime is the CPU time of all threads of a process, also of those that have ended, in
// the scheduler's nanoseconds (the process's CPU-time clock; clock_getcpuclockid(3)).
func cpuTime(pid int) (time.Duration, error) {
	const cpuClockSched = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|cpuClockSched), &ts); err != nil {
		return 0, fmt.Errorf("clock_gettime of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// run runs a command to its end.
func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
