package daemon

import (
	"net"
	"slices"

	"capd/ctl/wire"
)

// Status describes the daemon (api.Daemon).
func (d *Daemon) Status() wire.Status {
	cfg := d.config()
	st := wire.Status{Version: d.version, Host: d.host, Kernel: d.kernel, Started: wire.Time{Time: d.started},
		Features: map[string]bool{}, Clock: readClock(), Rings: d.rings(), Interfaces: []string{}}
	if links, err := net.Interfaces(); err == nil {
		for _, l := range links {
			st.Interfaces = append(st.Interfaces, l.Name)
		}
		slices.Sort(st.Interfaces)
	}
	for _, c := range d.List(true) {
		switch {
		case c.Status == wire.StatusDelivering:
			st.Captures.Delivering++
		case finished(c.Status):
			st.Captures.Finished++
		default:
			st.Captures.Running++
		}
		if c.Destination == "" {
			continue
		}
		for _, f := range c.Files {
			switch f.Status {
			case wire.FileFailed:
				st.Undelivered.Failed++
				fallthrough
			case wire.FileSpooled, wire.FileUploading:
				st.Undelivered.Files++
				st.Undelivered.Bytes += f.Bytes
			}
		}
	}
	for _, f := range d.table.Features().List() {
		st.Features[f.Name] = f.Err == nil
	}
	st.Limits = wire.StatusLimits{
		MaxCaptures: cfg.Limits.MaxCaptures, MaxTimeLimit: cfg.Limits.MaxTimeLimit, MaxByteLimit: cfg.Limits.MaxByteLimit,
		MaxPacketRate: cfg.Limits.MaxPacketRate, GroupsPerStart: groupsPerClass(cfg),
		RingSize: wire.Size(d.shares.ringSize), ReceiveBuffer: wire.Size(d.shares.receiveBuffer),
	}
	st.Spool.Used = wire.Size(d.spool.Used())
	if total, free, err := d.spool.Space(); err == nil {
		st.Limits.SpoolSize = cfg.Limits.SpoolSize.Of(wire.Size(total))
		st.Spool.Size = st.Limits.SpoolSize
		st.Spool.Free = wire.Size(free)
		st.Spool.MinFree = cfg.Limits.MinFreeSpace.Of(wire.Size(total))
	}
	return st
}

// rings tells how full each running capture's ring is.
func (d *Daemon) rings() []wire.StatusRing {
	rings := []wire.StatusRing{}
	for _, c := range d.all() {
		if _, used, size := c.measured(); size > 0 {
			rings = append(rings, wire.StatusRing{Capture: c.id, Used: wire.Size(used), Size: wire.Size(size)})
		}
	}
	return rings
}
