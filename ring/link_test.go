package ring

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const (
	macs     = "020000000002020000000001"
	ipv4Text = "45000054000040004001000a0a0900010a090002"                                         // total length 84
	ipv6Text = "6000000000283a40fd000009000000000000000000000001fd000009000000000000000000000002" // payload length 40
)

// TestFrame lists how packets stand in files of each link type. Headers were compared
// with what tcpdump -i any writes (TestKernelContents does it on live packets).
func TestFrame(t *testing.T) {
	ip := unhex(t, ipv4Text)
	ip6 := unhex(t, ipv6Text)
	l2 := unhex(t, macs+"0800")
	broadcast := unhex(t, "ffffffffffff0200000000010800")
	multicast := unhex(t, "01005e0000010200000000010800")
	tagged := VLAN{true, 0x6064, etherVLAN}
	for name, c := range map[string]struct {
		p        Packet
		link     LinkType
		frame    string // "" = not possible
		original int    // 0 = as long as the frame
	}{
		"sll2 in": {p: Packet{Protocol: etherIPv4, Family: FamilyIPv4, In: 2, HWHeader: l2, HasHWType: true, HWType: 1, Payload: ip}, link: LinkSLL2,
			frame: "0800000000000002000100060200000000010000" + ipv4Text},
		"sll2 broadcast": {p: Packet{Protocol: etherIPv4, Family: FamilyIPv4, In: 2, HWHeader: broadcast, HasHWType: true, HWType: 1, Payload: ip}, link: LinkSLL2,
			frame: "0800000000000002000101060200000000010000" + ipv4Text},
		"sll2 multicast": {p: Packet{Protocol: etherIPv4, Family: FamilyIPv4, In: 2, HWHeader: multicast, HasHWType: true, HWType: 1, Payload: ip}, link: LinkSLL2,
			frame: "0800000000000002000102060200000000010000" + ipv4Text},
		"sll2 out": {p: Packet{Protocol: etherIPv6, Family: FamilyIPv6, Hook: HookOutput, Out: 0x01020304, HasHWType: true, HWType: 1, Payload: ip6}, link: LinkSLL2,
			frame: "86dd000001020304000104000000000000000000" + ipv6Text},
		"sll2 without a hardware type": {p: Packet{Protocol: etherIPv4, Family: FamilyIPv4, In: 9, Payload: ip}, link: LinkSLL2,
			frame: "0800000000000009fffe00000000000000000000" + ipv4Text},
		"sll2 with an address only": {p: Packet{Protocol: etherIPv4, Family: FamilyIPv4, In: 9, HasHWType: true, HWType: 32, HWAddr: unhex(t, "0102030405060708"), Payload: ip}, link: LinkSLL2,
			frame: "0800000000000009002000080102030405060708" + ipv4Text},
		"sll2 with a tag": {p: Packet{Protocol: etherIPv4, Family: FamilyNetdev, In: 2, L2Header: l2, HasHWType: true, HWType: 1, VLAN: tagged, Payload: ip}, link: LinkSLL2,
			frame: "810000000000000200010006020000000001000060640800" + ipv4Text},
		"sll2 at egress": {p: Packet{Protocol: etherIPv4, Family: FamilyNetdev, Hook: HookNetdevEgress, Out: 3, L2Header: l2, HasHWType: true, HWType: 1, Payload: append(unhex(t, macs+"0800"), ip...)}, link: LinkSLL2,
			frame: "0800000000000003000104060200000000010000" + ipv4Text},
		"sll2 IPv4 multicast on a tunnel": {p: Packet{Protocol: etherIPv4, Family: FamilyIPv4, In: 4, HasHWType: true, HWType: hwNone, Payload: unhex(t, "45000014000040000111000a0a090001e0000005")}, link: LinkSLL2,
			frame: "0800000000000004fffe0200000000000000000045000014000040000111000a0a090001e0000005"},

		"ethernet at ingress": {p: Packet{Protocol: etherIPv4, Family: FamilyNetdev, L2Header: l2, HasHWType: true, HWType: 1, Payload: ip}, link: LinkEthernet,
			frame: macs + "0800" + ipv4Text},
		"ethernet at egress": {p: Packet{Protocol: etherIPv4, Family: FamilyNetdev, Hook: HookNetdevEgress, L2Header: l2, Payload: append(unhex(t, macs+"0800"), ip...)}, link: LinkEthernet,
			frame: macs + "0800" + ipv4Text},
		"ethernet at egress, tags from a socket": {p: Packet{Protocol: etherVLAN, Family: FamilyNetdev, Hook: HookNetdevEgress, L2Header: unhex(t, macs+"8100006481000005"+"0800"),
			Payload: append(unhex(t, macs+"81000064810000050800"), ip...)}, link: LinkEthernet, frame: macs + "81000064810000050800" + ipv4Text},
		"sll2 at egress, a tag from a socket": {p: Packet{Protocol: etherVLAN, Family: FamilyNetdev, Hook: HookNetdevEgress, Out: 3, L2Header: unhex(t, macs+"810000640800"), HasHWType: true, HWType: 1,
			Payload: append(unhex(t, macs+"810000640800"), ip...)}, link: LinkSLL2, frame: "8100000000000003000104060200000000010000" + "00640800" + ipv4Text},
		"ethernet at egress, cut in the header": {p: Packet{Protocol: etherIPv4, Family: FamilyNetdev, Hook: HookNetdevEgress, L2Header: l2, Cut: true, Payload: unhex(t, "0200")}, link: LinkEthernet,
			frame: macs + "0800"},
		"ethernet tagged": {p: Packet{Protocol: etherIPv4, Family: FamilyNetdev, L2Header: l2, HasHWType: true, HWType: 1, VLAN: tagged, Payload: ip}, link: LinkEthernet,
			frame: macs + "810060640800" + ipv4Text},
		"ethernet QinQ": {p: Packet{Protocol: etherVLAN, Family: FamilyNetdev, L2Header: unhex(t, macs+"8100"), VLAN: VLAN{true, 0x0007, etherQinQ}, Payload: append(unhex(t, "00c80800"), ip...)}, link: LinkEthernet,
			frame: macs + "88a80007810000c80800" + ipv4Text},
		"ethernet at prerouting": {p: Packet{Protocol: etherIPv4, Family: FamilyIPv4, HWHeader: l2, HasHWType: true, HWType: 1, Payload: ip}, link: LinkEthernet,
			frame: macs + "0800" + ipv4Text},
		"ethernet, ethertype of another packet": {p: Packet{Protocol: etherIPv6, Family: FamilyIPv6, HWHeader: l2, HasHWType: true, HWType: 1, Payload: ip6}, link: LinkEthernet},
		"ethernet of a tunnel":                  {p: Packet{Protocol: etherIPv4, Family: FamilyIPv4, HWHeader: l2, HasHWType: true, HWType: hwNone, Payload: ip}, link: LinkEthernet},
		"ethernet of a local packet":            {p: Packet{Protocol: etherIPv4, Family: FamilyIPv4, Hook: HookOutput, HasHWType: true, HWType: 1, Payload: ip}, link: LinkEthernet},
		"ethernet, short header":                {p: Packet{Protocol: etherIPv4, Family: FamilyNetdev, L2Header: l2[:8], Payload: ip}, link: LinkEthernet},

		"raw":           {p: Packet{Protocol: etherIPv4, Family: FamilyIPv4, Payload: ip}, link: LinkRaw, frame: ipv4Text},
		"raw at egress": {p: Packet{Protocol: etherIPv4, Family: FamilyNetdev, Hook: HookNetdevEgress, L2Header: l2, Payload: append(unhex(t, macs+"0800"), ip...)}, link: LinkRaw, frame: ipv4Text},
		"raw QinQ":      {p: Packet{Protocol: etherVLAN, Family: FamilyNetdev, L2Header: unhex(t, macs+"8100"), Payload: append(unhex(t, "00c886dd"), ip6...)}, link: LinkRaw, frame: ipv6Text},
		"raw ARP":       {p: Packet{Protocol: 0x0806, Family: FamilyNetdev, L2Header: l2, Payload: make([]byte, 28)}, link: LinkRaw},
		"raw nothing":   {p: Packet{Protocol: etherIPv4}, link: LinkRaw},
		"unknown link":  {p: Packet{Protocol: etherIPv4, Payload: ip}, link: 147},

		"cut IPv4":                     {p: Packet{Protocol: etherIPv4, Family: FamilyIPv4, Cut: true, Payload: ip}, link: LinkRaw, frame: ipv4Text, original: 84},
		"cut IPv6":                     {p: Packet{Protocol: etherIPv6, Family: FamilyIPv6, Cut: true, Payload: ip6}, link: LinkRaw, frame: ipv6Text, original: 80},
		"cut in sll2":                  {p: Packet{Protocol: etherIPv4, Family: FamilyIPv4, In: 1, Cut: true, Payload: ip}, link: LinkSLL2, frame: "0800000000000001fffe00000000000000000000" + ipv4Text, original: 104},
		"cut, tagged":                  {p: Packet{Protocol: etherIPv4, Family: FamilyNetdev, L2Header: l2, VLAN: tagged, Cut: true, Payload: ip}, link: LinkEthernet, frame: macs + "810060640800" + ipv4Text, original: 102},
		"cut QinQ":                     {p: Packet{Protocol: etherVLAN, Family: FamilyNetdev, L2Header: unhex(t, macs+"8100"), VLAN: VLAN{true, 7, etherQinQ}, Cut: true, Payload: append(unhex(t, "00c80800"), ip...)}, link: LinkEthernet, frame: macs + "88a80007810000c80800" + ipv4Text, original: 106},
		"cut, an old QinQ tag":         {p: Packet{Protocol: etherOldTag, Family: FamilyNetdev, L2Header: unhex(t, macs+"9100"), Cut: true, Payload: append(unhex(t, "00c80800"), ip...)}, link: LinkEthernet, frame: macs + "910000c80800" + ipv4Text, original: 102},
		"cut BIG TCP, length unknown":  {p: Packet{Protocol: etherIPv4, Cut: true, Payload: unhex(t, "45000000000040004006000a0a0900010a090002")}, link: LinkRaw, frame: "45000000000040004006000a0a0900010a090002"},
		"cut before the length":        {p: Packet{Protocol: etherIPv4, Cut: true, Payload: unhex(t, "450000")}, link: LinkRaw, frame: "450000"},
		"cut jumbogram":                {p: Packet{Protocol: etherIPv6, Cut: true, Payload: unhex(t, "6000000000000040"+ipv6Text[16:]+"3a00c20400012345")}, link: LinkRaw, frame: "6000000000000040" + ipv6Text[16:] + "3a00c20400012345", original: 40 + 0x12345},
		"cut jumbogram, other options": {p: Packet{Protocol: etherIPv6, Cut: true, Payload: unhex(t, "6000000000000040"+ipv6Text[16:]+"3a0100010000"+"c20400020000"+"00000000")}, link: LinkRaw, frame: "6000000000000040" + ipv6Text[16:] + "3a0100010000" + "c20400020000" + "00000000", original: 40 + 0x20000},
		"cut, said to be shorter":      {p: Packet{Protocol: etherIPv4, Cut: true, Payload: append(unhex(t, ipv4Text), make([]byte, 90)...)}, link: LinkRaw, frame: ipv4Text + string(bytes.Repeat([]byte("0"), 180))},
		"whole, padded at ingress":     {p: Packet{Protocol: etherIPv4, Family: FamilyNetdev, L2Header: l2, Payload: append(unhex(t, ipv4Text), make([]byte, 90)...)}, link: LinkEthernet, frame: macs + "0800" + ipv4Text + string(bytes.Repeat([]byte("0"), 180))},
	} {
		t.Run(name, func(t *testing.T) {
			var scratch [MaxHead]byte
			for i := range scratch {
				scratch[i] = 0xa5
			}
			head, body, original, ok := c.p.Frame(c.link, &scratch)
			if !ok {
				if c.frame != "" {
					t.Fatal("not possible")
				}
				return
			}
			want := unhex(t, c.frame)
			if c.original == 0 {
				c.original = len(want)
			}
			if got := append(bytes.Clone(head), body...); !bytes.Equal(got, want) || c.frame == "" {
				t.Errorf("frame\n%x, want\n%x", got, want)
			}
			if int(original) != c.original {
				t.Errorf("original length %d, want %d", original, c.original)
			}
		})
	}
}

func TestDirection(t *testing.T) {
	for _, c := range []struct {
		family, hook uint8
		want         Direction
		device       uint32
	}{
		{FamilyIPv4, HookPrerouting, Inbound, 1}, {FamilyIPv6, HookInput, Inbound, 1}, {FamilyIPv4, HookForward, DirectionUnknown, 1},
		{FamilyIPv4, HookOutput, Outbound, 2}, {FamilyIPv6, HookPostrouting, Outbound, 2}, {FamilyIPv4, HookInetIngress, Inbound, 1},
		{FamilyNetdev, HookNetdevIngress, Inbound, 1}, {FamilyNetdev, HookNetdevEgress, Outbound, 2}, {FamilyBridge, HookPostrouting, Outbound, 2},
	} {
		p := Packet{Family: c.family, Hook: c.hook, In: 1, Out: 2}
		if p.Direction() != c.want || p.Interface() != c.device {
			t.Errorf("family %d hook %d: direction %d on %d, want %d on %d", c.family, c.hook, p.Direction(), p.Interface(), c.want, c.device)
		}
	}
	for _, p := range []Packet{{In: 5, Hook: HookOutput, Family: FamilyIPv4}, {Out: 5, Hook: HookForward, Family: FamilyIPv4}} {
		if p.Interface() != 5 {
			t.Errorf("the only device of %+v is not taken", p)
		}
	}
}
