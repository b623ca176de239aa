package ctl

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"capd/ctl/client"
	"capd/ctl/merge"
	"capd/ctl/wire"
	"capd/ring/pcapng"
)

// clocks is what is known of some hosts' clocks. It is safe for concurrent use; the zero
// value knows nothing.
type clocks struct {
	mu       sync.Mutex
	measured map[string]measuredClock   // against this machine's, by host
	told     map[string]wire.ClockState // by the host itself; of its newest manifest
	begun    map[string]string          // by the host's files, of when they were begun
}

// measuredClock is by how much a host's clock is ahead of this machine's.
type measuredClock struct {
	ahead, within time.Duration // the truth lies within so much of it
	at            time.Time
	state         wire.ClockState
}

// clockTries is how often a clock is looked at: the shortest way there and back tells most.
const clockTries = 4

// measureClock asks a capd for its time and gives its name for its host.
func measureClock(ctx context.Context, capd *client.Client) (host string, m measuredClock, err error) {
	for try := range clockTries {
		sent := time.Now()
		status, err := capd.Status(ctx)
		took := time.Since(sent) // monotonic
		if err != nil {
			return "", m, err
		}
		if try == 0 || took/2 < m.within {
			middle := sent.Add(took / 2)
			m = measuredClock{ahead: status.Clock.Time.Sub(middle), within: took / 2, at: middle, state: status.Clock}
		}
		host = status.Host
	}
	return host, m, nil
}

// noteClock measures the clock of the box that this run is for, where that is asked for.
// What goes wrong is told by the call that follows.
func (a *app) noteClock(ctx context.Context) {
	if a.clocks == nil {
		return
	}
	quick, cancel := a.soon(ctx)
	defer cancel()
	if host, m, err := measureClock(quick, a.client()); err == nil {
		a.clocks.measure(host, m)
	}
}

// askClocks measures the clocks of the boxes that -H names, all at once.
func (a *app) askClocks(ctx context.Context, known *clocks) error {
	if len(a.hosts) == 0 {
		return nil
	}
	a.timing.quick = max(a.timing.quick, patientQuick)
	quick, cancel := a.soon(ctx)
	defer cancel()
	boxes := []*box{a.box}
	if a.box == nil {
		var err error
		if boxes, err = a.boxes(); err != nil {
			return err
		}
	}
	failed := make([]error, len(boxes))
	var tasks sync.WaitGroup
	for i, b := range boxes {
		tasks.Go(func() {
			capd := &client.Client{Dial: b.dialer.Dial, UserAgent: "capctl/" + wire.Version}
			defer b.dialer.Close()
			defer capd.Close()
			var m measuredClock
			var host string
			if host, m, failed[i] = measureClock(quick, capd); failed[i] == nil {
				known.measure(host, m)
			}
		})
	}
	tasks.Wait()
	for i, err := range failed {
		if err != nil {
			_, message, _ := verdict(err)
			a.note("%s: its clock cannot be asked: %s", boxes[i].label, message)
		}
	}
	return nil
}

func (c *clocks) measure(host string, m measuredClock) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.measured == nil {
		c.measured = map[string]measuredClock{}
	}
	c.measured[host] = m
}

// fromManifest takes what a host's manifest tells. Of several the newest counts.
func (c *clocks) fromManifest(host string, state wire.ClockState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if known, ok := c.told[host]; ok && !state.Time.After(known.Time.Time) {
		return
	}
	if c.told == nil {
		c.told = map[string]wire.ClockState{}
	}
	c.told[host] = state
}

// fromFile takes what a file of capd's tells.
func (c *clocks) fromFile(host string, s pcapng.Section) {
	state := merge.WordOf(s, "clock")
	us, err := strconv.ParseInt(merge.WordOf(s, "clock_error_us"), 10, 64)
	if state != "unsynchronized" && (state != "synchronized" || err != nil) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.begun == nil {
		c.begun = map[string]string{}
	}
	c.begun[host] = clockState(state == "synchronized", us) + ", when the capture began"
}

// text tells what is known of a host's clock.
func (c *clocks) text(host string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var parts []string
	m, measured := c.measured[host]
	if measured {
		direction := "ahead of"
		if m.ahead < 0 {
			direction = "behind"
		}
		parts = append(parts, fmt.Sprintf("clock offset %s, ±%s: %s that of %s, measured at %s", signed(m.ahead), m.within.Round(time.Microsecond), direction, thisMachine(), m.at.UTC().Format(time.RFC3339)))
	}
	s, told := c.told[host]
	if !told && measured {
		s, told = m.state, true
	}
	switch {
	case told:
		text := clockState(s.Synchronized, s.MaxErrorUS)
		if s.OffsetNS != 0 {
			text += fmt.Sprintf(", %s being corrected", time.Duration(s.OffsetNS))
		}
		parts = append(parts, text+", at "+s.Time.UTC().Format(time.RFC3339))
	case c.begun[host] != "":
		parts = append(parts, c.begun[host])
	case !measured:
		parts = append(parts, "clock offset unknown")
	}
	return strings.Join(parts, "; ")
}

// clockState is what adjtimex(2) says of a clock. Its bound holds while something keeps
// the clock.
func clockState(synchronized bool, maxErrorUS int64) string {
	if !synchronized {
		return "clock not synchronized"
	}
	return fmt.Sprintf("clock synchronized, wrong by at most %s", time.Duration(maxErrorUS)*time.Microsecond)
}

func signed(d time.Duration) string {
	d = d.Round(time.Microsecond)
	if d > 0 {
		return "+" + d.String()
	}
	return d.String()
}

// thisMachine is this machine's name.
func thisMachine() string {
	name, err := os.Hostname()
	if err != nil {
		return "this machine"
	}
	return clean(name)
}

// maxAboutFiles bounds what the head of a merged file repeats of those of its parts, in
// bytes.
const maxAboutFiles = 1 << 20

// aboutFiles gives the merged file's further options: what its parts say of themselves.
func aboutFiles(sections []merge.SectionOf) string {
	var options []byte
	seen := map[string]bool{}
	for _, s := range sections {
		var words []string
		if s.Comment != "" {
			words = append(words, s.Comment)
		}
		for _, by := range []struct{ what, text string }{{"written by", s.Application}, {"on", s.OS}, {"hardware", s.Hardware}} {
			if by.text != "" {
				words = append(words, by.what+" "+by.text)
			}
		}
		text := strings.Join(words, "; ")
		key := s.Host + "\x00" + text + s.More
		if text+s.More == "" || seen[key] || len(options) > maxAboutFiles {
			continue
		}
		seen[key] = true
		if text != "" {
			options = pcapng.AppendComment(options, "of "+orElse(s.Host, "(unknown)")+": "+text)
		}
		options = append(options, s.More...)
	}
	return string(options)
}
