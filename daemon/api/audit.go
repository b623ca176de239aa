package api

import (
	"encoding/json"
	"log/slog"
	"strings"
	"time"

	"capd/ctl/wire"
)

// account is what the audit line of a call says it was about. A field that does not
// apply stays empty.
type account struct {
	capture     string // its id, or as the caller named it where there is none
	name        string
	filter      string
	filterV1    string // as JSON
	destination string
	file        string
	force       bool
	written     bool // the line is in the journal
	known       bool // capture is the id of a capture that is there
}

// asks takes down a request.
func (a *account) asks(req *wire.StartRequest) {
	a.name, a.filter, a.destination = req.Name, req.Filter, req.Destination
	if req.FilterV1 != nil {
		text, _ := json.Marshal(req.FilterV1) // of strings and numbers: cannot fail
		a.filterV1 = string(text)
	}
}

// is takes down the capture that a call is about.
func (a *account) is(c *wire.Capture) {
	a.asks(&c.StartRequest)
	a.capture, a.known = c.ID, true
}

// audit writes down who did what: one line in the journal, always with the same fields,
// and, where it was done, an entry in the capture's record. reason says why it was not.
// A further call for the same call does nothing.
func (h *Handler) audit(c *call, rt *route, result, reason string) {
	if c.account.written {
		return
	}
	c.account.written = true
	by := c.peer.Requester()
	login := slog.String("login_uid", "")
	if by.LoginUID != nil {
		login = slog.Uint64("login_uid", uint64(*by.LoginUID))
	}
	a := &c.account
	h.logger.LogAttrs(c.r.Context(), slog.LevelInfo, "audit",
		slog.String("action", rt.audit), slog.String("result", result), slog.String("reason", shortened(reason)),
		slog.Uint64("uid", uint64(by.UID)), slog.String("user", by.User), login, slog.Int("pid", int(by.PID)),
		slog.String("capture", shortened(a.capture)), slog.String("name", shortened(a.name)),
		slog.String("filter", shortened(a.filter)), slog.String("filter_v1", shortened(a.filterV1)),
		slog.String("destination", shortened(a.destination)), slog.String("file", shortened(a.file)), slog.Bool("force", a.force))
	if a.known && (result == resultOK || result == resultCut) {
		h.daemon.Record(a.capture, wire.Action{Time: wire.Time{Time: time.Now().UTC()}, Action: rt.audit, By: by, File: a.file, Result: result})
	}
}

// Results of calls that were carried out; every other is an error's code.
const (
	resultOK  = "ok"
	resultCut = "cut" // the client went away before it had everything
)

// shortened keeps foreign text from filling the journal.
func shortened(s string) string {
	const longest = 1024
	if len(s) > longest {
		s = strings.ToValidUTF8(s[:longest], "") + " ..."
	}
	return s
}
