package testbed

import (
	"strconv"
	"strings"
	"testing"
)

// TestInject counts injected frames with a rule of the kernel's own.
func TestInject(t *testing.T) {
	NeedCommand(t, "nft")
	p := NewPair(t)
	RunIn(t, p.B, "nft", "add table inet judge; add chain inet judge pre { type filter hook prerouting priority -400; }; "+
		"add rule inet judge pre ip saddr 10.9.0.1 udp dport 9 meta length 1386 udp sport { 4000, 4001, 4002 } counter drop")
	sent, err := Inject(p.B, InjectOptions{Interface: "vb", Count: 10_000, Length: 1400, Flows: 3, Pin: true})
	if err != nil {
		t.Fatal(err)
	}
	rules := RunIn(t, p.B, "nft", "list", "table", "inet", "judge")
	if want := "packets " + strconv.Itoa(sent.Frames) + " "; sent.Frames != 10_000 || !strings.Contains(rules, want) {
		t.Errorf("sent %d, want %q in\n%s", sent.Frames, want, rules)
	}
}

// TestInjectRefuses sees that nonsense is refused with its reason.
func TestInjectRefuses(t *testing.T) {
	for _, o := range []InjectOptions{
		{Interface: "lo"}, {Interface: "lo", Count: 1, Length: 41}, {Interface: "lo", Count: 1, Flows: 1001},
	} {
		if _, err := Inject("", o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}
