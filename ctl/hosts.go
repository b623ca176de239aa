package ctl

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"capd/ctl/remote"
)

// box is another machine that a run of capctl is for.
type box struct {
	label  string // its name in tables, messages and folders
	dialer *remote.Dialer
	many   bool   // other boxes do the same
	shared string // start: a name for the captures of all boxes, where none is given; "" = this box alone
	name   string // start: the name that the capture got
}

// Annotations that say how a command goes with -H.
const (
	hostsAnnotation = "capctl_hosts"
	hostsNever      = "never" // it concerns this machine alone
	hostsItself     = "self"  // it speaks to several boxes by itself
)

// patientQuick is the patience with a box behind ssh: a person may have to touch a key or
// type a password first.
const patientQuick = 2 * time.Minute

// onHosts makes a command, and those below it, heed -H: on one box it runs as on this
// machine, on several it runs on all at once.
func (a *app) onHosts(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		a.onHosts(sub)
	}
	here := cmd.RunE
	if here == nil {
		return
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(a.hosts) == 0 || a.box != nil {
			return here(cmd, args)
		}
		how := cmd.Annotations[hostsAnnotation]
		if how == hostsNever {
			return usagef("%s works on this machine: -H makes no sense with it", cmd.CommandPath()).
				withHint("capctl -H HOST download fetches files from a box")
		}
		boxes, err := a.boxes()
		if err != nil {
			return err
		}
		if len(boxes) == 1 {
			a.enter(boxes[0])
			return here(cmd, args)
		}
		if how == hostsItself {
			return here(cmd, args)
		}
		return a.onAll(cmd, boxes)
	}
}

// never marks a command as one of this machine.
func never(cmd *cobra.Command) *cobra.Command { return annotate(cmd, hostsNever) }

func annotate(cmd *cobra.Command, how string) *cobra.Command {
	if cmd.Annotations == nil {
		cmd.Annotations = map[string]string{}
	}
	cmd.Annotations[hostsAnnotation] = how
	return cmd
}

// boxes are those that -H names.
func (a *app) boxes() ([]*box, error) {
	file, err := remote.ReadFile(remote.DefaultFile(a.getenv))
	if err != nil {
		return nil, usagef("the hosts file: %v", err)
	}
	hosts, err := file.Expand(a.hosts)
	if err != nil {
		return nil, usagef("--host: %v", err).withHint("-H [user@]host[:port], or -H @group with a line \"group: host...\" in %s", file.Path)
	}
	var command []string
	if text := a.getenv("CAPCTL_SSH"); text != "" {
		command = strings.Fields(text)
	}
	var there []string
	if a.socketGiven {
		there = append(there, "--socket", a.socket)
	}
	if a.netns != "" {
		there = append(there, "--netns", a.netns)
	}
	labels := remote.Labels(hosts)
	boxes := make([]*box, len(hosts))
	for i, h := range hosts {
		boxes[i] = &box{label: labels[i], dialer: &remote.Dialer{Host: h, Command: command, Args: there}}
	}
	return boxes, nil
}

// enter makes this run one for a box. The SSH connection that matters then is the one by
// which capctl reaches the box.
func (a *app) enter(b *box) {
	a.box = b
	a.timing.quick = max(a.timing.quick, patientQuick)
	getenv := a.getenv
	a.getenv = func(name string) string {
		if name == "SSH_CONNECTION" {
			ctx, cancel := context.WithTimeout(context.Background(), patientQuick)
			defer cancel()
			return b.dialer.Connection(ctx)
		}
		return getenv(name)
	}
}

// completeHost completes hosts and groups of the hosts file.
func (a *app) completeHost(_ *cobra.Command, _ []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
	file, err := remote.ReadFile(remote.DefaultFile(a.getenv))
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var found []cobra.Completion
	for _, g := range file.Groups() {
		if name := "@" + g; strings.HasPrefix(name, word) {
			found = append(found, cobra.CompletionWithDesc(name, "group"))
		}
	}
	if len(found) > 0 && strings.HasPrefix("@all", word) {
		found = append(found, cobra.CompletionWithDesc("@all", "every host of "+file.Path))
	}
	hosts, err := file.Expand([]string{"@all"})
	if err != nil {
		hosts = nil
	}
	for _, h := range hosts {
		if name := h.String(); strings.HasPrefix(name, word) {
			found = append(found, name)
		}
	}
	return found, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
}
