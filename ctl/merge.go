package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"capd/ctl/merge"
	"capd/ctl/unseal"
	"capd/ctl/wire"
	"capd/ring/pcapng"
)

// mergeCommand is capctl merge.
func (a *app) mergeCommand() *cobra.Command {
	var out string
	var force bool
	var identities, shifts []string
	cmd := &cobra.Command{
		Use:        "merge [flags] -o OUT FILE...",
		GroupID:    groupFiles,
		Short:      "one time-ordered pcapng from several files or boxes",
		SuggestFor: []string{"join", "mergecap", "cat"},
		Long: `merge joins capture files into one pcapng in the order of their packets' times, so that
one packet's way through several boxes stands in adjacent lines. FILEs are pcapng or
classic pcap, also compressed (.zst) or sealed (.age, with --identity); of a DIR all
that are below it, but for those that merge itself wrote. Memory stays bounded, however
large they are.

Interfaces are named host/interface. The host is what the file itself says, else the
manifest.json beside it, else the file's name; HOST=FILE says it. The
comments of the merged file and of its interfaces tell what is known of each host's clock:
from its manifest, else from the file itself; with -H, by how much that box's clock differs
from this machine's now, measured through ssh. --shift sets a clock right that is wrong.

Comments, names, TLS secrets and options that other programs wrote are kept, except such as
forbid to be copied: these are counted.

With -o - the result goes into a pipe. A file that ends early, as one cut by a power
failure does, is merged up to there, which is told, and the exit code is 1.`,
		Example: `  capctl merge -o all.pcapng edge-1/*.pcapng edge-2/*.pcapng
  capctl merge -o - captures | wireshark -k -i -
  capctl merge -o both.pcapng lan=tcpdump-lan.pcap wan=tcpdump-wan.pcap
  capctl -H edge-1 -H edge-2 merge -o all.pcapng captures
  capctl merge --identity key.txt --shift edge-2=-1.5ms -o all.pcapng captures`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("capctl merge wants a FILE").withHint("usage: %s", cmd.UseLine())
			}
			if out == "" {
				return usagef("capctl merge wants -o OUT").withHint("-o all.pcapng, or -o - for a pipe")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.merge(cmd.Context(), args, out, force, identities, shifts)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&out, "output", "o", "", "write `OUT`; -: to stdout")
	f.BoolVarP(&force, "force", "f", false, "replace OUT where it is there")
	f.StringArrayVar(&identities, "identity", nil, "open sealed files with the age identity or SSH key in `FILE`; repeatable")
	f.StringArrayVar(&shifts, "shift", nil, "add a time, -1.5ms or 2s, to those of a host: `HOST=DURATION`; repeatable")
	_ = cmd.RegisterFlagCompletionFunc("shift", noFiles)
	return annotate(cmd, hostsItself)
}

func (a *app) merge(ctx context.Context, args []string, out string, force bool, identities, shifts []string) error {
	if out == "-" && a.screenOf(a.stdout).terminal {
		return usagef("a capture is not written to a terminal").withHint("give it to a program or a file: capctl merge -o - … | tshark -r -")
	}
	ids, err := readIdentities(identities)
	if err != nil {
		return err
	}
	set := &mergeSet{app: a, identities: ids, manifests: map[string]*wire.Manifest{}, clocks: &clocks{}}
	if err := a.askClocks(ctx, set.clocks); err != nil {
		return err
	}
	if set.shifts, err = parseShifts(shifts); err != nil {
		return err
	}
	for _, arg := range args {
		if err := set.add(arg); err != nil {
			return err
		}
	}
	m, err := merge.New(set.inputs)
	if err != nil {
		if errors.Is(err, unseal.ErrSealed) {
			return failf("%v", err).withHint("--identity FILE opens it")
		}
		return failf("%v", err)
	}
	defer m.Close()
	for host := range set.shifts {
		if !slices.Contains(m.Hosts(), host) {
			return usagef("--shift: no file is from %q", host).withHint("hosts: %s", strings.Join(m.Hosts(), ", "))
		}
	}
	for _, s := range m.Sections() {
		set.clocks.fromFile(s.Host, s.Section)
	}
	m.About(set.clocks.text)
	section := pcapng.Section{Application: "capctl " + wire.Version, Comment: set.comment(m.Hosts()), More: aboutFiles(m.Sections())}
	var result merge.Result
	if out == "-" {
		result, err = m.Write(untilEnd{ctx, a.stdout}, section)
		if errors.Is(err, syscall.EPIPE) {
			return nil // who reads has seen enough
		}
	} else {
		err = writeNew(out, force, func(w io.Writer) (err error) { result, err = m.Write(untilEnd{ctx, w}, section); return err })
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return failf("merging: %v", err)
	}
	for _, e := range result.Ended {
		a.note("%v", e)
	}
	if result.Unordered > 0 {
		a.note("%s stood far out of order in their file, and are so still", plural(result.Unordered, "packet", "packets"))
	}
	var left []string
	for _, what := range slices.Sorted(maps.Keys(result.LeftOut)) {
		left = append(left, fmt.Sprintf("%s × %s", count(result.LeftOut[what]), what))
	}
	if len(left) > 0 {
		a.note("left out, as it must not or cannot be carried over: %s", strings.Join(left, ", "))
	}
	a.note("%s from %s of %s", plural(result.Packets, "packet", "packets"), plural(uint64(len(set.inputs)), "file", "files"), plural(uint64(len(m.Hosts())), "host", "hosts"))
	if n := uint64(len(result.Ended)); n > 0 {
		return failf("%s ended early; what stands before that is merged", plural(n, "file", "files"))
	}
	return nil
}

// untilEnd writes until its context ends: Ctrl-C leaves no half file behind.
type untilEnd struct {
	ctx context.Context
	io.Writer
}

// Write implements io.Writer.
func (u untilEnd) Write(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.Writer.Write(p)
}

// writeNew makes a file that appears under its name when it is whole. A pipe or a device
// (mkfifo, >(…), /dev/stdout) is never replaced: it is written to.
func writeNew(path string, force bool, write func(io.Writer) error) (err error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		if info.IsDir() {
			return fmt.Errorf("%s is a folder: name a file in it", path)
		}
		return writeInto(path, write)
	}
	if _, err := os.Lstat(path); err == nil && !force {
		return fmt.Errorf("%s is there already (--force replaces it)", path)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".capctl-*.part") // mode 0600: packets are private
	if err != nil {
		return err
	}
	defer func() {
		tmp.Close()
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	if err := write(tmp); err != nil {
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	if force {
		return os.Rename(tmp.Name(), path)
	}
	return renameNew(tmp.Name(), path)
}

// writeInto writes to what is there and is no file of its own.
func writeInto(path string, write func(io.Writer) error) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return write(f)
}

// mergeSet collects the files to merge and what is known about where they are from.
type mergeSet struct {
	app        *app
	identities []unseal.Identity
	shifts     map[string]time.Duration
	inputs     []merge.Input
	manifests  map[string]*wire.Manifest // by the path of a capture's file
	clocks     *clocks
	looked     []string // folders whose manifests were read
}

// add takes up an argument: FILE, HOST=FILE, - or DIR.
func (s *mergeSet) add(arg string) error {
	host, path := "", arg
	if _, err := os.Stat(arg); err != nil && arg != "-" {
		before, after, ok := strings.Cut(arg, "=")
		if ok && before != "" && !strings.Contains(before, "/") {
			host, path = before, after
		}
	}
	if path == "-" {
		s.inputs = append(s.inputs, merge.Input{Name: "stdin", Host: host, Fallback: "stdin", Once: true,
			Open: func() (io.ReadCloser, error) { return s.unsealed(io.NopCloser(s.app.stdin)) }})
		return nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return unreadable(err)
	}
	if !info.IsDir() {
		return s.file(host, path, !info.Mode().IsRegular())
	}
	before := len(s.inputs)
	err = filepath.WalkDir(path, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || !isCaptureName(e.Name()) {
			return err
		}
		if s.isMerged(path) {
			s.app.note("%s is left out: merge wrote it, and its packets stand in the files beside it (name it, to have it too)", path)
			return nil
		}
		return s.file(host, path, false)
	})
	if err == nil && len(s.inputs) == before {
		err = failf("no capture files in %s (.pcapng, .pcap, also with .zst and .age)", path)
	}
	return err
}

// mergedFrom is what the comment of a merged file begins with.
const mergedFrom = "merged from "

// isMerged tells whether a file is one that merge wrote. What cannot be read is none.
func (s *mergeSet) isMerged(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	u, err := s.unsealed(f)
	if err != nil {
		return false
	}
	defer u.Close()
	b, err := pcapng.NewReader(u).Next()
	if err != nil || b.Type != pcapng.TypeSection {
		return false
	}
	section, err := b.Section()
	return err == nil && strings.HasPrefix(section.Application, "capctl ") && strings.HasPrefix(section.Comment, mergedFrom)
}

// extensions of capture files.
var captureExtensions = []string{".age", ".zst", ".pcapng", ".pcap", ".cap", ".ntar"}

func isCaptureName(name string) bool {
	return !strings.HasPrefix(name, ".") && slices.Contains(captureExtensions, filepath.Ext(name)) &&
		!strings.Contains(name, wire.ManifestName)
}

func (s *mergeSet) file(host, path string, once bool) error {
	s.readManifests(filepath.Dir(path))
	fallback := filepath.Base(path)
	for slices.Contains(captureExtensions, filepath.Ext(fallback)) {
		fallback = strings.TrimSuffix(fallback, filepath.Ext(fallback))
	}
	if m := s.manifests[path]; m != nil {
		fallback = m.Capture.Host
		s.clocks.fromManifest(orElse(host, fallback), m.Clock)
	}
	in := merge.Input{Name: path, Host: host, Fallback: fallback, Once: once,
		Open: func() (io.ReadCloser, error) {
			f, err := os.Open(path)
			if err != nil {
				return nil, err
			}
			return s.unsealed(f)
		}}
	if len(s.shifts) > 0 {
		if err := s.shift(&in); err != nil {
			return err
		}
	}
	s.inputs = append(s.inputs, in)
	return nil
}

// shift finds the host of an input whose times may have to be shifted.
func (s *mergeSet) shift(in *merge.Input) error {
	host := in.Host
	if host == "" {
		if in.Once {
			return usagef("--shift: say the host of %s: HOST=FILE", in.Name)
		}
		m, err := merge.New([]merge.Input{*in})
		if err != nil {
			return failf("%v", err)
		}
		host = m.Hosts()[0]
		m.Close()
	}
	in.Shift = s.shifts[host]
	return nil
}

// unsealed opens what lies around a capture.
func (s *mergeSet) unsealed(f io.ReadCloser) (io.ReadCloser, error) {
	u, err := unseal.New(f, s.identities)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &unsealedFile{u, f}, nil
}

type unsealedFile struct {
	*unseal.Reader
	f io.Closer
}

// Close implements io.Closer.
func (u *unsealedFile) Close() error {
	u.Reader.Close()
	return u.f.Close()
}

// readManifests reads what the manifests of a folder say of the files beside them. One
// that cannot be read is as good as none.
func (s *mergeSet) readManifests(dir string) {
	if slices.Contains(s.looked, dir) {
		return
	}
	s.looked = append(s.looked, dir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	v := verifier{identities: s.identities}
	for _, manifest := range manifestsOf(names) {
		_, plain, err := v.readManifest(filepath.Join(dir, manifest))
		m := new(wire.Manifest)
		if err != nil || json.Unmarshal(plain, m) != nil {
			continue
		}
		prefix, _, _ := strings.Cut(manifest, wire.ManifestName)
		for _, f := range m.Capture.Files {
			s.manifests[filepath.Join(dir, localName(f, prefix, names))] = m
		}
	}
}

// comment is what the merged file says of its hosts' clocks.
func (s *mergeSet) comment(hosts []string) string {
	lines := []string{fmt.Sprintf(mergedFrom+"%s by capctl %s", plural(uint64(len(s.inputs)), "file", "files"), wire.Version)}
	for _, host := range hosts {
		line := "host " + orElse(host, "(unknown)") + ": " + s.clocks.text(host)
		if d := s.shifts[host]; d != 0 {
			line += fmt.Sprintf("; times shifted by %s", d)
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

// parseShifts reads HOST=DURATION.
func parseShifts(texts []string) (map[string]time.Duration, error) {
	shifts := map[string]time.Duration{}
	for _, text := range texts {
		host, value, ok := strings.Cut(text, "=")
		d, err := time.ParseDuration(value)
		if !ok || host == "" || err != nil {
			return nil, usagef("--shift: %q is not HOST=DURATION (edge-2=-1.5ms)", text)
		}
		shifts[host] = d
	}
	return shifts, nil
}
