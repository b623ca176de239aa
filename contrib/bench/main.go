// Command bench measures capd and other readers of packets on this machine, each figure
// under a name, and prints a table: docs/performance.md tells how it measures. Run it by
// contrib/bench/run, which builds what it needs.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if err := mainError(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func mainError() error {
	list := flag.Bool("list", false, "list the rows and end")
	frames := flag.Int("frames", 2_000_000, "frames of a flood")
	repeats := flag.Int("repeats", 3, "repeats of what is repeated")
	disk := flag.String("disk", "/var/tmp", "where captures are written: a folder on a real disk")
	out := flag.String("out", "bench-results", "the folder for results.md, results.tsv and plot.svg")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: contrib/bench/run [flags] [ROW...]   (all rows, unless some are named)")
		flag.PrintDefaults()
	}
	flag.Parse()
	if *list {
		for _, r := range rows {
			fmt.Printf("%-22s %s\n", r.name, r.what)
		}
		return nil
	}
	chosen := rows
	if flag.NArg() > 0 {
		chosen = nil
		for _, name := range flag.Args() {
			i := slices.IndexFunc(rows, func(r row) bool { return r.name == name })
			if i < 0 {
				return fmt.Errorf("no row is called %q (-list names them)", name)
			}
			chosen = append(chosen, rows[i])
		}
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root: it makes network namespaces and injects frames")
	}
	unlock, err := alone()
	if err != nil {
		return err
	}
	defer unlock()
	bed, err := newBed(*disk)
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	done := make(chan error, 1)
	b := &bench{bed: bed, frames: *frames, repeats: *repeats, log: func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }}
	rep := &report{machine: describeMachine(*disk), frames: *frames}
	go func() { done <- b.all(chosen, rep) }()
	select {
	case err = <-done:
	case s := <-signals:
		// The goroutine is left behind: the process ends here.
		err = fmt.Errorf("ended by %s", s)
	}
	err = errors.Join(err, bed.Close())
	if len(rep.figures) == 0 {
		return err
	}
	if e := os.MkdirAll(*out, 0o755); e != nil {
		return errors.Join(err, e)
	}
	for name, text := range map[string]string{"results.md": rep.markdown(), "results.tsv": rep.tsv(), "plot.svg": plot(b.samples)} {
		if text != "" {
			err = errors.Join(err, os.WriteFile(filepath.Join(*out, name), []byte(text), 0o644))
		}
	}
	fmt.Print(rep.markdown())
	fmt.Fprintf(os.Stderr, "written to %s: results.md, results.tsv, plot.svg\n", *out)
	return err
}

// alone waits until no other benchmark runs on this machine: they would measure each
// other.
func alone() (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(os.TempDir(), "capd-bench.lock"), os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		fmt.Fprintln(os.Stderr, "waiting for another benchmark on this machine to end")
		for err = unix.EINTR; errors.Is(err, unix.EINTR); {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
	}
	return func() { _ = f.Close() }, nil // the file stays: deleting it would let two in
}

// all runs rows, and goes on after one that failed.
func (b *bench) all(chosen []row, rep *report) error {
	var errs []error
	for _, r := range chosen {
		b.log("== %s: %s", r.name, r.what)
		start, stolen := time.Now(), stolenTime()
		figures, err := r.run(b)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", r.name, err))
			b.log("  FAILED: %v", err)
			continue
		}
		for i := range figures {
			figures[i].Row = r.name
		}
		rep.figures = append(rep.figures, figures...)
		if steal := stolenTime() - stolen; steal > time.Since(start)/100 {
			rep.notes = append(rep.notes, fmt.Sprintf("%s: the hypervisor took %.1f %% of a CPU away meanwhile", r.name, 100*float64(steal)/float64(time.Since(start))))
		}
	}
	return errors.Join(errs...)
}
