package ctl

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"capd/testbed"
)

// Real shells complete commands, captures, interfaces and files with the scripts that
// capctl gives them; bash also without the package bash-completion.
func TestShells(t *testing.T) {
	testbed.NeedRoot(t)
	testbed.NeedCommand(t, "bash", "fish", "zsh")
	d := testbed.StartDaemon(t, testbed.NewNS(t), "")
	d.Must("-q", "start", "-n", "voip-drops", "-f", pingRequest(t))
	dir := t.TempDir()
	put(t, filepath.Join(dir, "request.json"), []byte("{}"))
	env := []string{"PATH=" + testbed.Build(t) + ":" + os.Getenv("PATH"), "CAPD_SOCKET=" + d.Socket, "HOME=" + dir}
	lines := map[string]string{
		"capctl show voi": "voip-drops", "capctl compl": "completion", "capctl start -i ": "lo", "capctl start --hook prer": "prerouting", "capctl start -f req": "request.json",
	}
	for line, want := range lines {
		cmd := exec.Command("fish", "-c", `capctl completion fish | source; complete -C $argv[1]`, line)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), env...)
		out, err := cmd.CombinedOutput()
		first, _, _ := strings.Cut(string(out), "\n")
		if first, _, _ = strings.Cut(first, "\t"); err != nil || first != want {
			t.Errorf("fish: %q: %v: %q, want %q", line, err, out, want)
		}
	}
	// The others complete only at a terminal.
	for shell, begin := range map[string][]string{
		"bash": {"bash", "--norc", "-i"},
		"zsh":  {"zsh", "-f"},
	} {
		term := newTerminal(t, 80, 24, env, begin...)
		// A PATH given to tmux does not come through everywhere.
		setUp := "unset HISTFILE; PATH='" + testbed.Build(t) + "':$PATH; cd '" + dir + "'; source <(capctl completion " + shell + "); PS1='ready> '; clear"
		if shell == "zsh" {
			setUp = "autoload -Uz compinit; compinit -u; " + setUp
		}
		term.keys("-l", setUp)
		term.keys("Enter")
		term.await(shell, func(text string) bool { return strings.HasPrefix(text, "ready>") })
		for line, want := range lines {
			term.keys("-l", line+"\t")
			before := line[:strings.LastIndexByte(line, ' ')+1]
			term.await("what "+shell+" completes", has("ready> "+before+want))
			term.keys("C-u")
			term.await("an empty line", func(text string) bool { return !strings.Contains(text, before) })
		}
	}
}
