package ctl

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"capd/ctl/client"
	"capd/ctl/wire"
)

// completionPatience is how long a shell is kept waiting for capd at a press of TAB, and
// for those behind ssh, of which the first completionBoxes are asked.
const (
	completionPatience    = 2 * time.Second
	completionPatienceSSH = 3 * time.Second
	completionBoxes       = 32
)

// many is the number of captures that a command takes which takes any.
const many = 1 << 30

// completionCommand is capctl completion.
func (a *app) completionCommand() *cobra.Command {
	shells := []string{"bash", "zsh", "fish", "powershell"}
	return &cobra.Command{
		Use:     "completion SHELL",
		GroupID: groupOther,
		Short:   "completion for bash, zsh, fish or powershell",
		Long: `completion prints a script that completes capctl's commands and flags, and asks capd for
captures, destinations and interfaces; with -H these boxes, where ssh needs no password:
what all of them have that answer in time. Load it into the shell that runs, or put it
where the shell looks for such scripts.`,
		Example: `  source <(capctl completion bash)                                   this bash
  capctl completion bash > /etc/bash_completion.d/capctl             every bash
  capctl completion zsh > "${fpath[1]}/_capctl"                      every zsh
  capctl completion fish > ~/.config/fish/completions/capctl.fish    every fish
  capctl completion powershell | Out-String | Invoke-Expression      this PowerShell`,
		ValidArgs: shells,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := exactly("SHELL")(cmd, args); err != nil {
				return err
			}
			if err := oneOf(args[0], shells); err != nil {
				return usagef("capctl completion: %v", err)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				if err := root.GenBashCompletionV2(a.stdout, true); err != nil {
					return err
				}
				_, err := io.WriteString(a.stdout, bashAlone)
				return err
			case "zsh":
				return root.GenZshCompletion(a.stdout)
			case "fish":
				return root.GenFishCompletion(a.stdout, true)
			}
			return root.GenPowerShellCompletionWithDesc(a.stdout)
		},
	}
}

// bashAlone makes cobra's script do without the package bash-completion, which small
// routers lack: it asks that for the words of the line, and for files.
const bashAlone = `
if ! declare -F _get_comp_words_by_ref >/dev/null 2>&1; then
__capctl_init_completion()
{
    local line=${COMP_LINE:0:COMP_POINT}
    read -ra words <<<"$line"
    if [[ $line == *[[:space:]] ]]; then
        words+=("")
    fi
    cword=$((${#words[@]} - 1))
    cur=${words[cword]} prev=${words[cword - 1]} COMPREPLY=()
}
fi
if ! declare -F _filedir >/dev/null 2>&1; then
_filedir()
{
    local kind=-f IFS=$'\n'
    if [[ ${1:-} == -d ]]; then
        kind=-d
    fi
    compopt -o filenames 2>/dev/null
    COMPREPLY+=($(compgen "$kind" -- "$cur"))
}
fi
`

// noFiles completes nothing, where the shell would otherwise offer files.
var noFiles = cobra.NoFileCompletions

// completeCapture completes ids and names of captures that a command can be used on; nil
// wants all.
func (a *app) completeCapture(most int, wants func(wire.Capture) bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var offers [][]cobra.Completion
		for _, captures := range ask(a, cmd, func(ctx context.Context, capd *client.Client) ([]wire.Capture, error) { return capd.List(ctx, true) }) {
			offers = append(offers, a.offerCaptures(captures, args, word, wants))
		}
		return common(offers), cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	}
}

// offerCaptures are the ids and names of one capd's captures that complete a word, without
// those that stand in args already.
func (a *app) offerCaptures(captures []wire.Capture, args []string, word string, wants func(wire.Capture) bool) (found []cobra.Completion) {
	ids := shortIDs(captures)
	names := map[string]bool{}
	add := func(text, about string) {
		if strings.HasPrefix(text, word) && !slices.Contains(args, text) {
			found = append(found, cobra.CompletionWithDesc(text, about))
		}
	}
	for i, c := range captures {
		if wants != nil && !wants(c) {
			names[c.Name] = true // the name means this one, and not an older one
			continue
		}
		about := clean(strings.Join(strings.Fields(c.Status+" "+c.Name+" "+filterText(c.StartRequest)), " "))
		about = fmt.Sprintf("%s, %s old", about, shortAge(a.now().Sub(c.Submitted.Time)))
		if len(word) > shortID && strings.HasPrefix(c.ID, word) {
			add(c.ID, about)
		} else {
			add(ids[i], about)
		}
		if c.Name != "" && clean(c.Name) == c.Name && !names[c.Name] {
			names[c.Name] = true
			add(c.Name, about)
		}
	}
	return found
}

// ask puts a question to the capd here, or to those of the boxes that -H names, all at
// once and where ssh gets there without a question of its own. It gives the answers of
// those that answered in time.
func ask[T any](a *app, cmd *cobra.Command, question func(context.Context, *client.Client) (T, error)) []T {
	patience, asked := completionPatience, []*client.Client{a.client()}
	if len(a.hosts) > 0 && a.box == nil {
		patience, asked = completionPatienceSSH, nil
		// Not through cobra's PersistentPreRunE: completion does not run it.
		a.socketGiven = cmd.Flags().Changed("socket")
		boxes, err := a.boxes()
		if err != nil {
			return nil
		}
		for _, b := range boxes[:min(len(boxes), completionBoxes)] {
			if len(b.dialer.Command) == 0 {
				b.dialer.Command = []string{"ssh"}
			}
			b.dialer.Command = slices.Concat(b.dialer.Command, []string{"-o", "BatchMode=yes"})
			asked = append(asked, a.clientOf(b))
		}
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), patience)
	defer cancel()
	answers := make([]T, len(asked))
	errs := make([]error, len(asked))
	var tasks sync.WaitGroup
	for i, capd := range asked {
		tasks.Go(func() { answers[i], errs[i] = question(ctx, capd) })
	}
	tasks.Wait()
	var told []T
	for i, err := range errs {
		if err == nil {
			told = append(told, answers[i])
		}
	}
	return told
}

// common gives what every box offers, as the first describes it: a command for several
// boxes is right where each of them knows what it names.
func common(offers [][]cobra.Completion) (all []cobra.Completion) {
	text := func(c cobra.Completion) string { before, _, _ := strings.Cut(c, "\t"); return before }
	for n, offer := range offers {
		if n == 0 {
			all = offer
			continue
		}
		all = slices.DeleteFunc(all, func(c cobra.Completion) bool {
			return !slices.ContainsFunc(offer, func(other cobra.Completion) bool { return text(other) == text(c) })
		})
	}
	return all
}

// completeDestination completes the names of profiles.
func (a *app) completeDestination(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.destinations(cmd, nil, word)
}

func (a *app) destinations(cmd *cobra.Command, _ []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var offers [][]cobra.Completion
	for _, list := range ask(a, cmd, func(ctx context.Context, capd *client.Client) ([]wire.Destination, error) {
		return capd.Destinations(ctx)
	}) {
		var offer []cobra.Completion
		for _, d := range list {
			if strings.HasPrefix(d.Name, word) {
				offer = append(offer, cobra.CompletionWithDesc(d.Name, clean(d.Type+" "+d.URL)))
			}
		}
		offers = append(offers, offer)
	}
	return common(offers), cobra.ShellCompDirectiveNoFileComp
}

// completeRequest completes the values of the flags of start and explain.
func (a *app) completeRequest(cmd *cobra.Command) {
	fixed := func(words ...string) cobra.CompletionFunc {
		return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
	}
	for flag, complete := range map[string]cobra.CompletionFunc{
		"destination":  a.destinations,
		"interface":    a.completeInterface,
		"hook":         a.completeHooks,
		"type":         fixed(wire.TypeFull, wire.TypeSimple),
		"sample-by":    fixed(wire.SampleByPacket, wire.SampleByFlow),
		"on-overload":  fixed(wire.OverloadSample, wire.OverloadStop),
		"format":       fixed(wire.FormatPcapng, wire.FormatPcap),
		"link-type":    fixed(wire.LinkAuto, wire.LinkEthernet, wire.LinkRaw, wire.LinkSLL2),
		"time-limit":   fixed("30s", "5m", "1h"),
		"byte-limit":   fixed("10mb", "100mb", "1gb"),
		"name":         noFiles,
		"packet-limit": noFiles,
		"snaplen":      noFiles,
		"sample":       noFiles,
		"label":        noFiles,
		"segment-size": noFiles,
		"segment-time": noFiles,
		"ring":         noFiles,
	} {
		_ = cmd.RegisterFlagCompletionFunc(flag, complete) // fails only for a flag that is not there: a test looks
	}
}

// completeInterface completes the interfaces of capd's namespace, as it tells them, or
// those of this machine where capd does not answer.
func (a *app) completeInterface(cmd *cobra.Command, _ []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
	statuses := a.statuses(cmd)
	if len(statuses) == 0 && len(a.hosts) == 0 {
		statuses = []wire.Status{{Interfaces: a.localInterfaces()}}
	}
	var offers [][]cobra.Completion
	for _, status := range statuses {
		var offer []cobra.Completion
		for _, name := range status.Interfaces {
			if strings.HasPrefix(name, word) && clean(name) == name {
				offer = append(offer, name)
			}
		}
		offers = append(offers, offer)
	}
	return common(offers), cobra.ShellCompDirectiveNoFileComp
}

func (a *app) statuses(cmd *cobra.Command) []wire.Status {
	return ask(a, cmd, func(ctx context.Context, capd *client.Client) (wire.Status, error) { return capd.Status(ctx) })
}

// localInterfaces are those of this machine.
func (a *app) localInterfaces() (names []string) {
	entries, err := os.ReadDir(a.devices)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		// Beside the interfaces lie files of drivers, such as bonding_masters.
		if !e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names
}

// completeHooks completes a list of hooks, the last word of it. Such as the box's kernel
// lacks are left out, where capd tells.
func (a *app) completeHooks(cmd *cobra.Command, _ []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
	statuses := a.statuses(cmd) // without an answer all are offered
	before := word[:strings.LastIndexByte(word, ',')+1]
	given := strings.Split(before, ",")
	var found []cobra.Completion
	for _, h := range hooks {
		lacks := func(s wire.Status) bool { can, told := s.Features[h]; return told && !can }
		if slices.ContainsFunc(statuses, lacks) {
			continue
		}
		if !slices.Contains(given, h) && strings.HasPrefix(before+h, word) {
			found = append(found, before+h)
		}
	}
	return found, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder | cobra.ShellCompDirectiveNoSpace
}
