package ctl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"capd/nft"
)

// TestScripts runs testdata/*.txt. A script is lines of commands, then files, each after
// a line "-- NAME --"; testdata/objects are files of every script. Commands:
//
//	reply METHOD PATH STATUS [FILE]   what capd answers (several: in turn); STATUS cut or stall
//	capctl ARG...                     runs capctl; it must end with 0, or for capctl/N with N
//	stdout|stderr REGEXP, and with !  what the last run printed matches, (?m) set
//	is stdout|stderr FILE             it is exactly that
//	json FILE                         stdout is that JSON
//	sent METHOD PATH [FILE], !sent    the last such call had that JSON as its body
//	same FILE FILE, exists, !exists   files
//	env K=V, tty COLUMNS|off, stdin FILE, signal N
//	hurry, !hurry                     whether capctl soon gives up waiting for an answer
func TestScripts(t *testing.T) {
	scripts, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(scripts) == 0 {
		t.Fatal("no scripts", err)
	}
	objects, err := filepath.Glob("testdata/objects/*")
	if err != nil {
		t.Fatal(err)
	}
	shared := map[string]string{}
	for _, name := range objects {
		shared[filepath.Base(name)] = readFile(t, name)
	}
	for _, name := range scripts {
		text := readFile(t, name)
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txt"), func(t *testing.T) {
			t.Chdir(t.TempDir())
			s := &script{t: t, capd: newFakeCapd(t), env: map[string]string{"LANG": "C.UTF-8"}}
			lines, files := splitScript(text)
			for name, text := range mergeMaps(shared, files) {
				if err := os.MkdirAll(filepath.Dir(name), 0o777); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(name, []byte(text), 0o666); err != nil {
					t.Fatal(err)
				}
			}
			for i, line := range lines {
				s.at = fmt.Sprintf("%s:%d: %s", filepath.Base(name), i+1, line)
				s.step(words(line))
			}
		})
	}
}

type script struct {
	t    *testing.T
	at   string
	capd *fakeCapd

	env     map[string]string
	columns int // of the terminal; 0 = none
	stdin   []byte
	signals int
	hurried bool

	stdout, stderr bytes.Buffer
}

func (s *script) failf(format string, args ...any) {
	s.t.Helper()
	s.t.Fatalf("%s\n%s\nstdout:\n%s\nstderr:\n%s", s.at, fmt.Sprintf(format, args...), s.stdout.String(), s.stderr.String())
}

func (s *script) step(w []string) {
	s.t.Helper()
	if len(w) == 0 || strings.HasPrefix(w[0], "#") {
		return
	}
	name, args := w[0], w[1:]
	if exit, ok := strings.CutPrefix(name, "capctl/"); ok || name == "capctl" {
		want, _ := strconv.Atoi(exit)
		if !ok {
			want = 0
		}
		s.run(want, args)
		return
	}
	name, not := strings.CutPrefix(name, "!")
	outputs := map[string]*bytes.Buffer{"stdout": &s.stdout, "stderr": &s.stderr}
	switch name {
	case "reply":
		r := reply{stall: args[2] == "stall"}
		if r.status, _ = strconv.Atoi(args[2]); len(args) > 3 {
			r.body = []byte(readFile(s.t, args[3]))
		}
		s.capd.answer(args[0]+" "+args[1], r)
	case "stdout", "stderr":
		if regexp.MustCompile("(?m)"+args[0]).Match(outputs[name].Bytes()) == not {
			s.failf("this is not so")
		}
	case "is":
		if want := readFile(s.t, args[1]); outputs[args[0]].String() != want {
			s.failf("%s is not:\n%s", args[0], want)
		}
	case "json":
		s.sameJSON(s.stdout.Bytes(), readFile(s.t, args[0]))
	case "sent":
		calls := s.capd.sent(args[0] + " " + args[1])
		if (len(calls) > 0) == not {
			s.failf("calls: %q", s.capd.calls)
		}
		if len(args) > 2 {
			s.sameJSON(calls[len(calls)-1], readFile(s.t, args[2]))
		}
	case "same":
		if a, b := readFile(s.t, args[0]), readFile(s.t, args[1]); a != b {
			s.failf("%q\n%q", a, b)
		}
	case "exists":
		if found, _ := filepath.Glob(args[0]); (len(found) > 0) == not {
			s.failf("found %q", found)
		}
	case "env":
		k, v, _ := strings.Cut(args[0], "=")
		s.env[k] = v
	case "tty":
		s.columns, _ = strconv.Atoi(args[0])
	case "stdin":
		s.stdin = []byte(readFile(s.t, args[0]))
	case "hurry":
		s.hurried = !not
	case "signal":
		s.signals, _ = strconv.Atoi(args[0])
	default:
		s.failf("no such command")
	}
}

func (s *script) run(want int, args []string) {
	s.t.Helper()
	s.stdout.Reset()
	s.stderr.Reset()
	signals := make(chan os.Signal, 2)
	for range s.signals {
		signals <- os.Interrupt
	}
	s.signals = 0
	env := mergeMaps(map[string]string{"CAPD_SOCKET": s.capd.socket}, s.env)
	a := &app{
		stdin: bytes.NewReader(s.stdin), stdout: &s.stdout, stderr: &s.stderr,
		getenv:  func(k string) string { return env[k] },
		now:     func() time.Time { return time.Date(2026, 11, 23, 10, 5, 0, 0, time.UTC) },
		zone:    time.FixedZone("CET", 3600),
		signals: func() (<-chan os.Signal, func()) { return signals, func() {} },
		screen:  func(io.Writer) (int, bool) { return s.columns, s.columns > 0 },
		lookup:  lookupInTest,
		devices: "devices",
		nflog:   "nfnetlink_log",
		probe: func() (nft.Features, error) {
			return nft.Features{Log: errors.New("this kernel lacks NFLOG"), Owner: errors.New("this kernel lacks tables with an owner"), Egress: errors.New("this kernel lacks netdev egress")}, nil
		},
		timing: timing{poll: time.Millisecond, plain: time.Hour, patience: 50 * time.Millisecond, quick: time.Minute},
	}
	if s.hurried {
		a.timing.quick = 200 * time.Millisecond
	}
	if got := a.run(context.Background(), args); got != want {
		s.failf("it ended with %d, not with %d", got, want)
	}
}

func (s *script) sameJSON(got []byte, want string) {
	s.t.Helper()
	var a, b any
	if err := json.Unmarshal(got, &a); err != nil {
		s.failf("not JSON: %v: %s", err, got)
	}
	if err := json.Unmarshal([]byte(want), &b); err != nil {
		s.failf("the script's JSON: %v", err)
	}
	if !reflect.DeepEqual(a, b) {
		s.failf("not the same JSON:\n%s\n%s", got, want)
	}
}

// splitScript parts a script's commands from its files.
func splitScript(text string) (lines []string, files map[string]string) {
	files = map[string]string{}
	file := ""
	for line := range strings.Lines(text) {
		if name, ok := strings.CutPrefix(line, "-- "); ok && strings.HasSuffix(name, " --\n") {
			file = strings.TrimSuffix(name, " --\n")
			files[file] = ""
		} else if file != "" {
			files[file] += line
		} else {
			lines = append(lines, strings.TrimSuffix(line, "\n"))
		}
	}
	return lines, files
}

// words splits a line at spaces, but not between single quotes.
func words(line string) []string {
	var out []string
	quoted, open := false, false
	for _, r := range line {
		switch {
		case r == '\'':
			quoted = !quoted
			if !open {
				out, open = append(out, ""), true
			}
		case r == ' ' && !quoted:
			open = false
		default:
			if !open {
				out, open = append(out, ""), true
			}
			out[len(out)-1] += string(r)
		}
	}
	return out
}

func mergeMaps(a, b map[string]string) map[string]string {
	both := maps.Clone(a)
	maps.Copy(both, b)
	return both
}

func readFile(t testing.TB, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// lookupInTest is a resolver with two hosts.
func lookupInTest(_ context.Context, _, host string) ([]netip.Addr, error) {
	switch host {
	case "web.example.org":
		return []netip.Addr{netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("::ffff:192.0.2.8"), netip.MustParseAddr("192.0.2.7")}, nil
	case "v6.example.org":
		return []netip.Addr{netip.MustParseAddr("2001:db8::6")}, nil
	case "slow.example.org":
		return nil, &net.DNSError{Err: "the server does not answer", Name: host, IsTimeout: true}
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}
