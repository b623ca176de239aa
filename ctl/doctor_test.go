package ctl

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"capd/ctl/wire"
	"capd/testbed"
)

// Where capd does not answer, what it said last in the journal is a finding if it was an
// error, and asked for by the unit of its namespace.
func TestLastWords(t *testing.T) {
	testbed.NeedCommand(t, "sh")
	for _, c := range []struct{ name, netns, says, want string }{
		{"an error", "", `{"MESSAGE":"capd ends err=\"mkdir: no (make it)\"","PRIORITY":"3","__REALTIME_TIMESTAMP":"1795465161158043"}`,
			`what capd said last, 2026-11-23 20:19:21 UTC: capd ends err="mkdir: no (make it)"`},
		{"one of a namespace's", "blue", `{"MESSAGE":"capd ends","PRIORITY":"3","__REALTIME_TIMESTAMP":"1795465161158043"}`, "what capd said last, 2026-11-23 20:19:21 UTC: capd ends"},
		{"a clean end", "", `{"MESSAGE":"capd has stopped","PRIORITY":"6","__REALTIME_TIMESTAMP":"1795465161158043"}`, ""},
		{"nothing", "", "", ""},
		{"no JSON", "", "-- No entries --", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, filepath.Join(dir, "says"), []byte(c.says))
			put(t, filepath.Join(dir, "journalctl"), []byte("#!/bin/sh\necho \"$@\" >'"+dir+"/asked'\nexec cat '"+dir+"/says'\n"))
			testbed.Run(t, "chmod", "755", filepath.Join(dir, "journalctl"))
			t.Setenv("PATH", dir+":/usr/bin:/bin")
			a := newTestApp()
			a.zone, a.netns = time.UTC, c.netns
			found := a.lastWords(t.Context())
			if c.want == "" {
				if len(found) != 0 {
					t.Errorf("%+v", found)
				}
				return
			}
			unit := "capd.service"
			if c.netns != "" {
				unit = "capd@" + c.netns + ".service"
			}
			if len(found) != 1 || found[0].Message != c.want || found[0].Level != wire.LevelError || !strings.HasSuffix(found[0].Hint, " "+unit) {
				t.Errorf("%+v, want %q", found, c.want)
			}
			if asked := testbed.Run(t, "cat", filepath.Join(dir, "asked")); !strings.Contains(asked, "--unit "+unit+" ") {
				t.Errorf("asked for %q", asked)
			}
		})
	}
}
