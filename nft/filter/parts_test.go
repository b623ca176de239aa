package filter

import "testing"

// What the kernel decides and what is left, in words.
func TestParts(t *testing.T) {
	for _, c := range []struct {
		link         Link
		text         string
		kernel, user string
	}{
		{LinkRaw, "", "", ""},
		{LinkRaw, "udp port 53", "udp port 53", ""},
		{LinkRaw, "ip[2:2] > ip[8]", "(ip[2:2] > ip[8], in part)", "ip[2:2] > ip[8]"},
		{LinkRaw, "len * 2 > 100", "", "(len * 2) > 100"},
		{LinkRaw, "udp and inbound", "udp", "inbound"},
		{LinkRaw, "udp and not inbound", "udp", "not (inbound)"},
		{LinkRaw, "udp or inbound", "", "udp or inbound"},
		{LinkRaw, "tcp and (udp or not (icmp and outbound))", "tcp", "udp or not (icmp and outbound)"},
		{LinkRaw, "tcp and not (udp or outbound)", "tcp and not (udp)", "not (udp or outbound)"},
		{LinkRaw, "greater 100", "len >= 100", ""},
		{LinkEthernet, "greater 100 and arp", "arp", "len >= 100"},
		{LinkEthernet, "vlan 5 and port 80", "vlan 5 and (port 80, in part)", "vlan 5 and port 80"},
		{LinkEthernet, "vlan 5 and host 192.0.2.7", "vlan 5 and host 192.0.2.7", ""},
	} {
		f, err := Parse(c.text)
		if err != nil {
			t.Fatal(err)
		}
		kernel, user, err := f.Parts(c.link)
		if err != nil || kernel != c.kernel || user != c.user {
			t.Errorf("%q: kernel %q, user %q, %v; want %q and %q", c.text, kernel, user, err, c.kernel, c.user)
		}
		program, err := f.Compile(c.link)
		if err != nil || program.Exact != (user == "") {
			t.Errorf("%q: exact is %v, and capd does %q", c.text, program.Exact, user)
		}
	}
	f, err := Parse("arp")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.Parts(LinkRaw); err == nil {
		t.Error("arp has parts without a link layer")
	}
}
