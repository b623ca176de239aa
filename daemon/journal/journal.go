// Package journal sends log records to systemd's journal with their attributes as fields
// of their own, so that "journalctl CAPD_CAPTURE=…" finds all of one capture.
package journal

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
)

// fieldPrefix keeps our fields apart from the journal's own (systemd.journal-fields(7)).
const fieldPrefix = "CAPD_"

// Attached tells whether the process's stderr goes to the journal, as systemd says in
// JOURNAL_STREAM (systemd.exec(5)). Where it was redirected since, it does not.
func Attached() bool {
	ok, err := journal.StderrIsJournalStream()
	return ok && err == nil && journal.Enabled()
}

// NewLogger gives a logger for a process: to the journal where that is where stderr goes,
// else lines of text to stderr.
func NewLogger(stderr io.Writer, level slog.Leveler) *slog.Logger {
	if f, ok := stderr.(*os.File); ok && f == os.Stderr && Attached() {
		return slog.New(New(level, sendAsCapd, stderr))
	}
	return slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
}

// sendAsCapd sends a message that journalctl --identifier capd finds, beside what systemd
// takes from stderr, which bears the program's name by itself.
func sendAsCapd(message string, priority journal.Priority, fields map[string]string) error {
	all := map[string]string{"SYSLOG_IDENTIFIER": "capd"}
	maps.Copy(all, fields)
	return journal.Send(message, priority, all)
}

// Send is how a message gets to the journal: journal.Send.
type Send func(message string, priority journal.Priority, fields map[string]string) error

// Handler is a slog.Handler for the journal. The attribute capture becomes the field
// CAPD_CAPTURE, one in a group CAPD_GROUP_NAME; the message is followed by all of them as
// text, so that plain journalctl shows them too.
type Handler struct {
	level    slog.Leveler
	send     Send
	fallback io.Writer // where a message goes that the journal does not take

	group  string // prefix of names, with its dots
	fields map[string]string
	text   string // the attributes so far, as text, each with a space before it
}

var _ slog.Handler = (*Handler)(nil)

// New gives a handler for records of the level and above.
func New(level slog.Leveler, send Send, fallback io.Writer) *Handler {
	return &Handler{level: level, send: send, fallback: fallback}
}

// Enabled implements slog.Handler.
func (h *Handler) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level.Level() }

// WithAttrs implements slog.Handler.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	n := *h
	n.fields = maps.Clone(h.fields)
	for _, a := range attrs {
		n.add(n.group, a)
	}
	return &n
}

// WithGroup implements slog.Handler.
func (h *Handler) WithGroup(name string) slog.Handler {
	n := *h
	if name != "" {
		n.group += name + "."
	}
	return &n
}

// Handle implements slog.Handler.
func (h *Handler) Handle(_ context.Context, r slog.Record) error {
	n := *h
	n.fields = maps.Clone(h.fields)
	r.Attrs(func(a slog.Attr) bool {
		n.add(n.group, a)
		return true
	})
	message := r.Message + n.text
	if err := h.send(message, priority(r.Level), n.fields); err != nil {
		_, err = fmt.Fprintf(h.fallback, "%s (the journal does not take fields: %v)\n", message, err)
		return err
	}
	return nil
}

// add puts an attribute, or those of a group, into fields and text.
func (h *Handler) add(group string, a slog.Attr) {
	value := a.Value.Resolve()
	if value.Kind() == slog.KindGroup {
		if a.Key != "" {
			group += a.Key + "."
		}
		for _, member := range value.Group() {
			h.add(group, member)
		}
		return
	}
	if a.Key == "" {
		return
	}
	if h.fields == nil {
		h.fields = map[string]string{}
	}
	name, text := group+a.Key, value.String()
	h.fields[fieldName(name)] = text
	h.text += " " + name + "=" + quote(text)
}

// quote makes a value one word, as slog's text handler does.
func quote(text string) string {
	if text == "" || slices.ContainsFunc([]rune(text), func(r rune) bool { return r <= ' ' || r == '"' || r == '=' || r == 0x7f }) {
		return fmt.Sprintf("%q", text)
	}
	return text
}

// maxField is the longest name of a field that journald takes (journal-field(7)).
const maxField = 64

// fieldName makes a name of a field: upper-case letters, digits and underscores.
func fieldName(name string) string {
	mapped := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, name)
	return fieldPrefix + mapped[:min(len(mapped), maxField-len(fieldPrefix))]
}

// priority is syslog's level for slog's.
func priority(level slog.Level) journal.Priority {
	switch {
	case level >= slog.LevelError:
		return journal.PriErr
	case level >= slog.LevelWarn:
		return journal.PriWarning
	case level >= slog.LevelInfo:
		return journal.PriInfo
	}
	return journal.PriDebug
}
