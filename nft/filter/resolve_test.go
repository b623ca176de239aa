package filter

import (
	"errors"
	"net/netip"
	"testing"
)

// Names become all addresses that can stand where the name stood.
func TestResolve(t *testing.T) {
	hosts := map[string][]netip.Addr{
		"web":     {netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("::ffff:192.0.2.7")},
		"one":     {netip.MustParseAddr("192.0.2.1")},
		"a-b.c_d": {netip.MustParseAddr("192.0.2.1")},
		"net":     {netip.MustParseAddr("192.0.2.2")},
		"evil":    {netip.MustParseAddr("fe80::1%eth0")},
	}
	nowhere := errors.New("nowhere to be found")
	lookup := func(name string) ([]netip.Addr, error) {
		if a, ok := hosts[name]; ok {
			return a, nil
		}
		return nil, nowhere
	}
	for text, want := range map[string]string{
		"":                       "",
		"tcp port ssh":           "tcp port ssh",
		"host web":               "host (192.0.2.7 or 2001:db8::7)",
		"host one":               "host 192.0.2.1",
		"ip host web and tcp":    "ip host 192.0.2.7 and tcp",
		"ip6 src web":            "ip6 src 2001:db8::7",
		"arp dst host web":       "arp dst host 192.0.2.7",
		"host (web or one)":      "host ((192.0.2.7 or 2001:db8::7) or 192.0.2.1)",
		"host web or not one":    "host (192.0.2.7 or 2001:db8::7) or not 192.0.2.1",
		"host one or web or one": "host 192.0.2.1 or (192.0.2.7 or 2001:db8::7) or 192.0.2.1",
		`host \net`:              "host 192.0.2.2",
		"src and dst a-b.c_d":    "src and dst 192.0.2.1",
		"host evil":              "host fe80::1",
	} {
		got, err := Resolve(text, lookup)
		if err != nil || got != want {
			t.Errorf("%q becomes %q, %v; want %q", text, got, err, want)
		}
		// Both readings are of the same filter.
		if _, err := Parse(got); err != nil {
			t.Errorf("%q: %v", got, err)
		}
	}
	for text, column := range map[string]int{"tcp and host none": 14, "ip6 host one": 10, "tcp host web": 10, "ether host web": 12, "net web": 5, "port web": 6, "web": 1, "host web or": 12} {
		_, err := Resolve(text, lookup)
		var e *Error
		if !errors.As(err, &e) || e.Column != column || e.Hint == "" && column != 12 {
			t.Errorf("%q: %#v", text, err)
		}
		if (column == 14) != errors.Is(err, nowhere) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
