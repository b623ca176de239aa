package api

import (
	"fmt"
	"log/slog"
	"net/http"
	"os/user"
	"strconv"
	"sync"

	"capd/ctl/wire"
)

// Access names the groups whose members may use the socket. A group is looked up when
// a call is judged, so that one that is added later counts.
type Access struct {
	ControlGroup string // may do all; "" = root only
	ViewGroup    string // may read what holds no packets; "" = nobody
}

// right is what a call takes.
type right uint8

const (
	rightView    right = iota // reads, and holds no packets
	rightControl              // changes something, or reads packets
)

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

// judge says why the peer may not do what needs the right, or nil. does names it in
// words: "stop captures".
func (g *gate) judge(p Peer, needs right, does string) *wire.Error {
	if p.UID == 0 {
		return nil
	}
	g.mu.Lock()
	access := g.access
	g.mu.Unlock()
	if g.member(p, access.ControlGroup) || (needs == rightView && g.member(p, access.ViewGroup)) {
		return nil
	}
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
	e := &wire.Error{Status: http.StatusForbidden, Code: wire.CodeForbidden,
		Message: fmt.Sprintf("%s may not %s: that takes %s", p, does, takes), Hint: "run it as root, with sudo"}
	if join != "" && p.User != "" {
		e.Hint = fmt.Sprintf("as root: usermod -aG %s %s; then log in again", join, p.User)
	}
	return e
}

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
