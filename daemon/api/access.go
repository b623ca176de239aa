package api

import (
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os/user"
	"slices"
	"strconv"
	"sync"

	"capd/ctl/wire"
)

// Access names the groups whose members may use the socket. A group is looked up when
// a call is judged, so that one that is added later counts.
type Access struct {
	ControlGroup string            // may do all; "" = root only
	ViewGroup    string            // may read what holds no packets; "" = nobody
	Groups       map[string]Limits // by a group's name: may capture within limits, and view
}

// right is what a call takes.
type right uint8

const (
	rightView    right = iota // reads, and holds no packets
	rightStart                // begins something; a limited group's request must fit its limits, see grant.fit
	rightOwn                  // changes a capture or reads its packets: for a limited group, one of the caller's own
	rightControl              // anything else: never for a limited group
)

// grant is what a peer may do.
type grant struct {
	all  bool       // everything
	held []heldRole // else: within these limits, by the group's name
}

// heldRole is a peer's membership in a group with limits.
type heldRole struct {
	group  string
	limits Limits
}

// gate judges peers.
type gate struct {
	logger *slog.Logger

	mu     sync.Mutex
	access Access
	warned map[string]bool // groups that were told not to exist
}

func (g *gate) set(a Access) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.access, g.warned = a, map[string]bool{}
}

// judge gives what the peer may do, or says why it may not do what needs the right. does
// names that in words: "stop captures".
func (g *gate) judge(p Peer, needs right, does string) (grant, *wire.Error) {
	g.mu.Lock()
	access := g.access
	g.mu.Unlock()
	if p.UID == 0 || g.member(p, access.ControlGroup) {
		return grant{all: true}, nil
	}
	var out grant
	for _, name := range slices.Sorted(maps.Keys(access.Groups)) {
		if g.member(p, name) {
			out.held = append(out.held, heldRole{name, access.Groups[name]})
		}
	}
	if len(out.held) > 0 && needs != rightControl || needs == rightView && g.member(p, access.ViewGroup) {
		return out, nil
	}
	return grant{}, refusal(p, access, needs, does)
}

// refusal is the 403 of a peer without the right.
func refusal(p Peer, access Access, needs right, does string) *wire.Error {
	takes, join := "root", access.ControlGroup
	switch {
	case access.ControlGroup != "" && needs == rightView && access.ViewGroup != "":
		takes = fmt.Sprintf("root or the group %s or %s", access.ControlGroup, access.ViewGroup)
		join = access.ViewGroup
	case access.ControlGroup != "":
		takes = "root or the group " + access.ControlGroup
	case needs == rightView && access.ViewGroup != "":
		takes, join = "root or the group "+access.ViewGroup, access.ViewGroup
	}
	e := forbidden("", fmt.Sprintf("%s may not %s: that takes %s", p, does, takes), "run it as root, with sudo")
	if join != "" && p.User != "" {
		e.Hint = fmt.Sprintf("as root: usermod -aG %s %s; then log in again", join, p.User)
	}
	return e
}

// forbidden is the 403 of something that the caller may not do; field is the request's
// that asks for it, where there is one.
func forbidden(field, message, hint string) *wire.Error {
	return &wire.Error{Status: http.StatusForbidden, Code: wire.CodeForbidden, Field: field, Message: message, Hint: hint}
}

// owns says whether the grant covers a capture: all of them, or those that the peer's
// user asked for.
func (gr grant) owns(p Peer, c wire.Capture) bool { return gr.all || c.RequestedBy.UID == p.UID }

// member says whether the peer is in the named group. Nobody is in one that does not
// exist, which is told once.
func (g *gate) member(p Peer, name string) bool {
	if name == "" {
		return false
	}
	group, err := user.LookupGroup(name)
	if err != nil {
		g.mu.Lock()
		told := g.warned[name]
		g.warned[name] = true
		g.mu.Unlock()
		if !told {
			g.logger.Warn("nobody is in a group that cannot be found", "group", name, "err", err)
		}
		return false
	}
	gid, err := strconv.ParseUint(group.Gid, 10, 32)
	return err == nil && p.In(uint32(gid))
}
