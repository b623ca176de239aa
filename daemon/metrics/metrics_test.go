package metrics

import (
	"math"
	"os/exec"
	"strings"
	"testing"

	"capd/testbed"
)

func TestPage(t *testing.T) {
	var p Page
	p.One("a_bytes", Gauge, "A \\ and\na line.", 1.5)
	p.Family("b_total", Counter, "B.")
	p.Count(1<<53-1, "kind", "x")
	p.Sample(math.Inf(1), "kind", "say \"hi\"\\\n", "other", "")
	p.HistogramFamily("c_packets", "C.")
	p.Buckets([]float64{1, 2}, []uint64{2, 0, 1}, 12)
	h := NewHistogram(0.1, 1, 10)
	for _, v := range []float64{0.1, 0.2, 1, 5, 100} {
		h.Observe(v)
	}
	p.HistogramFamily("d_seconds", "D.")
	p.Histogram(h, "to", "soc")
	const want = `# HELP a_bytes A \\ and\na line.
# TYPE a_bytes gauge
a_bytes 1.5
# HELP b_total B.
# TYPE b_total counter
b_total{kind="x"} 9007199254740991
b_total{kind="say \"hi\"\\\n",other=""} +Inf
# HELP c_packets C.
# TYPE c_packets histogram
c_packets_bucket{le="1"} 2
c_packets_bucket{le="2"} 2
c_packets_bucket{le="+Inf"} 3
c_packets_sum 12
c_packets_count 3
# HELP d_seconds D.
# TYPE d_seconds histogram
d_seconds_bucket{to="soc",le="0.1"} 1
d_seconds_bucket{to="soc",le="1"} 3
d_seconds_bucket{to="soc",le="10"} 4
d_seconds_bucket{to="soc",le="+Inf"} 5
d_seconds_sum{to="soc"} 106.3
d_seconds_count{to="soc"} 5
`
	if got := string(p.Bytes()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	testbed.NeedCommand(t, "promtool")
	cmd := exec.Command("promtool", "check", "metrics")
	cmd.Stdin = strings.NewReader(string(p.Bytes()))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}
