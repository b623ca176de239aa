// Package remote reaches the capd of another box through the user's own ssh and capctl
// dial-stdio there, and knows the file in which the user keeps the names of boxes.
package remote

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Host is one box as the user names it: [user@]host[:port].
type Host struct {
	User string
	Name string // an address, a name, or an alias of ~/.ssh/config
	Port uint16 // 0: ssh's choice
}

// ParseHost reads [user@]host[:port]; an IPv6 address with a port stands in brackets.
func ParseHost(text string) (Host, error) {
	var h Host
	rest := text
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		h.User, rest = rest[:i], rest[i+1:]
		if h.User == "" {
			return h, fmt.Errorf("%q has no user before its @", text)
		}
	}
	h.Name = rest
	if strings.Count(rest, ":") == 1 || strings.HasPrefix(rest, "[") {
		name, port, err := net.SplitHostPort(rest)
		if err != nil && strings.HasSuffix(rest, "]") {
			name, port, err = strings.Trim(rest, "[]"), "", nil
		}
		if err != nil {
			return h, fmt.Errorf("%q is not [user@]host[:port]", text)
		}
		h.Name = name
		if port != "" {
			n, err := strconv.ParseUint(port, 10, 16)
			if err != nil || n == 0 {
				return h, fmt.Errorf("%q: %q is not a port", text, port)
			}
			h.Port = uint16(n)
		}
	}
	// Colons and brackets are an address's, and nothing else's.
	if strings.ContainsAny(h.Name, ":[]") {
		if _, err := netip.ParseAddr(h.Name); err != nil {
			return h, fmt.Errorf("%q is not [user@]host[:port]: %q is no address", text, h.Name)
		}
	}
	// What begins with a dash ssh would take for an option.
	if h.Name == "" || strings.HasPrefix(h.Name, "-") || strings.HasPrefix(h.User, "-") || strings.ContainsAny(text, " \t\n'\"\\/,") {
		return h, fmt.Errorf("%q is not [user@]host[:port]", text)
	}
	return h, nil
}

// String gives the host as ParseHost reads it.
func (h Host) String() string {
	text := h.Name
	if h.Port != 0 {
		text = net.JoinHostPort(h.Name, strconv.Itoa(int(h.Port)))
	}
	if h.User != "" {
		text = h.User + "@" + text
	}
	return text
}

// Labels gives each host the shortest name that tells it from the others: its name, else
// all of it. None leads out of a folder of that name.
func Labels(hosts []Host) []string {
	times := map[string]int{}
	for _, h := range hosts {
		times[h.Name]++
	}
	labels := make([]string, len(hosts))
	for i, h := range hosts {
		labels[i] = h.Name
		if times[h.Name] > 1 {
			labels[i] = h.String()
		}
	}
	return labels
}

// File is the user's hosts file.
//
//	# group: members, which are hosts or other groups
//	edge:    edge-1 edge-2 ops@edge-3:2222
//	core:    core-1 core-2
//	berlin:  @edge core-1
//
// A line that begins with space goes on with the group before. @all is everything in it.
type File struct {
	Path   string
	groups map[string][]string
	order  []string
}

// DefaultFile is where the hosts file lies: CAPCTL_HOSTS, or capctl/hosts in the user's
// folder for configuration (XDG_CONFIG_HOME, ~/.config).
func DefaultFile(getenv func(string) string) string {
	if path := getenv("CAPCTL_HOSTS"); path != "" {
		return path
	}
	dir := getenv("XDG_CONFIG_HOME")
	if dir == "" {
		dir = filepath.Join(getenv("HOME"), ".config")
	}
	return filepath.Join(dir, "capctl", "hosts")
}

// ReadFile reads a hosts file. One that is not there is as good as an empty one.
func ReadFile(path string) (*File, error) {
	f := &File{Path: path, groups: map[string][]string{}}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return nil, err
	}
	if err := f.parse(string(text)); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

func (f *File) parse(text string) error {
	group := ""
	for n, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		if strings.TrimSpace(line) == "" {
			continue
		}
		members := line
		if line[0] != ' ' && line[0] != '\t' {
			name, after, ok := strings.Cut(line, ":")
			if name = strings.TrimSpace(name); name == "all" {
				return fmt.Errorf("line %d: @all is every host in the file and cannot be set: give the group another name", n+1)
			}
			if !ok || name == "" || strings.ContainsAny(name, "@ \t") {
				return fmt.Errorf("line %d: %q is not of the form GROUP: HOST", n+1, strings.TrimSpace(line))
			}
			if group = name; !slices.Contains(f.order, group) {
				f.order = append(f.order, group)
			}
			members = after
		}
		if group == "" {
			return fmt.Errorf("line %d goes on with a group, and there is none before", n+1)
		}
		for _, m := range strings.Fields(members) {
			if !strings.HasPrefix(m, "@") {
				if _, err := ParseHost(m); err != nil {
					return fmt.Errorf("line %d: %w", n+1, err)
				}
			}
			f.groups[group] = append(f.groups[group], m)
		}
	}
	return nil
}

// Groups are the names of the groups, in the file's order, without @.
func (f *File) Groups() []string { return f.order }

// Expand turns hosts and @groups into hosts, each once, in order.
func (f *File) Expand(names []string) ([]Host, error) {
	var hosts []Host
	var walk func(name string, within []string) error
	walk = func(name string, within []string) error {
		group, isGroup := strings.CutPrefix(name, "@")
		if !isGroup {
			h, err := ParseHost(name)
			if err == nil && !slices.Contains(hosts, h) {
				hosts = append(hosts, h)
			}
			return err
		}
		if slices.Contains(within, group) {
			return fmt.Errorf("@%s is a member of itself in %s", group, f.Path)
		}
		members, ok := f.groups[group]
		if group == "all" {
			ok = len(f.order) > 0
			for _, g := range f.order {
				members = append(members, "@"+g)
			}
		}
		if slices.Contains(f.order, group) && len(members) == 0 {
			return fmt.Errorf("the group @%s in %s has no hosts", group, f.Path)
		}
		if !ok {
			return fmt.Errorf("there is no group @%s in %s", group, f.Path)
		}
		for _, m := range members {
			if err := walk(m, append(within, group)); err != nil {
				return err
			}
		}
		return nil
	}
	for _, name := range names {
		if err := walk(name, nil); err != nil {
			return nil, err
		}
	}
	return hosts, nil
}
