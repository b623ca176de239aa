package daemon

import (
	"testing"
	"time"
)

func TestClockWatch(t *testing.T) {
	wall, monotonic, torn := time.Duration(time.Now().UnixNano()), time.Duration(0), time.Duration(0)
	w := newClockWatch(func() (time.Duration, time.Duration) {
		held := torn // once: the process was held up between reading the two
		torn = 0
		return wall - held, monotonic
	})
	for _, at := range []struct {
		what             string
		pass, step, torn time.Duration
		want             time.Duration
	}{
		{"nothing", time.Second, 0, 0, 0},
		{"an hour without a look", time.Hour, 0, 0, 0},
		{"set forwards", time.Second, 5 * time.Minute, 0, 5 * time.Minute},
		{"told once", time.Second, 0, 0, 0},
		{"set back", time.Second, -5 * time.Minute, 0, -5 * time.Minute},
		{"far back", time.Second, -24 * 365 * time.Hour, 0, -24 * 365 * time.Hour},
		{"less than NTP sets", time.Second, 30 * time.Millisecond, 0, 0},
		{"held up between the clocks", time.Second, 0, 3 * time.Second, 0},
		{"held up and set", time.Second, time.Minute, 3 * time.Second, 0},
		{"what was set then is told at the next look", time.Second, 0, 0, time.Minute + 30*time.Millisecond},
	} {
		monotonic += at.pass
		wall += at.pass + at.step
		torn = at.torn
		if got := w.look(); got != at.want {
			t.Errorf("%s: %v, want %v", at.what, got, at.want)
		}
	}
}
