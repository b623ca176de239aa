package main

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"

	"capd/ctl/wire"
	"capd/testbed"
)

// A capture of everything on the interface through which capd delivers holds no packet of
// a delivery, and those of others to the same server all the same.
func TestDeliveriesAreNotCaptured(t *testing.T) {
	p := testbed.NewPair(t)
	sshd := testbed.NewSSHD(t)
	s3 := testbed.NewS3(t, testbed.S3Options{})
	relays := map[string]*testbed.Relay{}
	toml := ""
	for version, address := range map[string]netip.Addr{"4": testbed.A4, "6": testbed.A6} {
		at := netip.AddrPortFrom(address, 0)
		soc, evidence := testbed.NewRelay(t, p.A, at, sshd.Address), testbed.NewRelay(t, p.A, at, s3.Address)
		relays["soc"+version], relays["evidence"+version] = soc, evidence
		toml += fmt.Sprintf("[destination.soc%s]\ntype = \"sftp\"\naddress = %q\nuser = %q\nprivate_key = %q\nhost_key = %q\n",
			version, soc.Address, sshd.User, sshd.PrivateKey, sshd.HostKey)
		toml += fmt.Sprintf("[destination.evidence%s]\ntype = \"s3\"\nendpoint = \"http://%s\"\nbucket = %q\naccess_key_id = %q\nsecret_access_key_file = %q\n",
			version, evidence.Address, s3.Bucket, s3.AccessKeyID, s3.SecretFile)
	}
	d := testbed.StartDaemon(t, p.B, toml)
	everything := [][]string{
		{"--interface", "vb"}, {}, {"--hook", "prerouting,input,output,postrouting"},
	}
	var before []string
	delivered := map[string]string{} // id to the folder where deliveries land
	spoken := map[netip.AddrPort]bool{}
	for _, how := range everything {
		before = append(before, d.Must(append([]string{"start"}, how...)...))
	}
	for name, relay := range relays {
		// It captures everything where it delivers, and delivers each few packets.
		id := d.Must("start", "--interface", "vb", "-d", name, "--segment-size", "64KiB")
		for range 5 {
			if _, err := testbed.SendUDP(testbed.Stream{From: p.B, To: p.A, Source: netip.AddrPortFrom(testbed.B4, 0),
				Destination: netip.AddrPortFrom(testbed.A4, 5000), Count: 100, Size: 1000}); err != nil {
				t.Fatal(err)
			}
			d.Await(id, "delivering while it runs", func(c wire.Capture) bool { return c.Bytes.Delivered > 0 })
		}
		spoken[talkTCP(t, p, relay)] = true
		d.Must("stop", id)
		c := d.Await(id, "complete", isComplete)
		checkCounts(t, c)
		delivered[id] = map[byte]string{'s': sshd.Root, 'e': filepath.Join(s3.Root, s3.Bucket)}[name[0]]
	}
	// One that begins while connections are kept.
	late := d.Must("start", "--interface", "vb")
	spoken[talkTCP(t, p, relays["soc4"])] = true
	d.Must("destination", "check", "soc4")
	d.Must("stop", "--all")

	others := map[netip.AddrPort]bool{}
	for name, relay := range relays {
		list := d.Show(before[0]).Exclude
		for _, peer := range relay.Peers() {
			ours := slices.Contains(list, wire.Flow{Source: peer.Addr().String(), SourcePort: wire.Port(peer.Port()),
				Destination: relay.Address.Addr().String(), DestinationPort: wire.Port(relay.Address.Port())})
			others[peer] = !ours
			if ours == spoken[peer] {
				t.Errorf("%s: the connection from %s: the record lists it as capd's own: %v", name, peer, ours)
			}
		}
		if n := len(relay.Peers()); n < 3 {
			t.Errorf("%s: %d connections in all", name, n)
		}
	}
	judge := func(id string, paths []string, want int) {
		c := d.Show(id)
		checkCounts(t, c)
		heard := map[netip.AddrPort]int{}
		for _, path := range paths {
			for _, pk := range testbed.TsharkPackets(t, path, "tcp") {
				for _, end := range []netip.AddrPort{pk.Source, pk.Destination} {
					if _, known := others[end]; known {
						heard[end]++
					}
				}
			}
		}
		for end, n := range heard {
			if !others[end] {
				t.Errorf("a capture at %v, %v holds %d packets of the delivery from %s", c.Interfaces, c.Hooks, n, end)
			}
		}
		if len(heard) != want {
			t.Errorf("a capture at %v, %v holds %d connections of others, want %d", c.Interfaces, c.Hooks, len(heard), want)
		}
		if len(c.Exclude) == 0 {
			t.Errorf("the record of a capture at %v, %v does not say what was left out", c.Interfaces, c.Hooks)
		}
	}
	for _, id := range before {
		judge(id, files(t, d, id), len(relays)+1)
	}
	judge(late, files(t, d, late), 1)
	for id, root := range delivered {
		paths, err := filepath.Glob(filepath.Join(root, "*", "*", id, "*.pcapng"))
		if err != nil || len(paths) < 5 {
			t.Fatalf("%d files of %s were delivered (%v)", len(paths), id, err)
		}
		judge(id, paths, 1)
	}
}

// talkTCP is somebody else who speaks to the server of a destination, from the address
// that it gives.
func talkTCP(t *testing.T, p testbed.Pair, to *testbed.Relay) netip.AddrPort {
	t.Helper()
	var conn net.Conn
	testbed.In(t, p.B, func() (err error) {
		conn, err = net.Dial("tcp", to.Address.String())
		return err
	})
	defer conn.Close()
	for range 10 {
		if _, err := conn.Write([]byte("not SSH, and no HTTP either\r\n")); err != nil {
			break // the server may hang up on that
		}
	}
	return conn.LocalAddr().(*net.TCPAddr).AddrPort()
}
