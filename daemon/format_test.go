package daemon

import (
	"strings"
	"testing"

	"capd/ctl/wire"
	"capd/ring"
	"capd/ring/pcapng"
)

// A kernel may leave packets without a receive stamp at hooks where it has some (before
// Linux 6.6 the first ones, and all where nothing asks for stamps): the file says of each
// packet which clock its time is from, and a full one has as many interfaces as clocks.
func TestFilesSayWhereTheTimeIsFrom(t *testing.T) {
	unstamped := testPacket(1, minPacket, false)
	unstamped.KernelTime, unstamped.In = false, 1
	atDevice := unstamped
	atDevice.Family = ring.FamilyNetdev
	atEgress := atDevice
	atEgress.Hook, atEgress.Out = ring.HookNetdevEgress, 1
	stamped := testPacket(2, minPacket, false)
	stamped.In = 1
	out := testPacket(3, minPacket, true)
	out.Out = 1
	packets := []ring.Packet{unstamped, stamped, unstamped, atDevice, atEgress, out, stamped}
	want := []string{"20 ms", "receive stamps", "20 ms", "20 ms", "20 ms", "none at this hook", "receive stamps"}

	o := runEngine(t, wire.StartRequest{LinkType: wire.LinkSLL2}, listOf(packets), 0)
	n := 0
	interfaces := readFile(t, o.files[0], func(i pcapng.Interface, _ pcapng.Packet) {
		if n < len(want) && !strings.Contains(i.Comment, want[n]) {
			t.Errorf("packet %d: %q does not tell of %q", n, i.Comment, want[n])
		}
		n++
	}, nil)
	if n != len(packets) || len(interfaces) != 5 {
		t.Errorf("%d packets of %d interfaces", n, len(interfaces))
	}
}
