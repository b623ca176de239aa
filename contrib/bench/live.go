package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	"capd/ctl/client"
	"capd/ring/pcapng"
	"capd/testbed"
)

// live measures how soon a packet is with the reader of a live stream: from its sending
// to the bytes at the reader, through ring, tap, HTTP and socket. One packet alone at a
// hook where the kernel stamps, one where it does not, and the last of a burst of 50.
func live(b *bench) ([]figure, error) {
	var out []figure
	for _, c := range []struct {
		what  string
		hook  string
		burst int
	}{
		{"a single packet to a live stream's reader, prerouting", "prerouting", 1},
		{"a single packet to a live stream's reader, output", "output", 1},
		{"the last of 50 packets in a row, prerouting", "prerouting", 50},
	} {
		worst := figure{What: c.what + ", worst of 40", Unit: "ms", Target: "≤ 100", Command: "GET /v1/captures/{id}/stream"}
		err := b.withCapd(readerCPU, "auto", func(d *capd) (err error) {
			worst.Spread, err = liveDelays(b, d, c.hook, c.burst)
			return err
		})
		if err != nil {
			return out, err
		}
		worst.Value = slices.Max(worst.Spread)
		worst.Met = worst.Value <= 100
		out = append(out, worst, figure{What: c.what + ", median", Unit: "ms", Value: median(worst.Spread)})
	}
	return out, nil
}

// liveDelays sends bursts, each when the one before has long arrived, and gives in ms how
// long the last packet of each took to the reader.
func liveDelays(b *bench, d *capd, hook string, burst int) (delays []float64, err error) {
	const port, rounds = 9, 40
	id, _, err := d.begin(port, "--hook", hook)
	if err != nil {
		return nil, err
	}
	from, to := b.bed.a, "10.9.0.2:9"
	if hook == "output" {
		from, to = b.bed.b, "10.9.0.1:9"
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	r, err := d.client.Stream(ctx, id, client.StreamOptions{})
	if err != nil {
		return nil, err
	}
	defer r.Close()
	arrived := make(chan time.Time, rounds*burst)
	read := make(chan error, 1)
	go func() {
		blocks := pcapng.NewReader(r)
		for {
			block, err := blocks.Next()
			if err != nil {
				read <- err
				return
			}
			if block.Type == pcapng.TypePacket {
				arrived <- time.Now()
			}
		}
	}()
	var conn *net.UDPConn
	err = testbed.Do(from, func() (err error) {
		conn, err = net.ListenUDP("udp4", nil) // not connected: no error for each answer that nobody listens
		return err
	})
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	for range rounds {
		time.Sleep(150 * time.Millisecond)
		var sent time.Time
		for range burst {
			sent = time.Now()
			if _, err := conn.WriteToUDPAddrPort([]byte("one packet"), netip.MustParseAddrPort(to)); err != nil {
				return nil, err
			}
		}
		for n := range burst {
			select {
			case at := <-arrived:
				if n == burst-1 {
					delays = append(delays, float64(at.Sub(sent))/1e6)
				}
			case err := <-read:
				return nil, fmt.Errorf("the stream ended: %w", err)
			case <-time.After(5 * time.Second):
				return nil, fmt.Errorf("packet %d of %d has not come within 5 s", n+1, burst)
			}
		}
	}
	if _, _, err := d.finish(id); err != nil {
		return nil, err
	}
	if err := <-read; !errors.Is(err, io.EOF) {
		return nil, err
	}
	return delays, nil
}
