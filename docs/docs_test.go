// Package docs_test holds the documentation to the programs: links lead somewhere, commands
// and flags exist, configuration and JSON are taken, scripts parse, tests that are named exist.
package docs_test

import (
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"capd/testbed"
)

func TestMain(m *testing.M) { os.Exit(testbed.Alone(m)) }

const root = ".."

// pages gives the Markdown files of the repository and their text.
func pages(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && path != root || d.Name() == "bin") {
			return filepath.SkipDir
		}
		if filepath.Ext(path) == ".md" {
			text, err := os.ReadFile(path)
			out[path] = string(text)
			return err
		}
		return nil
	})
	if err != nil || len(out) < 5 {
		t.Fatalf("%d pages: %v", len(out), err)
	}
	return out
}

// block is one fenced block of a page.
type block struct{ page, language, text string }

var fence = regexp.MustCompile("(?ms)^```(\\w+)\n(.*?)^```$")

func blocks(t *testing.T, language string) (out []block) {
	t.Helper()
	for page, text := range pages(t) {
		for _, m := range fence.FindAllStringSubmatch(text, -1) {
			if m[1] == language {
				out = append(out, block{page, m[1], m[2]})
			}
		}
	}
	if len(out) == 0 {
		t.Fatalf("no blocks of %s", language)
	}
	return out
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ +(.*)$`)
	noise   = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors are the fragments that a page's headings make.
func anchors(text string) map[string]bool {
	out := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(text, -1) {
		out[strings.ReplaceAll(noise.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")] = true
	}
	return out
}

func TestLinks(t *testing.T) {
	all := pages(t)
	checked := 0
	for page, text := range all {
		for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			if strings.Contains(m[1], "://") {
				continue // not ours to promise
			}
			checked++
			path, fragment, _ := strings.Cut(m[1], "#")
			target := page
			if path != "" {
				target = filepath.Join(filepath.Dir(page), path)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s: %v", page, m[1], err)
			} else if fragment != "" && !anchors(all[target])[fragment] {
				t.Errorf("%s links to %s: no such heading", page, m[1])
			}
		}
	}
	if checked < 10 {
		t.Errorf("%d links were found", checked)
	}
}

var (
	// capctl as a command: at a line's start, after sudo, a pipe, ssh HOST, $( or ;.
	command      = regexp.MustCompile(`(?:^|[|;(]|sudo|ssh \S+)\s*(capctl\s[^|;&>)#]*)`)
	variable     = regexp.MustCompile(`\$\w+|\$\([^)]*\)?`)
	continuation = regexp.MustCompile(`\\\n\s*`)
)

// Every capctl command in a shell block is one: with no daemon to be found it may fail, but
// not as a wrong use. Where it has an expression, that is compiled.
func TestCommands(t *testing.T) {
	capctl := filepath.Join(testbed.Build(t), "capctl")
	home := t.TempDir()
	if err := os.MkdirAll(filepath.Join(home, ".config/capctl"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, ".config/capctl/hosts"), []byte("core: edge-1 edge-2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, b := range blocks(t, "sh") {
		for line := range strings.Lines(continuation.ReplaceAllString(b.text, " ")) {
			for _, m := range command.FindAllStringSubmatch(quoteless(line), -1) {
				text := variable.ReplaceAllString(m[1], "0f8c0f8c")
				checked++
				// The shell splits words and takes quotes away, as it would for a reader.
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				cmd := exec.CommandContext(ctx, "sh", "-c", `capctl() { exec "$CAPCTL" --socket /nonexistent "$@"; }; `+restore(text))
				cmd.WaitDelay = time.Second
				cmd.Dir = t.TempDir()
				cmd.Env = append(os.Environ(), "CAPCTL="+capctl, "CAPCTL_SSH=false", "HOME="+home, "XDG_CONFIG_HOME=")
				out, _ := cmd.CombinedOutput()
				stays := ctx.Err() != nil // watch waits for capd to come
				cancel()
				if stays {
					continue
				}
				code := cmd.ProcessState.ExitCode()
				if code == 2 && strings.Contains(string(out), "no such file or directory") {
					continue // a file of the reader's
				}
				if code == 2 || code > 8 || code < 0 {
					t.Errorf("%s: %s: exit %d: %s", b.page, strings.TrimSpace(line), code, out)
				}
			}
		}
	}
	if checked < 12 {
		t.Errorf("%d commands were found", checked)
	}
}

// quoteless hides what stands between quotes from the search for a command's end.
func quoteless(line string) string {
	var b strings.Builder
	var quote rune
	for _, r := range line {
		switch {
		case quote == 0 && (r == '\'' || r == '"'):
			quote = r
		case r == quote:
			quote = 0
		case quote != 0 && strings.ContainsRune("|;&>)#$(", r):
			r += hidden
		}
		b.WriteRune(r)
	}
	return b.String()
}

// hidden is added to a character to hide it: the result is of a private use.
const hidden = 0xE000

func restore(text string) string {
	return strings.Map(func(r rune) rune {
		if r >= hidden && r < hidden+128 {
			return r - hidden
		}
		return r
	}, text)
}

// Every shell block is one that a shell can parse.
func TestShellParses(t *testing.T) {
	for _, b := range blocks(t, "sh") {
		cmd := exec.Command("bash", "-n")
		cmd.Stdin = strings.NewReader(b.text)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s\n%s", b.page, err, out, b.text)
		}
	}
}

func TestJSON(t *testing.T) {
	for _, b := range blocks(t, "json") {
		if !json.Valid([]byte(b.text)) {
			t.Errorf("%s: not JSON:\n%s", b.page, b.text)
		}
	}
}

var profileName = regexp.MustCompile(`(?m)^# /etc/capd/destinations\.d/(\w+)\.toml$`)

// Every piece of configuration is taken by capd: a profile in its folder, anything else as
// capd.toml.
func TestConfiguration(t *testing.T) {
	capd := filepath.Join(testbed.Build(t), "capd")
	for _, b := range blocks(t, "toml") {
		dir := t.TempDir()
		main := filepath.Join(dir, "capd.toml")
		name, text := main, b.text
		if m := profileName.FindStringSubmatch(b.text); m != nil {
			if err := os.WriteFile(main, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			name = filepath.Join(dir, "destinations.d", m[1]+".toml")
			if err := os.Mkdir(filepath.Dir(name), 0o755); err != nil {
				t.Fatal(err)
			}
		} else {
			// What a page's settings name is not here: the profiles of its other blocks.
			for _, known := range []string{"soc", "evidence", "vault"} {
				if strings.Contains(text, `"`+known+`"`) && !strings.Contains(text, "[destination."+known+"]") {
					text += "\n[destination." + known + "]\ntype = \"sftp\"\naddress = \"h\"\nuser = \"u\"\nprivate_key = \"/k\"\nknown_hosts = \"/h\"\n"
				}
			}
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(capd, "--check-config", "--config", main).CombinedOutput(); err != nil {
			t.Errorf("%s: %s\n%s", b.page, out, b.text)
		}
	}
}

var (
	namedTest = regexp.MustCompile("`(Test\\w+)`")
	aTest     = regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`)
)

// Tests that a page names exist.
func TestNamedTestsExist(t *testing.T) {
	there := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range aTest.FindAllSubmatch(text, -1) {
			there[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	for page, text := range pages(t) {
		for _, m := range namedTest.FindAllStringSubmatch(text, -1) {
			named++
			if !there[m[1]] {
				t.Errorf("%s names %s, which is not there", page, m[1])
			}
		}
	}
	if named < 10 {
		t.Errorf("%d tests are named", named)
	}
}
