package filter

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/bpf"

	"capd/testbed"
)

// verdict is a program of libpcap's.
type verdict struct {
	*bpf.VM
	// usesX tells that it calculates with the index register. libpcap's optimizer (1.10.3)
	// can forget that it has overwritten it (TestOptimizerErrs). What such a program says is
	// not held against us.
	usesX bool
}

// libpcap is the judge: what tcpdump makes of an expression, run in a virtual machine.
// refusal is what tcpdump says where it refuses.
func libpcap(t testing.TB, link Link, expression string, flags ...string) (vm verdict, refusal string) {
	t.Helper()
	name := map[Link]string{LinkRaw: "RAW", LinkEthernet: "EN10MB"}[link]
	var stderr bytes.Buffer
	cmd := exec.Command("tcpdump", append(flags, "-y", name, "-ddd", "--", expression)...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return vm, strings.TrimSpace(stderr.String())
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	var program []bpf.Instruction
	for _, line := range lines[1:] {
		var raw bpf.RawInstruction
		if _, err := fmt.Sscan(line, &raw.Op, &raw.Jt, &raw.Jf, &raw.K); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		instruction := raw.Disassemble()
		switch instruction.(type) {
		case bpf.TAX:
			vm.usesX = true
		case bpf.NegateA: // the machine does not know it: times -1, modulo 2^32
			instruction = bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: 1<<32 - 1}
		}
		program = append(program, instruction)
	}
	vm.VM, err = bpf.NewVM(program)
	if err != nil { // bytes at a negative index have a meaning of their own to a machine
		return vm, err.Error()
	}
	return vm, ""
}

// expressions is how many expressions the differential tests try for each link or hook. Each
// is held against dozens of packets, so that the standard makes tens of thousands of pairs;
// for more:
//
//	CAPD_FILTER_EXPRESSIONS=20000 go test -timeout 2h -run IsLibpcap ./nft/filter
func expressions(standard int) int {
	if n, err := strconv.Atoi(os.Getenv("CAPD_FILTER_EXPRESSIONS")); err == nil {
		return n
	}
	return standard
}

// seed makes a failure repeatable: it is printed with it, and CAPD_FILTER_SEED takes it.
func seed() uint64 {
	if n, err := strconv.ParseUint(os.Getenv("CAPD_FILTER_SEED"), 10, 64); err == nil {
		return n
	}
	return rand.Uint64()
}

// A Matcher judges packets as libpcap does, whatever the expression.
func TestMatcherIsLibpcap(t *testing.T) {
	testbed.NeedCommand(t, "tcpdump")
	seed := seed()
	for _, link := range []Link{LinkRaw, LinkEthernet} {
		g := &generator{Rand: rand.New(rand.NewPCG(seed, uint64(link))), link: link, wrong: true}
		accepted, refused, wanted := 0, 0, 0
		mistaken := map[string]bool{} // by libpcap's optimizer
		for range expressions(500) {
			text := g.expression(g.IntN(4))
			vm, refusal := libpcap(t, link, text, "-O")
			optimized, optimizedRefusal := libpcap(t, link, text)
			f, err := Parse(text)
			if err == nil {
				_, err = f.Matcher(link)
			}
			if (err == nil) != (refusal == "") && !knownDifference(refusal, err) {
				t.Errorf("seed %d, link %d: %q: libpcap says %q, we say %v", seed, link, text, refusal, err)
				continue
			}
			if err != nil || refusal != "" {
				refused++
				continue
			}
			accepted++
			again, err := Parse(f.String())
			if err != nil {
				t.Errorf("seed %d: %q is written %q: %v", seed, text, f, err)
				continue
			}
			for _, f := range []*Filter{f, again} {
				m, err := f.Matcher(link)
				if err != nil {
					t.Errorf("seed %d: %q: %v", seed, text, err)
					continue
				}
				for range 60 {
					p := g.packet()
					want, err := vm.Run(p)
					if err != nil {
						t.Fatalf("%q: %v", text, err)
					}
					wantOptimized := 0
					if optimizedRefusal == "" {
						if wantOptimized, err = optimized.Run(p); err != nil {
							t.Fatalf("%q: %v", text, err)
						}
					}
					cut := 0
					if len(p) > 0 {
						cut = g.IntN(len(p) + 1)
					}
					got, whole := m.match(&Packet{Head: p[:cut], Body: p[cut:], Length: uint32(len(p))})
					if whole && got != (wantOptimized != 0) && !optimized.usesX {
						mistaken[text] = true
					}
					if got != (want != 0) {
						t.Errorf("seed %d, link %d: %q (%s): libpcap says %v, we say %v of %d bytes %s",
							seed, link, text, f, want != 0, got, len(p), describe(p))
						break
					}
					if got {
						wanted++
					}
				}
			}
			if t.Failed() {
				return
			}
		}
		t.Logf("link %d: %d expressions accepted, %d refused by both, %d packets wanted; optimized, libpcap errs on %d", link, accepted, refused, wanted, len(mistaken))
		if len(mistaken) > 3+accepted/500 { // about one in 10,000 (TestOptimizerErrs)
			t.Errorf("seed %d, link %d: optimized, libpcap says otherwise of packets with all that is looked at: %q", seed, link, slices.Collect(maps.Keys(mistaken)))
		}
	}
}

// knownDifference tells expressions that only one of us refuses, for a reason.
func knownDifference(refusal string, err error) bool {
	if err != nil {
		// -1 is beyond the end, but libpcap takes it; and after pppoes it takes PPP's header for
		// the one that ether[0] is in.
		return strings.Contains(err.Error(), "counts to byte") || strings.Contains(err.Error(), "there is no Ethernet header")
	}
	return strings.Contains(refusal, "out of registers") // libpcap has 16; we have no such bound
}

// Mistakes of libpcap's optimizer (1.10.3), which TestMatcherIsLibpcap allows for: without it
// libpcap wants these packets, as we do. Where an optimized program wants them too, libpcap is
// mended.
func TestOptimizerErrs(t *testing.T) {
	testbed.NeedCommand(t, "tcpdump")
	header := func(protocol, from byte) []byte {
		return []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocol, 0, 0, 192, 0, 2, from, 198, 51, 100, 1}
	}
	for text, p := range map[string][]byte{
		"udp[0:2] = udp[2:2] or udp src or dst port 53":                append(header(17, 7), 0, 80, 0, 53, 0, 8, 0, 0),
		"not tcp and ip host 192.0.2.8 or host 192.0.2.8 or 192.0.2.9": append(header(1, 9), 8, 0, 0, 0, 0, 0, 0, 0),
	} {
		f, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		m, err := f.Matcher(LinkRaw)
		if err != nil {
			t.Fatal(err)
		}
		plain, _ := libpcap(t, LinkRaw, text, "-O")
		optimized, _ := libpcap(t, LinkRaw, text)
		if wanted, err := plain.Run(p); err != nil || wanted == 0 || !m.Match(&Packet{Body: p, Length: uint32(len(p))}) {
			t.Errorf("%q: libpcap without its optimizer says %d, %v", text, wanted, err)
		}
		if wanted, err := optimized.Run(p); err == nil && wanted != 0 {
			t.Logf("%q: this libpcap has a better optimizer", text)
		}
	}
}
