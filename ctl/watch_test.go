package ctl

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"capd/ctl/wire"
	"capd/testbed"
)

// terminal is a real terminal of a real program: tmux keeps its screen.
type terminal struct {
	t      *testing.T
	socket string
}

func newTerminal(t *testing.T, columns, rows int, env []string, command ...string) *terminal {
	t.Helper()
	testbed.NeedCommand(t, "tmux")
	term := &terminal{t, filepath.Join(t.TempDir(), "tmux")}
	args := []string{"-S", term.socket, "-f", "/dev/null", "-u", "new-session", "-d", "-x", fmt.Sprint(columns), "-y", fmt.Sprint(rows)}
	for _, e := range env {
		args = append(args, "-e", e)
	}
	// The shell's last line tells that capctl has left.
	cmd := exec.Command("tmux", append(args, "sh", "-c", `"$@"; echo "left with $?"; stty -a; exec sleep 600`, "sh")...)
	cmd.Args = append(cmd.Args, command...)
	cmd.Env = append(os.Environ(), "TERM=xterm-256color", "LANG=C.UTF-8", "LC_ALL=C.UTF-8", "TMUX=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tmux: %v: %s", err, out)
	}
	t.Cleanup(func() { term.tmux("kill-server") })
	term.tmux("set-option", "-g", "status", "off")
	term.tmux("resize-window", "-x", fmt.Sprint(columns), "-y", fmt.Sprint(rows))
	return term
}

func (term *terminal) tmux(args ...string) string {
	term.t.Helper()
	out, err := exec.Command("tmux", append([]string{"-S", term.socket}, args...)...).CombinedOutput()
	if err != nil {
		term.t.Fatalf("tmux %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (term *terminal) keys(keys ...string) { term.tmux(append([]string{"send-keys"}, keys...)...) }

// await waits until the screen satisfies ok and gives its lines.
func (term *terminal) await(what string, ok func(screen string) bool) []string {
	term.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		text := term.tmux("capture-pane", "-p")
		if ok(text) {
			return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		}
		if time.Now().After(deadline) {
			term.t.Fatalf("the screen does not show %s:\n%s", what, text)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func has(texts ...string) func(string) bool {
	return func(screen string) bool {
		for _, text := range texts {
			if !strings.Contains(screen, text) {
				return false
			}
		}
		return true
	}
}

func pingRequest(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ping.json")
	put(t, path, []byte(`{"filter_v1": {"protocol": 1}}`))
	return path
}

// The whole view on a terminal of 80×24 and others: rates of real packets, the keys, a
// restart of capd, the terminal left as it was.
func TestWatchScreen(t *testing.T) {
	testbed.NeedRoot(t)
	ns := testbed.NewNS(t)
	d := testbed.StartDaemon(t, ns, "[daemon]\nhost = \"edge-1\"\n")
	d.Must("-q", "start", "-n", "first", "-t", "10m", "-c", "100000", "-f", pingRequest(t))
	d.Must("-q", "start", "-n", "second", "-t", "20m", "-f", pingRequest(t))
	ping := exec.Command("ip", "netns", "exec", ns, "ping", "-q", "-i", "0.02", "127.0.0.1")
	if err := ping.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ping.Process.Kill(); _ = ping.Wait() })

	term := newTerminal(t, 80, 24, nil, d.Command("watch").Args...)
	running := func(text string) bool {
		return has("capd edge-1  2 running", "first", "second", "LAST MINUTE", "▸ ", "q quit", "time ", "/20m", "ring ", " kept here")(text) &&
			strings.ContainsAny(text, "▃▄▅▆▇█") && strings.Contains(text, "B ") && !strings.Contains(text, "  -  ")
	}
	lines := term.await("two captures with rates", running)
	if len(lines) != 24 || strings.Contains(lines[0], "not answer") {
		t.Errorf("%d lines:\n%s", len(lines), strings.Join(lines, "\n"))
	}
	t.Logf("80×24:\n%s", strings.Join(lines, "\n"))

	// Another size, larger and then very small; nothing wraps, nothing stays behind.
	term.tmux("resize-window", "-x", "132", "-y", "40")
	lines = term.await("the larger screen", func(text string) bool {
		rows := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		return running(text) && len(rows) == 40 && strings.Contains(text, "FILTER") && strings.Contains(rows[39], "q quit")
	})
	if n := strings.Count(strings.Join(lines, "\n"), "second"); n != 2 { // in the table and below it
		t.Errorf("%d times in:\n%s", n, strings.Join(lines, "\n"))
	}
	term.tmux("resize-window", "-x", "40", "-y", "8")
	term.await("the small screen", func(text string) bool {
		return has("first", "second", "j k choose")(text) && !strings.Contains(text, "ring ")
	})
	term.tmux("resize-window", "-x", "80", "-y", "24")
	term.await("80×24 again", running)

	// Keys: choose, details, scroll, help.
	term.keys("j")
	term.await("the other capture below", has("first (", "/10m"))
	term.keys("Enter")
	term.await("everything about it", has("Packets asked for", "filter_v1", "Limits", "Enter back"))
	term.keys("G")
	term.await("its end", has("Files (1)", "0001.pcapng"))
	term.keys("Escape")
	term.await("the table", has("LAST MINUTE"))
	term.keys("?")
	term.await("the help", has("the captures go on"))
	term.keys("?")

	// Stop: no, then yes.
	term.keys("s")
	term.await("a question", has("stop first (", "? y or n"))
	term.keys("n")
	term.await("the keys", has("q quit"))
	if c := d.Show("first"); c.Status != wire.StatusRunning {
		t.Errorf("stopped without a yes: %s", c.Status)
	}
	term.keys("s")
	term.await("a question", has("? y or n"))
	term.keys("y")
	term.await("one that runs", has("stopped first (", "1 running", "complete"))
	if c := d.Show("first"); c.StopReason != wire.StopRequested {
		t.Errorf("%s", c.StopReason)
	}

	// capd restarts.
	d.Kill()
	term.await("that capd is away", has("capd does not answer, trying again", "second"))
	d.Start()
	term.await("that it is back", func(text string) bool {
		return !strings.Contains(text, "not answer") && strings.Contains(text, "0 running")
	})

	// The terminal is left as it was.
	term.keys("q")
	lines = term.await("the end", has("left with 0", "icanon"))
	if text := strings.Join(lines, "\n"); strings.Contains(text, "LAST MINUTE") || strings.Contains(text, "-icanon") || strings.Contains(text, "-echo ") {
		t.Errorf("left behind:\n%s", text)
	}
}

// Ctrl-Z gives the shell its terminal back, and fg the view; so does a stop that cannot be
// caught. Where there is no shell Ctrl-Z changes nothing.
func TestWatchSuspended(t *testing.T) {
	testbed.NeedRoot(t)
	testbed.NeedCommand(t, "bash")
	d := testbed.StartDaemon(t, testbed.NewNS(t), "[daemon]\nhost = \"edge-1\"\n")
	d.Must("-q", "start", "-n", "first", "-t", "10m", "-f", pingRequest(t))
	watch := d.Command("watch")
	term := newTerminal(t, 80, 24, nil, "bash", "--norc", "-i")
	type_ := func(line string) { term.keys("-l", line); term.keys("Enter") }
	type_("PS1='shell> '; clear; echo ready | tr a-z A-Z")
	term.await("the shell", has("READY\nshell>"))
	type_("'" + strings.Join(watch.Args, "' '") + "'")
	view := func(text string) bool {
		return has("capd edge-1  1 running", "first", "q quit")(text) && !strings.Contains(text, "shell>")
	}
	term.await("the view", view)
	modes := func() string { return term.tmux("display-message", "-p", "#{alternate_on} #{cursor_flag}") }
	if got := modes(); got != "1 0\n" {
		t.Errorf("the view has not the whole screen: %q", got)
	}
	for _, size := range []string{"80", "100", "80"} { // and it finds the terminal of another size
		term.keys("C-z")
		term.await("the shell again", has("Stopped", "shell>"))
		if got := modes(); got != "0 1\n" {
			t.Errorf("the shell's screen is %q", got)
		}
		type_("clear; echo modes; stty -a | tr ' ' '\\n' | grep -x -e '-*icanon;*' -e '-*echo;*'")
		term.await("lines and echo", has("modes\nicanon\necho\nshell>"))
		term.tmux("resize-window", "-x", size, "-y", "24")
		type_("clear; fg")
		term.await("the view again", view)
		if got := modes(); got != "1 0\n" {
			t.Errorf("back again the screen is %q", got)
		}
	}
	term.keys("?")
	term.await("that keys still work", has("the captures go on"))
	term.keys("q")
	term.await("the view", view)
	term.keys("q")
	term.await("the end", has("shell>"))

	// Stopped from outside, the shell has its own modes meanwhile.
	type_("clear; '" + strings.Join(watch.Args, "' '") + "' & sleep 1; kill -STOP $!; clear; jobs; echo through")
	term.await("the shell again", has("Stopped", "\nthrough\n"))
	type_("fg")
	term.await("the view", view)
	term.keys("q")
	term.await("the end", has("shell>"))

	// Nobody could let it go on.
	term = newTerminal(t, 80, 24, nil, watch.Args...)
	term.await("the view", view)
	term.keys("C-z")
	term.keys("?")
	term.await("that it goes on", has("the captures go on"))
	term.keys("q", "q")
	term.await("the end", has("left with 0"))
}

// Without a terminal watch prints lines, with --json objects, until the capture ends.
func TestWatchLines(t *testing.T) {
	testbed.NeedRoot(t)
	ns := testbed.NewNS(t)
	d := testbed.StartDaemon(t, ns, "")
	d.Must("-q", "start", "-n", "some", "-c", "6", "-f", pingRequest(t))
	json1 := d.Command("watch", "--json", "some")
	out, err := json1.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	plainLines := d.Command("watch", "some")
	var text, complaints bytes.Buffer
	plainLines.Stdout, plainLines.Stderr = &text, &complaints
	for _, cmd := range []*exec.Cmd{json1, plainLines} {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	}
	var seen []wire.Capture
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var c wire.Capture
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			t.Fatalf("%v: %s", err, lines.Text())
		}
		if seen = append(seen, c); len(seen) == 1 {
			testbed.RunIn(t, ns, "ping", "-q", "-c", "3", "-i", "0.1", "127.0.0.1")
		}
	}
	for _, cmd := range []*exec.Cmd{json1, plainLines} {
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %s", err, &complaints)
		}
	}
	last := seen[len(seen)-1]
	if len(seen) < 2 || seen[0].Packets.Captured != 0 || last.Status != wire.StatusComplete || last.Packets.Captured != 6 {
		t.Errorf("%d objects, the last %+v", len(seen), last)
	}
	if !strings.Contains(text.String(), " some running: ") || !strings.Contains(text.String(), " some complete: ") {
		t.Errorf("lines: %s", &text)
	}
	if r := d.Capctl("watch", "nothing"); r.Code != 5 {
		t.Errorf("%+v", r)
	}
}

// No frame is larger than the terminal, whatever it shows and however small it is.
func TestWatchFits(t *testing.T) {
	now := time.Date(2026, 11, 23, 10, 5, 0, 0, time.UTC)
	for _, boxes := range []int{1, 3} {
		w := &watcher{app: newTestApp()}
		w.app.zone, w.app.now = time.UTC, func() time.Time { return now }
		for n := range boxes {
			s := &station{label: strings.Repeat("a-box-", n+1), asked: true}
			if boxes == 1 {
				s.label = ""
			}
			for i, name := range []string{"running.json", "delivering.json", "complete.json", "lossy.json", "failed.json", "kept.json"} {
				c := &watched{Capture: readCapture(t, name), station: s, at: now}
				c.ID = fmt.Sprintf("%d%d%s", n, i, c.ID[2:])
				for r := range 70 {
					c.packets, c.bytes = sample(c.packets, float64(r*r*1000), 1), sample(c.bytes, float64(r*1e9), 1)
				}
				s.captures = append(s.captures, c)
			}
			s.status.Host, s.status.Spool = "漢字 edge\x1b[2J", wire.StatusSpool{Used: 1e9, Size: 1e10}
			if n == 1 {
				s.err, s.since = hangs(), now.Add(-time.Minute)
			}
			w.stations = append(w.stations, s)
		}
		for _, v := range []view{{}, {details: true}, {help: true}, {asking: w.stations[0].captures[0]}, {said: strings.Repeat("long ", 100)}, {details: true, scroll: 1000}} {
			for width := 10; width <= 140; width += 5 {
				for _, height := range []int{1, 2, 3, 5, 10, 24, 60} {
					for _, s := range []screen{{width: width, unicode: true, colour: true}, {width: width}} {
						w.view = v
						lines := w.frame(s, height, now)
						if len(lines) > height {
							t.Fatalf("%d lines of %d", len(lines), height)
						}
						for _, line := range lines {
							if n := columnsOf(stripped(line)); n > width {
								t.Fatalf("%dx%d %+v: %d columns: %q", width, height, v, n, line)
							}
							if strings.Contains(stripped(line), "\x1b") {
								t.Fatalf("a control sequence came through: %q", line)
							}
						}
					}
				}
			}
		}
	}
}

func TestKeysAndGraph(t *testing.T) {
	for in, want := range map[string]string{
		"jk": "j k", "\x1b[A\x1b[B": "up down", "\x1b": "esc", "\r": "enter", "\x1b[1;5C": "", " q": "space q", "\x03": "ctrl-c", "\x1aq": "ctrl-z q",
	} {
		if got := strings.Join(keysOf([]byte(in)), " "); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
	rates := []float64{0, 1, 2, 4}
	if got := (screen{}).sparkline(rates, minute); got != strings.Repeat(" ", 56)+".-+@" {
		t.Errorf("%q", got)
	}
	if got := (screen{unicode: true}).sparkline(rates, minute); !strings.HasSuffix(got, "▁▃▅█") {
		t.Errorf("%q", got)
	}
}
