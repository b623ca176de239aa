package filter

import (
	"errors"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// where says who decides an expression, and why nobody does.
func where(t *testing.T, text string, link Link) (place, refusal string) {
	t.Helper()
	f, err := Parse(text)
	if err == nil {
		var p *Program
		if p, err = f.Compile(link); err == nil {
			switch {
			case p.Exact:
				return "kernel", ""
			case len(p.Chains) > 0:
				return "both", ""
			}
			return "capd", ""
		}
	}
	var e *Error
	if !errors.As(err, &e) || e.Hint == "" {
		t.Errorf("%q: the refusal has no hint: %v", text, err)
		return "refused", ""
	}
	return "refused", "“" + e.Message + " (" + e.Hint + ")”"
}

// What docs/filters.md says of every primitive is so, it leaves out no word of the language,
// and the tests that it names are there.
func TestDocs(t *testing.T) {
	data, err := os.ReadFile("../../docs/filters.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("(?m)^\\| `(.+)` \\| (kernel|both|capd|refused) \\| (kernel|both|capd|refused) \\| (.*)\\|$")
	words := map[string]bool{}
	rows := row.FindAllStringSubmatch(string(data), -1)
	for _, r := range rows {
		text, note := strings.ReplaceAll(r[1], `\|`, "|"), strings.ReplaceAll(r[4], `\|`, "|")
		for i, link := range []Link{LinkRaw, LinkEthernet} {
			place, refusal := where(t, text, link)
			if place != r[2+i] {
				t.Errorf("%q on link %d: it is %s, not %s", text, link, place, r[2+i])
			}
			if strings.Contains(refusal, "needs the link-layer header") {
				refusal = refusal[strings.Index(refusal, "needs"):] // said once for all of them
				if !strings.Contains(strings.Join(strings.Fields(string(data)), " "), refusal) {
					t.Errorf("nowhere is %q", refusal)
				}
			} else if !strings.Contains(note, refusal) {
				t.Errorf("%q: the note is %q, without %q", text, note, refusal)
			}
		}
		for _, word := range regexp.MustCompile(`[a-z0-9-]+`).FindAllString(text, -1) {
			words[word] = true
		}
	}
	if len(rows) < 150 {
		t.Errorf("only %d rows", len(rows))
	}
	for _, known := range [][]string{slices.Collect(maps.Keys(protoWords)), operatorWords, slices.Collect(maps.Keys(refusedWords))} {
		for _, word := range known {
			if !words[word] {
				t.Errorf("%q is in no row", word)
			}
		}
	}
	tests := ""
	for _, pattern := range []string{".", ".."} {
		files, err := os.ReadDir(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if !strings.HasSuffix(f.Name(), "_test.go") {
				continue
			}
			source, err := os.ReadFile(pattern + "/" + f.Name())
			if err != nil {
				t.Fatal(err)
			}
			tests += string(source)
		}
	}
	for _, name := range regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z]+)`").FindAllStringSubmatch(string(data), -1) {
		if !strings.Contains(tests, "func "+name[1]+"(") {
			t.Errorf("there is no %s", name[1])
		}
	}
}

// IPv6 extension headers: to libpcap what stands behind them is no TCP, but for one fragment
// header before proto; filter_v1 looks behind all of them.
func TestExtensionHeaders(t *testing.T) {
	header := func(next byte, payload ...byte) []byte {
		p := append([]byte{0x60, 0, 0, 0, 0, byte(len(payload)), next, 64}, make([]byte, 32)...)
		return append(p, payload...)
	}
	tcp := append([]byte{0, 80, 1, 187, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2}, make([]byte, 6)...)
	plain := header(6, tcp...)
	hopByHop := header(0, append([]byte{6, 0, 1, 4, 0, 0, 0, 0}, tcp...)...)
	fragment := header(44, append([]byte{6, 0, 0, 1, 0, 0, 0, 9}, tcp...)...)
	for _, c := range []struct {
		text                      string
		plain, hopByHop, fragment bool
	}{
		{"tcp", true, false, true},
		{"ip6 proto 6", true, false, true},
		{"tcp port 80", true, false, false},
		{"ip6 proto 0", false, true, false},
		{"ip6[6] = 0 and ip6[40] = 6", false, true, false},
	} {
		f, err := Parse(c.text)
		if err != nil {
			t.Fatal(err)
		}
		m, err := f.Matcher(LinkRaw)
		if err != nil {
			t.Fatal(err)
		}
		judge := Libpcap(t, LinkRaw, c.text)
		for want, p := range map[*bool][]byte{&c.plain: plain, &c.hopByHop: hopByHop, &c.fragment: fragment} {
			if got := m.Match(&Packet{Body: p, Length: uint32(len(p))}); got != *want || judge(p) != *want {
				t.Errorf("%q: we say %v, libpcap %v of %s", c.text, got, judge(p), describe(p))
			}
		}
	}
	v1, err := FromV1(V1{Protocol: "tcp"})
	if err != nil {
		t.Fatal(err)
	}
	program, err := v1.Compile(LinkRaw)
	if err != nil || program.Chains[0].Rules[0].Matches[0].Key != L4Proto {
		t.Errorf("filter_v1 asks for %+v, %v", program, err)
	}
}
