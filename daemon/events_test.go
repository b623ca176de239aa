package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"capd/ctl/wire"
)

// hear reads a listener's next event.
func hear(t *testing.T, l *listener) wire.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	line, err := l.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var event wire.Event
	if err := json.Unmarshal(line, &event); err != nil || bytes.Count(line, []byte("\n")) != 1 || line[len(line)-1] != '\n' {
		t.Fatalf("the line %q: %v", line, err)
	}
	return event
}

func hearken(t *testing.T, e *events) *listener {
	t.Helper()
	l, err := e.listen()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

func numbered(i int) wire.Event {
	return wire.Event{Time: wire.Time{Time: time.Unix(int64(i), 0)}, Type: wire.EventFile, Capture: &wire.Capture{ID: fmt.Sprint(i)}}
}

// A listener that does not listen is told where events are missing, and how many, once
// it listens again: while more come and when no more come.
func TestSlowListenerIsToldWhatItMissed(t *testing.T) {
	var e events
	slow, quick := hearken(t, &e), hearken(t, &e)
	const missed = 44
	for i := range maxWaiting + missed {
		e.tell(numbered(i))
		if got := hear(t, quick); got.Capture.ID != fmt.Sprint(i) {
			t.Fatalf("event %d came as %+v", i, got)
		}
	}
	for i := range maxWaiting / 2 {
		if got := hear(t, slow); got.Type != wire.EventFile || got.Capture.ID != fmt.Sprint(i) {
			t.Fatalf("event %d came as %+v", i, got)
		}
	}
	e.tell(numbered(1000)) // finds room, behind the gap
	for i := maxWaiting / 2; i < maxWaiting; i++ {
		if got := hear(t, slow); got.Capture.ID != fmt.Sprint(i) {
			t.Fatalf("event %d came as %+v", i, got)
		}
	}
	if got := hear(t, slow); got.Type != wire.EventLagged || got.Missed != missed || got.Capture != nil {
		t.Errorf("the gap came as %+v", got)
	}
	if got := hear(t, slow); got.Type != wire.EventFile || got.Capture.ID != "1000" {
		t.Errorf("the event behind the gap came as %+v", got)
	}
	for i := range maxWaiting + 1 {
		e.tell(numbered(i))
	}
	for range maxWaiting {
		hear(t, slow)
	}
	if got := hear(t, slow); got.Type != wire.EventLagged || got.Missed != 1 {
		t.Errorf("the gap at the end came as %+v", got)
	}
}

func TestListenersAreBoundedAndEnd(t *testing.T) {
	var e events
	var all []*listener
	for range maxListeners {
		all = append(all, hearken(t, &e))
	}
	var refused *wire.Error
	if _, err := e.listen(); !errors.As(err, &refused) || refused.Status != 429 || refused.Code != wire.CodeLimit || refused.Hint == "" {
		t.Errorf("one listener too many gets %v", err)
	}
	all[0].Close()
	last := hearken(t, &e)
	e.tell(numbered(7))
	e.close()
	select {
	case <-last.Done():
	default:
		t.Error("the end is not told")
	}
	if got := hear(t, last); got.Capture.ID != "7" {
		t.Errorf("what waited came as %+v", got)
	}
	if _, err := last.Next(context.Background()); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
	if _, err := e.listen(); !errors.As(err, &refused) || refused.Status != 503 {
		t.Errorf("a listener after the end gets %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var fresh events
	if _, err := hearken(t, &fresh).Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a listener whose client left gets %v", err)
	}
}
