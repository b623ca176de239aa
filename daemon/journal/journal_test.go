package journal

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/google/go-cmp/cmp"
)

// entry is what reached the journal.
type entry struct {
	Message  string
	Priority journal.Priority
	Fields   map[string]string
}

func logTo(entries *[]entry, level slog.Leveler) *slog.Logger {
	return slog.New(New(level, func(message string, p journal.Priority, fields map[string]string) error {
		*entries = append(*entries, entry{message, p, fields})
		return nil
	}, nil))
}

func TestFields(t *testing.T) {
	var got []entry
	log := logTo(&got, slog.LevelInfo)
	one := log.With("capture", "0f8c")
	one.Info("capture ends", "reason", "packet_limit", "packets", 10)
	one.WithGroup("http").Warn("a call", "path", "/v1/a b", slog.Group("peer", "uid", 7))
	log.Error("delivery failed", "err", errors.New("no route\nto host"), "odd-key é", "")
	log.Debug("not wanted")

	want := []entry{
		{"capture ends capture=0f8c reason=packet_limit packets=10", journal.PriInfo,
			map[string]string{"CAPD_CAPTURE": "0f8c", "CAPD_REASON": "packet_limit", "CAPD_PACKETS": "10"}},
		{`a call capture=0f8c http.path="/v1/a b" http.peer.uid=7`, journal.PriWarning,
			map[string]string{"CAPD_CAPTURE": "0f8c", "CAPD_HTTP_PATH": "/v1/a b", "CAPD_HTTP_PEER_UID": "7"}},
		{`delivery failed err="no route\nto host" odd-key é=""`, journal.PriErr,
			map[string]string{"CAPD_ERR": "no route\nto host", "CAPD_ODD_KEY__": ""}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("want -, got +:\n%s", diff)
	}
}

// A logger that two were derived from gives neither the other's attributes.
func TestWithIsAClone(t *testing.T) {
	var got []entry
	base := logTo(&got, slog.LevelDebug).With("a", 1)
	b, c := base.With("b", 2), base.With("c", 3)
	b.Info("b")
	c.Debug("c")
	want := []entry{
		{"b a=1 b=2", journal.PriInfo, map[string]string{"CAPD_A": "1", "CAPD_B": "2"}},
		{"c a=1 c=3", journal.PriDebug, map[string]string{"CAPD_A": "1", "CAPD_C": "3"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("want -, got +:\n%s", diff)
	}
}

func TestFieldNamesAreTaken(t *testing.T) {
	for _, name := range []string{"capture", "_x", "9", strings.Repeat("long", 40), "ключ"} {
		field := fieldName(name)
		if len(field) > maxField || strings.Trim(field, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "" || field[0] == '_' {
			t.Errorf("fieldName(%q) = %q, which journald refuses", name, field)
		}
	}
}

func TestWithoutJournal(t *testing.T) {
	var out bytes.Buffer
	h := New(slog.LevelInfo, func(string, journal.Priority, map[string]string) error { return errors.New("gone") }, &out)
	slog.New(h).Info("still said", "n", 1)
	if got := out.String(); !strings.HasPrefix(got, "still said n=1 (") || !strings.Contains(got, "gone") {
		t.Errorf("without a journal the fallback got %q", got)
	}
	out.Reset()
	NewLogger(&out, slog.LevelInfo).Info("plain", "n", 1)
	if got := out.String(); !strings.Contains(got, "level=INFO msg=plain n=1") {
		t.Errorf("a logger beside the journal wrote %q", got)
	}
}
