package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// report is what one session of the benchmark found.
type report struct {
	machine string
	frames  int
	figures []figure
	notes   []string
}

// describeMachine says on what and when the figures came about.
func describeMachine(disk string) string {
	var name unix.Utsname
	kernel := "unknown kernel"
	if unix.Uname(&name) == nil {
		kernel = "Linux " + unix.ByteSliceToString(name.Release[:])
	}
	model := "unknown CPU"
	for line := range strings.Lines(readAll("/proc/cpuinfo")) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	memory := ""
	if f := strings.Fields(readAll("/proc/meminfo")); len(f) > 1 {
		kb, _ := strconv.Atoi(f[1])
		memory = fmt.Sprintf(", %.0f GiB", float64(kb)/(1<<20))
	}
	return fmt.Sprintf("%s, %d × %s%s, %s, files on %s, %s", time.Now().UTC().Format("2006-01-02 15:04Z"), runtime.NumCPU(), model, memory, kernel, fileSystem(disk), runtime.Version())
}

// fileSystem names the kind of file system that holds a folder.
func fileSystem(dir string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return "unknown"
	}
	kinds := map[int64]string{
		unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs",
		unix.TMPFS_MAGIC: "tmpfs (no disk!)", unix.OVERLAYFS_SUPER_MAGIC: "overlayfs",
	}
	if kind := kinds[int64(st.Type)]; kind != "" {
		return kind
	}
	return fmt.Sprintf("file system %#x", st.Type)
}

// stolenTime is what the hypervisor took from this machine's CPUs so far (proc(5), the
// eighth number of /proc/stat's first line, in hundredths of a second).
func stolenTime() time.Duration {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(text), "\n")
	f := strings.Fields(line)
	if len(f) < 9 {
		return 0
	}
	n, _ := strconv.Atoi(f[8])
	return time.Duration(n) * 10 * time.Millisecond
}

func (f figure) verdict() string {
	switch {
	case f.Target == "":
		return ""
	case f.Met:
		return "met"
	}
	return "MISSED"
}

// number prints a value with about three digits.
func number(v float64) string {
	switch {
	case v == float64(int64(v)), v >= 1000, v <= -1000:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

func (f figure) runs() string {
	parts := make([]string, len(f.Spread))
	for i, v := range f.Spread {
		parts[i] = number(v)
	}
	return strings.Join(parts, " ")
}

func (r *report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s; %d frames a flood\n\n| row | what | figure | unit | target | verdict | single runs | command |\n|---|---|---:|---|---|---|---|---|\n", r.machine, r.frames)
	for _, f := range r.figures {
		runs := f.runs()
		if len(f.Spread) > 5 {
			runs = fmt.Sprintf("%d runs", len(f.Spread))
		}
		command := ""
		if f.Command != "" {
			command = "`" + f.Command + "`"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s |\n", f.Row, f.What, number(f.Value), f.Unit, f.Target, f.verdict(), runs, command)
	}
	for _, n := range r.notes {
		fmt.Fprintf(&b, "\n%s.\n", n)
	}
	return b.String()
}

func (r *report) tsv() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s; %d frames a flood\nrow\twhat\tfigure\tunit\ttarget\tverdict\truns\tcommand\n", r.machine, r.frames)
	for _, f := range r.figures {
		fmt.Fprintf(&b, "%s\t%s\t%g\t%s\t%s\t%s\t%s\t%s\n", f.Row, f.What, f.Value, f.Unit, f.Target, f.verdict(), f.runs(), f.Command)
	}
	for _, n := range r.notes {
		fmt.Fprintf(&b, "# %s\n", n)
	}
	return b.String()
}
