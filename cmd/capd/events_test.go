package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"capd/ctl/wire"
	"capd/testbed"
)

// Events come in the order in which things happen, with the capture as it then was.
func TestEvents(t *testing.T) {
	d := testbed.StartDaemon(t, testbed.NewNS(t), "")
	ctx, cancel := context.WithTimeout(t.Context(), streamTimeout)
	defer cancel()
	events, err := connect(t, d).Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer events.Close()
	id := d.Must("start", "-n", "watched", "udp")
	d.Must("stop", id)
	d.Must("rm", id)
	// A file where the folder of segments was: a capture that is admitted and cannot start.
	spool := filepath.Join(d.StateDir(), "spool")
	if err := os.RemoveAll(spool); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(spool, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := d.Capctl("start"); r.Code == 0 {
		t.Fatalf("a capture without a place: %+v", r)
	}
	var got []string
	for len(got) < 8 {
		e, err := events.Next()
		if err != nil {
			t.Fatal(err)
		}
		if e.Capture == nil || e.Time.IsZero() {
			t.Fatalf("an event without its capture or time: %+v", e)
		}
		text := e.Type + " " + e.Capture.Status
		if e.Type == wire.EventFile {
			text += " " + e.Capture.Files[0].Status
		}
		if e.Capture.ID != id {
			text += " other"
		}
		got = append(got, text)
	}
	want := []string{"started pending", "file pending open", "running running", "file running spooled", "stopped complete", "complete complete", "removed complete",
		"started pending other"}
	slices.Sort(got[1:3]) // the first file and the rules are made at the same time
	slices.Sort(want[1:3])
	if !slices.Equal(got, want) {
		t.Errorf("the events are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if e, err := events.Next(); err != nil || e.Type != wire.EventFailed || e.Capture.Error == nil {
		t.Errorf("a capture that cannot start ends with %+v, %v", e, err)
	}
	d.Stop()
	for err == nil {
		_, err = events.Next()
	}
	if !errors.Is(err, io.EOF) {
		t.Errorf("when capd stops events end with %v", err)
	}
}

// A client that connects and never reads does not hold capd up, and is let go when it
// leaves.
func TestEventsToNobody(t *testing.T) {
	d := testbed.StartDaemon(t, testbed.NewNS(t), "")
	before := descriptors(t, d.PID())
	conn, err := net.Dial("unix", d.Socket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: capd\r\n\r\n", wire.PathEvents); err != nil {
		t.Fatal(err)
	}
	answer := bufio.NewReader(conn)
	resp, err := http.ReadResponse(answer, nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v, %v", resp, err)
	}
	defer resp.Body.Close()
	for range 5 {
		id := d.Must("start", "udp")
		d.Must("stop", id)
		d.Must("rm", id)
	}
	conn.Close()
	await(t, "as many descriptors are open as before", func() bool { return descriptors(t, d.PID()) <= before })
}
