package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"capd/nft"
	"capd/nft/filter"
	"capd/testbed"
)

// hostList is an expression of so many hosts, none of which the injected frames are from
// or to.
func hostList(n int) string {
	hosts := make([]string, n)
	for i := range hosts {
		hosts[i] = fmt.Sprintf("172.16.%d.%d", i/250, i%250+1)
	}
	return "host " + strings.Join(hosts, " or ")
}

// filter1000 compares a thousand hosts with one: how long the rules take to install, and
// what a packet that passes them costs.
func filter1000(b *bench) ([]figure, error) {
	install := figure{What: "rules of 1,000 hosts, from the text to the kernel's yes, worst of 20", Unit: "ms", Target: "< 100", Command: "nft.Table.Install"}
	if err := testbed.Do(b.bed.b, func() error { return installHosts(1000, &install) }); err != nil {
		return nil, err
	}
	install.Value = slices.Max(install.Spread)
	install.Met = install.Value < 100

	start := figure{What: "capctl start with 1,000 hosts", Unit: "ms", Command: "capctl start host 172.16.0.1 or …"}
	cases := []struct {
		what  string
		hosts int // 0 = no capture
		cost  figure
	}{{"no capture", 0, figure{}}, {"a capture of 1 host", 1, figure{}}, {"a capture of 1,000 hosts", 1000, figure{}}}
	err := b.withCapd(anyCPU, "auto", func(d *capd) error {
		if err := b.bed.rule("udp dport 9 counter drop"); err != nil { // after capd's own chain
			return err
		}
		for range b.repeats {
			for i := range cases {
				c := &cases[i]
				id := ""
				if c.hosts > 0 {
					var took time.Duration
					var err error
					if id, took, err = d.ctl("start", "-q", "-t", "1h", hostList(c.hosts)); err != nil {
						return err
					}
					if c.hosts > 1 {
						start.Spread = append(start.Spread, float64(took)/1e6)
					}
				}
				sent, err := inject(b.bed, b.frames, 60, injectorCPU)
				if err != nil {
					return err
				}
				c.cost.Spread = append(c.cost.Spread, 1e9/sent.Rate())
				if id == "" {
					continue
				}
				done, _, err := d.finish(id)
				if err != nil {
					return err
				}
				if done.Packets.Seen == nil || *done.Packets.Seen != 0 {
					return fmt.Errorf("%s saw frames that are none of its: %s", c.what, describe(done.Packets))
				}
			}
		}
		return b.bed.unrule()
	})
	if err != nil {
		return nil, err
	}
	start.Value = median(start.Spread)
	out := []figure{install, start}
	for _, c := range cases {
		c.cost.What, c.cost.Unit, c.cost.Command = "a frame that is dropped after "+c.what, "ns", "XDP_PASS frames into "+device
		c.cost.Value = median(c.cost.Spread)
		out = append(out, c.cost)
	}
	// A look-up in a set, against one comparison.
	more := figure{What: "1,000 hosts against 1, per frame", Unit: "ns", Target: "≤ 100", Value: out[4].Value - out[3].Value}
	more.Met = more.Value <= 100
	return append(out, more), nil
}

// installHosts measures in the thread's network namespace.
func installHosts(n int, took *figure) error {
	table, err := nft.Open()
	if err != nil {
		return err
	}
	defer table.Close()
	text := hostList(n)
	for i := range 20 {
		begin := time.Now()
		f, err := filter.Parse(text)
		if err != nil {
			return err
		}
		id := fmt.Sprintf("%08x", i)
		err = table.Install(nft.Spec{ID: id, Filter: f, Hooks: []string{"prerouting", "output"}, Once: true,
			Stamped: []uint16{1}, Clocked: []uint16{2}, Prefix: "capd:" + id})
		if err != nil {
			return err
		}
		took.Spread = append(took.Spread, float64(time.Since(begin))/1e6)
		if err := table.Remove(id); err != nil {
			return err
		}
	}
	return nil
}
