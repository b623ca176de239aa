package filter

import (
	"math/rand/v2"
	"testing"
)

// Generator is generator for tests outside the package.
type Generator struct{ g *generator }

func NewGenerator(seed uint64, link Link) Generator {
	return Generator{&generator{Rand: rand.New(rand.NewPCG(seed, uint64(link))), link: link}}
}

func (g Generator) Expression() string { return g.g.expression(g.g.IntN(4)) }
func (g Generator) Packet() []byte     { return g.g.packet() }

func Seed() uint64                                      { return seed() }
func Expressions(standard int) int                      { return expressions(standard) }
func Describe(p []byte) string                          { return describe(p) }
func (m *Matcher) Whole(p *Packet) (wanted, whole bool) { return m.match(p) }

// Libpcap tells whether libpcap wants packets; nil where it refuses the expression.
func Libpcap(t testing.TB, link Link, expression string) func([]byte) bool {
	vm, refusal := libpcap(t, link, expression, "-O")
	if refusal != "" {
		return nil
	}
	return func(p []byte) bool {
		n, err := vm.Run(p)
		if err != nil {
			t.Fatal(err)
		}
		return n != 0
	}
}
