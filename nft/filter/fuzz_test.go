package filter

import (
	"math/rand/v2"
	"testing"

	"capd/testbed"
)

// Whatever is accepted, and which libpcap accepts too, means the same to both: a sample of
// packets is judged by a Matcher and by libpcap. (What only we accept is not in its
// language: ifname and inbound on such links, gre, names of protocols without backslash.)
func FuzzJudge(f *testing.F) {
	testbed.NeedCommand(f, "tcpdump")
	g := &generator{Rand: rand.New(rand.NewPCG(1, 2))}
	for i := range 60 {
		g.link = Link(i % 2)
		f.Add(g.expression(i%4), uint64(i))
	}
	f.Fuzz(func(t *testing.T, text string, seed uint64) {
		if len(text) > 500 {
			return // tcpdump takes its time
		}
		filter, err := Parse(text)
		if err != nil {
			return
		}
		for _, link := range []Link{LinkRaw, LinkEthernet} {
			m, err := filter.Matcher(link)
			if err != nil {
				continue
			}
			vm, refusal := libpcap(t, link, text, "-O")
			if refusal != "" {
				continue
			}
			g := &generator{Rand: rand.New(rand.NewPCG(seed, uint64(link))), link: link}
			for range 30 {
				p := g.packet()
				want, err := vm.Run(p)
				if err != nil {
					t.Fatalf("%q: %v", text, err)
				}
				if got := m.Match(&Packet{Body: p, Length: uint32(len(p))}); got != (want != 0) {
					t.Fatalf("link %d: %q (%s): libpcap says %v, we say %v of %d bytes %s", link, text, filter, want != 0, got, len(p), describe(p))
				}
			}
		}
	})
}
