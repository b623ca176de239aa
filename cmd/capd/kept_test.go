package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"capd/ctl/wire"
	"capd/testbed"
)

// Who starts captures without end fills neither disk nor memory with their records: the
// oldest give place that are done with, and nothing else does.
func TestRecordsAreBounded(t *testing.T) {
	const most = 4096
	d := testbed.StartDaemon(t, "", "[limits]\nmin_free_space = \"0b\"\n")
	first := d.Must("start", "port 7")
	d.Must("stop", first)
	d.Stop()

	// A box that has kept as many as it can: all have a file here but the oldest and two
	// that had come and gone meanwhile.
	records, spool := filepath.Join(d.StateDir(), "captures"), filepath.Join(d.StateDir(), "spool")
	text, err := os.ReadFile(filepath.Join(records, first+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var record map[string]any
	if err := json.Unmarshal(text, &record); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(records, first+".json")); err != nil {
		t.Fatal(err)
	}
	c := record["capture"].(map[string]any)
	oldest := time.Now().Add(-time.Hour)
	id := func(i int) string { return fmt.Sprintf("%032x", i+1) }
	for i := range most {
		c["id"], c["files"] = id(i), []wire.File{}
		c["completed"] = wire.Time{Time: oldest.Add(time.Duration(i) * time.Millisecond)}
		if done := i == 0 || i == 7 || i == 4000; !done {
			c["files"] = []wire.File{{Name: "0001.pcapng", Status: wire.FileSpooled, Packets: 1, Bytes: 1}}
			if err := os.Mkdir(filepath.Join(spool, id(i)), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(spool, id(i), "0001.pcapng"), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		text, err := json.Marshal(record)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(records, id(i)+".json"), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d.Start()
	kept := func() map[string]bool {
		t.Helper()
		out := map[string]bool{}
		var list []wire.Capture
		if err := json.Unmarshal([]byte(d.Must("list", "--all", "--json")), &list); err != nil {
			t.Fatal(err)
		}
		for _, c := range list {
			out[c.ID] = true
		}
		return out
	}
	if n := len(kept()); n != most {
		t.Fatalf("%d captures are listed, %d records were there", n, most)
	}
	for i, gone := range []int{0, 7, 4000} { // the oldest first
		running := d.Must("start", "port 7")
		list := kept()
		if len(list) != most || list[id(gone)] || !list[running] {
			t.Fatalf("after %d more %d captures are kept, number %d: %v", i+1, len(list), gone, list[id(gone)])
		}
		if _, err := os.Stat(filepath.Join(records, id(gone)+".json")); !os.IsNotExist(err) {
			t.Errorf("its record is still there: %v", err)
		}
	}
	// What has files here is nobody's to forget, nor what runs.
	r := d.Capctl("start", "port 7")
	if r.Code != 6 || !strings.Contains(r.Stderr, "this box keeps 4096 captures already") || !strings.Contains(r.Stderr, "capctl rm") {
		t.Errorf("one more: exit code %d: %s", r.Code, r.Stderr)
	}
	d.Must("rm", id(5))
	d.Must("start", "port 7")
}
