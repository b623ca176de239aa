package ctl

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"capd/ctl/wire"
)

// Every error code that capd can send has its line in the table of exit codes.
func TestExitsKnowEveryCode(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "wire/wire.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	codes := 0
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || !strings.HasPrefix(spec.Names[0].Name, "Code") {
			return true
		}
		codes++
		code, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := exits[code]; !ok {
			t.Errorf("%s (%q) is not in the table", spec.Names[0].Name, code)
		}
		return true
	})
	if codes != len(exits) {
		t.Errorf("%d codes, %d lines in the table", codes, len(exits))
	}
}

func newTestApp() *app {
	return &app{stdin: strings.NewReader(""), stdout: &strings.Builder{}, stderr: &strings.Builder{}, getenv: func(string) string { return "" }}
}

func everyCommand(root *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{root}
	for _, c := range root.Commands() {
		all = append(all, everyCommand(c)...)
	}
	return all
}

// Every command says what it does, and its examples are ones that capctl takes.
func TestHelp(t *testing.T) {
	for _, cmd := range everyCommand(newTestApp().root()) {
		t.Run(cmd.CommandPath(), func(t *testing.T) {
			if cmd.Short == "" || cmd.Long == "" || cmd.Example == "" {
				t.Fatal("it lacks a part of its help")
			}
			if len(cmd.CommandPath()) > len("capctl") && cmd.Parent().Name() == "capctl" && !cmd.Hidden && cmd.GroupID == "" {
				t.Error("it is in no group")
			}
			for _, line := range strings.Split(cmd.Example, "\n") {
				if len(line) > 100 {
					t.Errorf("example of %d columns", len(line))
				}
				before, example, ok := strings.Cut(line, "capctl ")
				if !ok {
					t.Errorf("no example: %q", line)
				}
				_ = before
				example, _, _ = strings.Cut(example, "   ")
				for _, end := range []string{" && ", " | ", " > ", ")"} {
					if i := strings.Index(example, end); i >= 0 && !strings.Contains(example[:i], "'") {
						example = example[:i]
					}
				}
				a := newTestApp()
				root := a.root()
				found, rest, err := root.Find(words(example))
				if err != nil || found == root {
					t.Errorf("%q: %v", example, err)
					continue
				}
				if err := found.ParseFlags(rest); err != nil {
					t.Errorf("%q: %v", example, err)
				}
				if err := found.ValidateArgs(found.Flags().Args()); err != nil {
					t.Errorf("%q: %v", example, err)
				}
			}
		})
	}
}

// The help fits the terminal, and says all flags.
func TestHelpFits(t *testing.T) {
	for _, cmd := range everyCommand(newTestApp().root()) {
		a := newTestApp()
		out := &strings.Builder{}
		a.stdout = out
		args := append(strings.Fields(cmd.CommandPath())[1:], "--help")
		if exit := a.run(t.Context(), args); exit != exitDone {
			t.Errorf("%s: %d", args, exit)
		}
		_, examples, _ := strings.Cut(out.String(), "Examples:\n")
		examples, _, _ = strings.Cut(examples, "\n\n")
		for _, line := range strings.Split(strings.Replace(out.String(), examples, "", 1), "\n") {
			if columnsOf(line) > 80 {
				t.Errorf("%s: %d columns: %s", args, columnsOf(line), line)
			}
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" && !strings.Contains(out.String(), "--"+f.Name) {
				t.Errorf("%s: nothing about --%s", args, f.Name)
			}
		})
	}
}

// Every flag that has a value completes it, or says that there is nothing to complete.
func TestEveryFlagCompletes(t *testing.T) {
	for _, cmd := range everyCommand(newTestApp().root()) {
		cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			if f.Value.Type() == "bool" || slices.Contains([]string{"request", "output", "write", "signers", "identity"}, f.Name) {
				return // files and folders, as the shell does by itself
			}
			if _, ok := cmd.GetFlagCompletionFunc(f.Name); !ok {
				t.Errorf("%s --%s", cmd.CommandPath(), f.Name)
			}
		})
	}
}

// Every field of a request can be given by a flag, but for those that have no flag.
func TestEveryFieldHasItsFlag(t *testing.T) {
	noFlag := map[string]bool{"system": true, "filter_v1": true, "exclude": true}
	args := []string{
		"--type=full", "--name=n", "--interface=eth0", "--hook=input", "--snaplen=1", "--sample=2", "--sample-by=flow",
		"--headers-only", "--annotate", "--time-limit=3", "--byte-limit=4", "--packet-limit=5", "--on-overload=stop",
		"--format=pcap", "--link-type=raw", "--segment-size=6", "--segment-time=7", "--ring=8", "--destination=d",
		"--no-check", "--label=k=v", "udp",
	}
	a := newTestApp()
	var got wire.StartRequest
	for _, cmd := range a.root().Commands() {
		if cmd.Name() != "explain" {
			continue
		}
		var r requestFlags
		own := &cobra.Command{Use: "x"}
		r.add(own)
		if err := own.ParseFlags(args); err != nil {
			t.Fatal(err)
		}
		var err error
		if got, err = a.request(own, &r, own.Flags().Args()); err != nil {
			t.Fatal(err)
		}
	}
	v := reflect.ValueOf(got)
	for i, name := range fieldNames(v.Type()) {
		if v.Field(i).IsZero() != noFlag[name] {
			t.Errorf("%s is %v", name, v.Field(i))
		}
	}
}

func TestFormats(t *testing.T) {
	for _, test := range []struct{ got, want string }{
		{count(0), "0"}, {count(999), "999"}, {count(1000), "1,000"}, {count(18446744073709551615), "18,446,744,073,709,551,615"},
		{limitSize(10e6), "10 MB"}, {limitSize(1 << 20), "1 MiB"}, {limitSize(1e3), "1 kB"}, {limitSize(1234), "1234 B"}, {limitSize(0), "0 B"},
		{shortAge(-time.Hour), "0s"}, {shortAge(59 * time.Second), "59s"}, {shortAge(61 * time.Minute), "1h"}, {shortAge(47 * time.Hour), "47h"}, {shortAge(49 * time.Hour), "2d"},
		{span(-1), "0s"}, {span(1500 * time.Microsecond), "2ms"}, {span(5 * time.Minute), "5m"}, {span(90*time.Minute + time.Second/3), "1h30m"},
		{percent(999.9, 1000), "99%"}, {percent(2000, 1000), "100%"}, {percent(1, 0), ""},
		{ratio("2.90 MB", "10 MB"), "2.90/10 MB"}, {ratio("2.90 kB", "10 MB"), "2.90 kB/10 MB"},
		{clean("plain é 漢"), "plain é 漢"}, {clean("a\x1b[2J\n"), `a\x1b[2J\n`}, {clean("\xff\u202e\ufffd"), `\xff\u202e` + "\ufffd"}, {clean("\u009b"), `\u009b`},
		{oneLine("a\r\n\tb\n\n c"), "a b c"},
		{flowText(wire.Flow{}), "any with any"}, {flowText(wire.Flow{Source: "::1", SourcePort: 5}), "[::1]:5 with any"},
		{closest("destinaton", []string{"name", "destination"}), "destination"}, {closest("ouput", hooks), "output"},
		{closest("zzzzzz", hooks), ""}, {closest("prer", hooks), "prerouting"}, {closest("", hooks), ""},
	} {
		if test.got != test.want {
			t.Errorf("%q, not %q", test.got, test.want)
		}
	}
}

func TestShortIDsTellApart(t *testing.T) {
	captures := []wire.Capture{{ID: "0123456789abcdef"}, {ID: "0123456789abcd00"}, {ID: "ffff"}, {ID: "ffff0000ffff"}, {ID: "aaaaaaaaaa"}}
	got := shortIDs(captures)
	want := []string{"0123456789abcde", "0123456789abcd0", "ffff", "ffff0000", "aaaaaaaa"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q", got)
	}
}

// A table never leaves the screen, as long as its columns can be cut or left out.
func TestTableFits(t *testing.T) {
	columns := []column{{head: "ID"}, {head: "NAME", least: 4}, {head: "N", right: true}, {head: "NOTE", least: 6, drop: 1}, {head: "MORE", drop: 2}}
	rows := [][]cell{
		{{text: "1"}, {text: "a name of some length"}, {text: "5"}, {text: "text\x1b and text"}, {text: "more of it"}},
		{{text: ""}, {text: "漢字漢字漢字漢字"}, {text: "12345"}, {text: ""}, {text: ""}},
	}
	for width := 15; width < 100; width++ {
		for _, s := range []screen{{width: width}, {width: width, unicode: true}} {
			var b strings.Builder
			if err := s.table(&b, columns, rows); err != nil {
				t.Fatal(err)
			}
			for _, line := range strings.Split(b.String(), "\n") {
				if columnsOf(line) > width {
					t.Errorf("%d columns: %q", width, line)
				}
				if strings.HasSuffix(line, " ") {
					t.Errorf("ends in a space: %q", line)
				}
			}
		}
	}
	var b strings.Builder
	if err := (screen{}).table(&b, columns, rows); err != nil {
		t.Fatal(err)
	}
	want := "ID  NAME                       N  NOTE               MORE\n" +
		"1   a name of some length      5  text\\x1b and text  more of it\n" +
		"    漢字漢字漢字漢字       12345\n"
	if b.String() != want {
		t.Errorf("\n%s\n%s", b.String(), want)
	}
}

// The progress line is never wider than it may be, whatever the capture.
func TestProgressFits(t *testing.T) {
	now := time.Date(2026, 11, 23, 10, 5, 0, 0, time.UTC)
	for _, name := range []string{"running.json", "delivering.json", "complete.json", "lossy.json", "failed.json", "kept.json"} {
		c := readCapture(t, name)
		for width := 20; width <= 200; width++ {
			for _, s := range []screen{{unicode: true}, {}} {
				line := progressBar(s, c, now, width)
				if columnsOf(line) > width || strings.ContainsAny(line, "\n\r") {
					t.Errorf("%s, %d columns: %d: %q", name, width, columnsOf(line), line)
				}
				s.colour = true
				if coloured := stripped(progressBar(s, c, now, width)); coloured != line {
					t.Errorf("%s, %d columns: with colours it says %q, without %q", name, width, coloured, line)
				}
			}
		}
	}
	c := readCapture(t, "running.json")
	for width, want := range map[int]string{
		40:  "running    #######......  59%  2m59s/5m",
		79:  "running    #####.....  59%  2m59s/5m  5,000/10,000 packets  0 lost  3.38/10 MB",
		120: "running    #################.............  59%  2m59s/5m  5,000/10,000 packets  0 lost  3.38/10 MB",
	} {
		if got := progressBar(screen{}, c, now, width); got != want {
			t.Errorf("%d columns:\n%q\n%q", width, got, want)
		}
	}
	lossy := readCapture(t, "lossy.json")
	if line := progressBar(screen{colour: true}, lossy, now, 100); !strings.Contains(line, "\x1b[31m12 lost\x1b[0m") {
		t.Errorf("loss is not red: %q", line)
	}
}

// On a terminal one line is written again and again; notes get lines of their own.
func TestProgressLive(t *testing.T) {
	var out strings.Builder
	width := 79
	p := &progress{
		out: &out, now: func() time.Time { return time.Date(2026, 11, 23, 10, 5, 0, 0, time.UTC) },
		screen: func() screen { return screen{terminal: true, live: true, width: width} },
	}
	c := readCapture(t, "running.json")
	p.show(c)
	width = 41 // the window has been made smaller
	p.show(c)
	p.say("a note")
	p.say("a note")
	p.show(c)
	p.end()
	p.end()
	want := "\rrunning    ############.........  59%  2m59s/5m  5,000/10,000 packets  0 lost\x1b[K" +
		"\rrunning    #######......  59%  2m59s/5m\x1b[K\na note\n\rrunning    #######......  59%  2m59s/5m\x1b[K\n"
	if out.String() != want {
		t.Errorf("\n%q\n%q", out.String(), want)
	}
}

func readCapture(t *testing.T, name string) wire.Capture {
	t.Helper()
	var c wire.Capture
	if err := json.Unmarshal(object(t, name), &c); err != nil {
		t.Fatal(err)
	}
	return c
}

func FuzzRequest(f *testing.F) {
	for _, s := range []string{`{}`, `{"filter_v1": {"source_port": 5}}`, `{"byte_limit": "10mb", "x": null}`, `[]`, `{"labels": {"a": "b"}} {}`, "", "null"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		_, err := parseRequest(data)
		if exit, message, _ := verdict(err); err != nil && (exit != exitUsage || message == "") {
			t.Errorf("exit code %d: %v", exit, err)
		}
	})
}

func FuzzClean(f *testing.F) {
	f.Add("a\x1b[2J\xff\n\t漢")
	f.Fuzz(func(t *testing.T, text string) {
		for _, out := range []string{clean(text), oneLine(text)} {
			if !utf8.ValidString(out) || clean(out) != out {
				t.Errorf("%q becomes %q", text, out)
			}
			for _, s := range []screen{{}, {unicode: true}} {
				if cut := s.cut(out, 5); columnsOf(cut) > 5 {
					t.Errorf("%q is cut to %q", out, cut)
				}
			}
		}
	})
}

func FuzzSSHFlow(f *testing.F) {
	f.Add("198.51.100.7 50022 192.0.2.1 22")
	f.Add("fe80::1%eth0 1 ::1 22")
	f.Fuzz(func(t *testing.T, connection string) {
		if flow, ok := sshFlow(connection); ok && (flow.Source == "" || flow.Destination == "" || strings.Contains(flow.Source, "%")) {
			t.Errorf("%q: %+v", connection, flow)
		}
	})
}

func TestScreen(t *testing.T) {
	env := map[string]string{}
	a := newTestApp()
	a.getenv = func(k string) string { return env[k] }
	_, theirs := openTerminal(t, 72)
	if s := a.screenOf(theirs); !s.terminal || s.width != 72 || !s.colour {
		t.Errorf("a terminal: %+v", s)
	}
	if s := a.screenOf(&strings.Builder{}); s.terminal || s.width != 0 || s.colour {
		t.Errorf("%+v", s)
	}
	for _, test := range []struct {
		name, value string
		unicode     bool
	}{{"LANG", "de_DE.UTF-8", true}, {"LC_CTYPE", "C", false}, {"LC_ALL", "C.utf8", true}} {
		env[test.name] = test.value
		if got := a.screenOf(os.Stdin).unicode; got != test.unicode {
			t.Errorf("%s: %t", test.name, got)
		}
	}
}
