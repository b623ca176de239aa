package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"capd/testbed"
)

// figure is one line of the table.
type figure struct {
	Row, What string
	Unit      string
	Target    string // "" = for information
	Value     float64
	Spread    []float64 // the single runs
	Met       bool      // with a target
	Command   string
}

// row is a named group of figures that are measured together.
type row struct {
	name, what string
	run        func(*bench) ([]figure, error)
}

var rows = []row{
	{"zero-loss-60", "60-byte frames at the injector's full speed: nothing lost", zeroLoss(60)},
	{"zero-loss-1400", "1400-byte frames at full speed, whole payload: nothing lost", zeroLoss(1400)},
	{"zero-loss-snaplen160", "1400-byte frames at full speed, 160 bytes kept: nothing lost", zeroLoss(1400, "--snaplen", "160")},
	{"cpu-60", "CPU per 60-byte packet against a bare C loop and tcpdump", cpu(60, 2.5)},
	{"cpu-1400", "CPU per 1400-byte packet against a bare C loop and tcpdump", cpu(1400, 2)},
	{"peers-60", "other readers of 60-byte frames at full speed", peers(60)},
	{"peers-1400", "other readers of 1400-byte frames at full speed", peers(1400)},
	{"groups", "one group per CPU against one group, two CPUs injecting", groups},
	{"rss", "resident memory under load and after", rss},
	{"idle-cpu", "CPU of a capture that sees nothing, and of capd without a capture", idleCPU},
	{"first-packet", "from a packet's arrival to the counts that show it", firstPacket},
	{"live", "from a packet's sending to its bytes at the reader of a live stream", live},
	{"stamps", "how late stamps are where the kernel gives none, against AF_PACKET's of the same packets", stamps},
	{"start-stop", "capctl start and capctl stop with eight captures running", startStop},
	{"deliver-sftp", "1 GiB over loopback to OpenSSH, written, read back and renamed, against sftp(1)", delivery(sftpStore, "sftp put")},
	{"deliver-s3", "1 GiB over loopback to versitygw, proven by checksum or read back, against rclone", delivery(s3Store, "rclone")},
	{"quiet-neighbour", "a quiet capture beside a flooded one loses nothing", quietNeighbour},
	{"forwarding", "what a router forwards beside a capture, against no rule at all", forwarding},
	{"filter-1000", "a filter of a thousand hosts: installing it, and what a packet costs", filter1000},
	{"fleet", "capctl list on 50 boxes through ssh against ssh alone", fleet},
}

// bench is what rows work with.
type bench struct {
	bed     *bed
	frames  int
	repeats int
	samples []sample
	log     func(format string, args ...any)
}

// took keeps a sample for the plot and says what it was.
func (b *bench) took(s sample) {
	b.samples = append(b.samples, s)
	b.log("  %-32s %4d B  sent %8d at %7.0f/s  lost %8d (%5.2f %%)  %5.0f ns/packet (user %.0f, system %.0f)", s.Reader, s.Frame, s.Sent, s.Rate,
		s.lost(), s.lostPercent(), s.perPacket(), float64(s.User)/float64(max(1, s.Captured)), float64(s.System)/float64(max(1, s.Captured)))
}

func (b *bench) withCapd(cpu int, groups string, f func(*capd) error) error {
	d, err := startCapd(b.bed, cpu, groups)
	if err != nil {
		return err
	}
	defer d.stop()
	return f(d)
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if len(v) == 0 {
		return 0
	}
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func zeroLoss(length int, flags ...string) func(*bench) ([]figure, error) {
	return func(b *bench) ([]figure, error) {
		lost := figure{What: fmt.Sprintf("packets lost of %d, worst of %d runs", b.frames, b.repeats), Unit: "packets", Target: "= 0"}
		rate := figure{What: "frames sent per second", Unit: "frames/s"}
		err := b.withCapd(readerCPU, "auto", func(d *capd) error {
			for range b.repeats {
				s, err := d.flood(b.frames, length, []int{injectorCPU}, flags...)
				if err != nil {
					return err
				}
				b.took(s)
				lost.Command, rate.Command = s.Command, s.Command
				lost.Spread = append(lost.Spread, float64(s.lost()))
				rate.Spread = append(rate.Spread, s.Rate)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		lost.Value, rate.Value = slices.Max(lost.Spread), median(rate.Spread)
		lost.Met = lost.Value == 0
		return []figure{lost, rate}, nil
	}
}

// cpu compares, reader after reader in each repeat, so that a slow spell hits all.
func cpu(length int, target float64) func(*bench) ([]figure, error) {
	return func(b *bench) ([]figure, error) {
		capdNS := figure{What: "capd: CPU of the whole daemon per packet, start to stop", Unit: "ns"}
		user := figure{What: "capd: of this in user mode", Unit: "ns"}
		other := figure{What: "capd: of this not in the reading thread", Unit: "ns"}
		later := figure{What: "capd: CPU per packet after the stop (hashing)", Unit: "ns"}
		sinkNS := figure{What: "sink: bare recvmmsg loop in C that discards", Unit: "ns"}
		dumpNS := figure{What: "tcpdump -B 65536 -i nflog -w, per captured packet", Unit: "ns"}
		toSink := figure{What: "capd / sink", Unit: "×", Target: fmt.Sprintf("≤ %g", target)}
		toDump := figure{What: "capd / tcpdump -B", Unit: "×", Target: "≤ 0.4"}
		for range b.repeats {
			s, err := sink().run(b.bed, b.frames, length)
			if err != nil {
				return nil, err
			}
			b.took(s)
			t, err := tcpdumpBig().run(b.bed, b.frames, length)
			if err != nil {
				return nil, err
			}
			b.took(t)
			var c sample
			err = b.withCapd(readerCPU, "auto", func(d *capd) (err error) {
				c, err = d.flood(b.frames, length, []int{injectorCPU})
				return err
			})
			if err != nil {
				return nil, err
			}
			b.took(c)
			n := float64(max(1, c.Captured))
			for f, v := range map[*figure]float64{
				&capdNS: c.perPacket(), &sinkNS: s.perPacket(), &dumpNS: t.perPacket(),
				&user: float64(c.User) / n, &other: float64(c.Other) / n, &later: float64(c.Later) / n,
			} {
				f.Spread = append(f.Spread, v)
			}
			toSink.Spread = append(toSink.Spread, c.perPacket()/s.perPacket())
			toDump.Spread = append(toDump.Spread, c.perPacket()/t.perPacket())
			capdNS.Command, sinkNS.Command, dumpNS.Command = c.Command, s.Command, t.Command
		}
		list := []*figure{&capdNS, &user, &other, &later, &sinkNS, &dumpNS, &toSink, &toDump}
		out := make([]figure, len(list))
		for i, f := range list {
			f.Value = median(f.Spread)
			out[i] = *f
		}
		// The ratio of the medians; the ratios of the single repeats are the spread.
		out[6].Value, out[7].Value = capdNS.Value/sinkNS.Value, capdNS.Value/dumpNS.Value
		out[6].Met, out[7].Met = out[6].Value <= target, out[7].Value <= 0.4
		return out, nil
	}
}

func peers(length int) func(*bench) ([]figure, error) {
	return func(b *bench) ([]figure, error) {
		var out []figure
		add := func(s sample) {
			b.took(s)
			out = append(out, figure{What: s.Reader + ": lost", Unit: "%", Value: s.lostPercent(), Command: s.Command},
				figure{What: s.Reader + ": CPU per captured packet", Unit: "ns", Value: s.perPacket(), Command: s.Command})
		}
		for _, p := range append([]peer{sink(), tcpdumpBig()}, otherPeers()...) {
			s, err := p.run(b.bed, b.frames, length)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", p.name, err)
			}
			add(s)
		}
		err := b.withCapd(readerCPU, "auto", func(d *capd) error {
			s, err := d.flood(b.frames, length, []int{injectorCPU})
			if err == nil {
				add(s)
			}
			return err
		})
		return out, err
	}
}

func groups(b *bench) ([]figure, error) {
	if runtime.NumCPU() < 2 {
		return nil, fmt.Errorf("needs two CPUs")
	}
	const repeats = 5
	var out []figure
	for _, length := range []int{60, 1400} {
		delivered := map[string]*figure{
			"1":    {What: fmt.Sprintf("one group, %d bytes: packets delivered per second", length), Unit: "packets/s", Command: "[ring] groups = 1"},
			"auto": {What: fmt.Sprintf("one group per CPU, %d bytes: packets delivered per second", length), Unit: "packets/s", Command: `[ring] groups = "auto"`},
		}
		for range repeats {
			for _, n := range []string{"1", "auto"} {
				err := b.withCapd(anyCPU, n, func(d *capd) error {
					s, err := d.flood(b.frames, length, []int{0, 1})
					if err != nil {
						return err
					}
					s.Reader += " (groups " + n + ", 2 injectors)"
					b.took(s)
					delivered[n].Spread = append(delivered[n].Spread, s.Rate*float64(s.Captured)/float64(s.Sent))
					return nil
				})
				if err != nil {
					return nil, err
				}
			}
		}
		ratio := figure{What: fmt.Sprintf("one group per CPU / one group, %d bytes", length), Unit: "×"}
		for i, v := range delivered["auto"].Spread {
			ratio.Spread = append(ratio.Spread, v/delivered["1"].Spread[i])
		}
		for _, f := range delivered {
			f.Value = median(f.Spread)
		}
		ratio.Value = delivered["auto"].Value / delivered["1"].Value
		if length == 60 {
			ratio.Target, ratio.Met = "≥ 1.15", ratio.Value >= 1.15
		}
		out = append(out, *delivered["1"], *delivered["auto"], ratio)
	}
	return out, nil
}

const mib = 1 << 20

func rss(b *bench) ([]figure, error) {
	idle := figure{What: "before the first capture", Unit: "MiB"}
	peak := figure{What: "at most, under a flood of 60- and one of 1400-byte frames", Unit: "MiB"}
	after := figure{What: "after the last capture", Unit: "MiB"}
	err := b.withCapd(readerCPU, "auto", func(d *capd) error {
		idle.Value = float64(status(d.cmd.Process.Pid, "VmRSS")) / mib
		for _, length := range []int{60, 1400} {
			s, err := d.flood(b.frames, length, []int{injectorCPU})
			if err != nil {
				return err
			}
			b.took(s)
			peak.Command = s.Command
			peak.Value = float64(s.PeakRSS) / mib
		}
		limit := float64(d.ring)/mib + 32 // write blocks are part of [ring] size
		peak.Target, peak.Met = fmt.Sprintf("≤ ring + 32 = %.0f", limit), peak.Value <= limit
		after.Value = float64(status(d.cmd.Process.Pid, "VmRSS")) / mib
		return nil
	})
	return []figure{idle, peak, after}, err
}

func idleCPU(b *bench) ([]figure, error) {
	const span = 10 * time.Second
	none := figure{What: "no capture: share of a core", Unit: "%"}
	wakes := figure{What: "no capture: wakeups per second", Unit: "1/s"}
	one := figure{What: "one idle capture: share of a core", Unit: "%", Target: "< 0.5"}
	err := b.withCapd(readerCPU, "auto", func(d *capd) error {
		measure := func() (share, wakeups float64, err error) {
			time.Sleep(2 * time.Second) // what starting left behind
			before, err := d.usage()
			if err != nil {
				return 0, 0, err
			}
			switched := d.switches()
			time.Sleep(span)
			after, err := d.usage()
			return 100 * float64(after.total-before.total) / float64(span), float64(d.switches()-switched) / span.Seconds(), err
		}
		var err error
		if none.Value, wakes.Value, err = measure(); err != nil {
			return err
		}
		id, _, err := d.begin(9)
		if err != nil {
			return err
		}
		if one.Value, _, err = measure(); err != nil {
			return err
		}
		one.Met, one.Command = one.Value < 0.5, "capctl start -f request.json"
		_, _, err = d.finish(id)
		return err
	})
	return []figure{none, wakes, one}, err
}

// switches counts how often capd's threads have gone to sleep so far.
func (d *capd) switches() int64 {
	var sum int64
	for _, pid := range d.processes() {
		for _, task := range threads(pid) {
			for line := range strings.Lines(readAll(task + "/status")) {
				if f := strings.Fields(line); len(f) == 2 && f[0] == "voluntary_ctxt_switches:" {
					n, _ := strconv.ParseInt(f[1], 10, 64)
					sum += n
				}
			}
		}
	}
	return sum
}

func firstPacket(b *bench) ([]figure, error) {
	worst := figure{What: "a single packet to the counts, worst of 20", Unit: "ms", Target: "≤ 100", Command: "GET /v1/captures/{id} every ms"}
	middle := figure{What: "a single packet to the counts, median", Unit: "ms"}
	err := b.withCapd(readerCPU, "auto", func(d *capd) error {
		id, _, err := d.begin(9)
		if err != nil {
			return err
		}
		var out *net.UDPConn
		err = testbed.Do(b.bed.a, func() (err error) {
			out, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.MustParseAddrPort("10.9.0.2:9")))
			return err
		})
		if err != nil {
			return err
		}
		defer func() { _ = out.Close() }()
		for want := uint64(1); want <= 20; want++ {
			time.Sleep(150 * time.Millisecond)
			start := time.Now()
			if _, err := out.Write([]byte("one packet")); err != nil {
				_, err = out.Write([]byte("one packet")) // the answer to the last one: port unreachable
				if err != nil {
					return err
				}
			}
			for {
				c, err := d.client.Get(context.Background(), id)
				if err != nil {
					return err
				}
				if c.Packets.Captured >= want {
					break
				}
				if time.Since(start) > 5*time.Second {
					return fmt.Errorf("packet %d was not counted within 5 s", want)
				}
				time.Sleep(time.Millisecond)
			}
			worst.Spread = append(worst.Spread, float64(time.Since(start))/1e6)
		}
		_, _, err = d.finish(id)
		return err
	})
	if err != nil {
		return nil, err
	}
	middle.Value, worst.Value = median(worst.Spread), slices.Max(worst.Spread)
	worst.Met = worst.Value <= 100
	return []figure{worst, middle}, nil
}

func startStop(b *bench) ([]figure, error) {
	start := figure{What: "capctl start beside eight captures, worst of 20", Unit: "ms", Target: "< 100", Command: "capctl start -f request.json"}
	stop := figure{What: "capctl stop beside eight captures, worst of 20", Unit: "ms", Target: "< 100", Command: "capctl stop ID"}
	err := b.withCapd(anyCPU, "auto", func(d *capd) error {
		for i := range 8 {
			if _, _, err := d.begin(1000 + i); err != nil {
				return err
			}
		}
		for range 20 {
			id, took, err := d.begin(9)
			if err != nil {
				return err
			}
			start.Spread = append(start.Spread, float64(took)/1e6)
			time.Sleep(50 * time.Millisecond)
			if _, took, err = d.finish(id); err != nil {
				return err
			}
			stop.Spread = append(stop.Spread, float64(took)/1e6)
		}
		_, _, err := d.ctl("stop", "--all")
		return err
	})
	if err != nil {
		return nil, err
	}
	var out []figure
	for _, f := range []figure{start, stop} {
		f.Value = slices.Max(f.Spread)
		f.Met = f.Value < 100
		out = append(out, f, figure{What: strings.Replace(f.What, "worst of 20", "median", 1), Unit: "ms", Value: median(f.Spread), Command: f.Command})
	}
	return out, nil
}

func quietNeighbour(b *bench) ([]figure, error) {
	quiet := figure{What: "packets lost of 1000 in the quiet capture", Unit: "packets", Target: "= 0"}
	err := b.withCapd(readerCPU, "auto", func(d *capd) error {
		const count = 1000
		id, _, err := d.begin(10)
		if err != nil {
			return err
		}
		sent := make(chan error, 1)
		go func() {
			_, err := testbed.Inject(b.bed.b, testbed.InjectOptions{Interface: device, Count: count, Rate: 500, Port: 10})
			sent <- err
		}()
		s, err := d.flood(b.frames, 1400, []int{injectorCPU})
		if e := <-sent; err == nil {
			err = e
		}
		if err != nil {
			return err
		}
		b.took(s)
		c, _, err := d.finish(id)
		quiet.Value = count - float64(c.Packets.Captured)
		quiet.Met, quiet.Command = quiet.Value == 0 && *c.Packets.Lost == 0, s.Command
		return err
	})
	return []figure{quiet}, err
}
