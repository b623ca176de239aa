package nft

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// Bounds that the kernel sets.
const (
	maxPrefix  = 127 // linux/netfilter/nf_log.h: NF_LOG_PREFIXLEN - 1
	maxComment = 127 // libnftnl: NFTNL_UDATA_COMMENT_MAXLEN - 1
	maxIfName  = 15  // linux/if.h: IFNAMSIZ - 1
	maxGroups  = 64  // of a class; more buys nothing
	maxCPUs    = 8192
)

// check finds what cannot be made into rules, before anything is touched. It gives the
// Spec with its name made fit for comments, and with all its hooks.
func (s Spec) check() (Spec, error) {
	wrong := func(format string, args ...any) (Spec, error) {
		return s, fmt.Errorf("nft: capture %.8s: "+format, append([]any{s.ID}, args...)...)
	}
	if len(s.ID) < 8 || len(s.ID) > 64 || strings.Trim(s.ID, "0123456789abcdef") != "" {
		return s, fmt.Errorf("nft: %q is no capture id: 8 to 64 lower-case hexadecimal digits", s.ID)
	}
	if len(s.Hooks) == 0 {
		return wrong("no hook is given")
	}
	// In a log prefix, nft takes what stands after $ for a variable's name.
	if len(s.Prefix) > maxPrefix || strings.ContainsFunc(s.Prefix, unfit) || strings.Contains(s.Prefix, "$") {
		return wrong("the log prefix %q is longer than %d bytes or has more than plain printable characters without $", s.Prefix, maxPrefix)
	}
	if len(s.Offloaded) > 0 {
		if len(s.Interfaces) > 0 || !slices.Contains(s.Hooks, "prerouting") {
			return wrong("offloaded interfaces are for captures at prerouting of all interfaces")
		}
		if !slices.Contains(s.Hooks, "ingress") {
			s.Hooks = append(slices.Clone(s.Hooks), "ingress")
		}
	}
	for _, h := range s.Hooks {
		atNetdev := slices.Contains(netdevHooks, h)
		groups := s.Stamped
		if h == "output" || h == "postrouting" {
			groups = s.Clocked
		}
		switch {
		case !atNetdev && !slices.Contains(inetHooks, h):
			return wrong("no hook is called %q: there are %s", h, strings.Join(append(slices.Clone(inetHooks), netdevHooks...), ", "))
		case atNetdev && len(s.devices()) == 0:
			return wrong("hook %s needs interfaces", h)
		case len(groups) == 0 || len(groups) > maxGroups:
			return wrong("hook %s has %d NFLOG groups: 1 to %d are possible", h, len(groups), maxGroups)
		}
	}
	if s.CPUs < 0 || s.CPUs > maxCPUs {
		return wrong("%d CPUs: 0 to %d are possible", s.CPUs, maxCPUs)
	}
	for _, name := range slices.Concat(s.Interfaces, s.Offloaded) {
		stem := strings.TrimSuffix(name, "*")
		if name == "" || len(stem) > maxIfName || strings.ContainsFunc(stem, unfit) || strings.ContainsAny(stem, "*/: ") {
			return wrong("%q is no interface name: 1 to %d characters, without /, : and space, with a * at the end for any rest", name, maxIfName)
		}
	}
	for _, flow := range s.Exclude {
		if _, err := flow.Rules(inet.link()); err != nil {
			return wrong("exclude: %w", err)
		}
	}
	s.Name = fitName(s)
	return s, nil
}

// unfit tells characters that nft's quoted strings cannot carry, or that a terminal
// should not be sent.
func unfit(r rune) bool { return r > unicode.MaxASCII || !unicode.IsPrint(r) || r == '"' || r == '\\' }

// fitName gives the capture's name with unfit characters replaced, and short enough for
// the longest comment.
func fitName(s Spec) string {
	name := strings.Map(func(r rune) rune {
		if unfit(r) {
			return '_'
		}
		return r
	}, s.Name)
	longest := len(comment(Spec{ID: s.ID, Name: "x"}, "on to a VRF's device, seen there")) - 1
	return name[:min(len(name), maxComment-longest)]
}
