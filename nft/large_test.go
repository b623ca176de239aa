package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"capd/nft/filter"
	"capd/testbed"
)

// long joins parts until they fill what a request may have.
func long(part func(i int) string, word string) string {
	var b strings.Builder
	b.WriteString(part(0))
	for i := 1; b.Len() < 63<<10; i++ {
		b.WriteString(word + part(i))
	}
	return b.String()
}

// The longest expressions that a request can have, of the most unpleasant kinds: each is
// installed, or refused with a reason, and what is installed lets through at least what is
// wanted.
func TestLargestExpressions(t *testing.T) {
	pair := testbed.NewPair(t)
	table := openIn(t, pair.B)
	const wanted = "udp dst port 4242 and src host 10.9.0.1"
	for name, text := range map[string]string{
		"bytes or":    long(func(i int) string { return fmt.Sprintf("ip[%d]=%d", i%60, i%256) }, " or "),
		"bytes and":   long(func(i int) string { return fmt.Sprintf("ip[9]!=%d", 18+i%230) }, " and "),
		"pairs":       long(func(i int) string { return fmt.Sprintf("(tcp port %d and host 10.%d.%d.1)", i, i/250, i%250) }, " or "),
		"no pairs":    long(func(i int) string { return fmt.Sprintf("not (tcp port %d and host 10.%d.%d.1)", i, i/250, i%250) }, " and "),
		"to the left": long(func(i int) string { return fmt.Sprintf("tcp port %d and host 10.%d.%d.1", i, i/250, i%250) }, " or ") + " or ip",
		"ports":       "port " + long(func(i int) string { return fmt.Sprint(i % 65536) }, " or "),
		"hosts":       long(func(i int) string { return fmt.Sprintf("host 10.%d.%d.1", i/250, i%250) }, " or "),
		"hosts, IPv6": long(func(i int) string { return fmt.Sprintf("host 2001:db8::%x", i+1) }, " or "),
		"both ends":   long(func(i int) string { return fmt.Sprintf("src and dst host 10.%d.%d.1", i/250, i%250) }, " or "),
		"masks":       long(func(i int) string { return fmt.Sprintf("net 10.%d.0.0 mask 255.255.0.0", i%256) }, " or "),
		"sums":        long(func(i int) string { return fmt.Sprintf("ip[2:2]+%d=ip[4:2]", i) }, " or "),
		"names":       long(func(i int) string { return fmt.Sprintf("ifname e%d", i) }, " or "),
	} {
		t.Run(name, func(t *testing.T) {
			s := defaultSpec("0f8c1234")
			s.Once = false
			s.Filter = parse(t, "("+text+") or ("+wanted+")")
			if strings.Contains(name, "and") || strings.HasPrefix(name, "no ") {
				s.Filter = parse(t, "("+text+") and ("+wanted+")")
			}
			var refused *filter.Error
			if err := table.Install(s); errors.As(err, &refused) && refused.Hint != "" {
				t.Log("refused: ", err)
				return
			} else if err != nil {
				t.Fatal(err)
			}
			sendUDP(t, pair.A, pair.B, netip.AddrPortFrom(testbed.A4, 0), netip.AddrPortFrom(testbed.B4, 4242), 3)
			if got := total(t, table, s.ID); got.Seen < 3 {
				t.Errorf("counted %+v", got)
			}
			if err := table.Remove(s.ID); err != nil {
				t.Fatal(err)
			}
		})
	}
}
