// Package metrics writes Prometheus' text format, version 0.0.4
// (prometheus.io/docs/instrumenting/exposition_formats), and keeps histograms. It knows
// nothing of capd. The format takes these few lines; Prometheus' own client library would
// make capd larger by a quarter.
package metrics

import (
	"bytes"
	"math"
	"strconv"
	"strings"
	"sync"
)

// ContentType is the format's media type.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// Kind is a metric's type.
type Kind string

// The kinds of the format that capd uses.
const (
	Counter   Kind = "counter"
	Gauge     Kind = "gauge"
	histogram Kind = "histogram"
)

// Page is a text under construction. The zero value is an empty one.
type Page struct {
	text bytes.Buffer
	name string // of the family that Sample continues
}

// Bytes gives the text, which stays the page's.
func (p *Page) Bytes() []byte { return p.text.Bytes() }

// Family begins a metric: each has a name of its own on the page, and its samples follow
// at once. help is one sentence.
func (p *Page) Family(name string, kind Kind, help string) {
	p.name = name
	p.text.WriteString("# HELP " + name + " " + strings.NewReplacer(`\`, `\\`, "\n", `\n`).Replace(help) + "\n")
	p.text.WriteString("# TYPE " + name + " " + string(kind) + "\n")
}

// Sample writes a value of the family begun last. labels are names and values in turns.
func (p *Page) Sample(value float64, labels ...string) { p.sample("", value, labels) }

// Count is Sample for a whole number.
func (p *Page) Count(value uint64, labels ...string) { p.sample("", float64(value), labels) }

// One is a family of one value.
func (p *Page) One(name string, kind Kind, help string, value float64) {
	p.Family(name, kind, help)
	p.Sample(value)
}

// HistogramFamily begins a metric whose samples Histogram or Buckets writes.
func (p *Page) HistogramFamily(name, help string) { p.Family(name, histogram, help) }

// Histogram writes a histogram of the family begun last.
func (p *Page) Histogram(h *Histogram, labels ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p.Buckets(h.bounds, h.counts, h.sum, labels...)
}

// Buckets is Histogram for values that are counted elsewhere: how many lay in each bucket,
// one more than there are upper bounds, and what they sum up to.
func (p *Page) Buckets(bounds []float64, counts []uint64, sum float64, labels ...string) {
	var below uint64
	for i, n := range counts {
		below += n
		bound := math.Inf(1)
		if i < len(bounds) {
			bound = bounds[i]
		}
		p.sample("_bucket", float64(below), append(labels[:len(labels):len(labels)], "le", number(bound)))
	}
	p.sample("_sum", sum, labels)
	p.sample("_count", float64(below), labels)
}

func (p *Page) sample(suffix string, value float64, labels []string) {
	p.text.WriteString(p.name + suffix)
	for i := 0; i+1 < len(labels); i += 2 {
		sep := byte(',')
		if i == 0 {
			sep = '{'
		}
		p.text.WriteByte(sep)
		p.text.WriteString(labels[i] + `="` + strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`).Replace(labels[i+1]) + `"`)
	}
	if len(labels) > 1 {
		p.text.WriteByte('}')
	}
	p.text.WriteString(" " + number(value) + "\n")
}

// number writes a value as the format does: like Go, with +Inf, -Inf and NaN.
func number(v float64) string {
	if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
		return strconv.FormatInt(int64(v), 10)
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

// Histogram counts values in buckets. It is safe for concurrent use.
type Histogram struct {
	bounds []float64 // upper, inclusive, ascending

	mu     sync.Mutex
	counts []uint64 // by bucket, the last without a bound
	sum    float64
}

// NewHistogram makes a histogram with these upper bounds, ascending and without +Inf.
func NewHistogram(bounds ...float64) *Histogram {
	return &Histogram{bounds: bounds, counts: make([]uint64, len(bounds)+1)}
}

// Observe counts one value.
func (h *Histogram) Observe(v float64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := 0
	for i < len(h.bounds) && v > h.bounds[i] {
		i++
	}
	h.counts[i]++
	h.sum += v
}
