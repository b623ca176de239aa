package daemon

import (
	"fmt"
	"maps"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"capd/ctl/wire"
	"capd/daemon/api"
	"capd/nft"
)

// Doctor looks at everything on this box that a capture needs (api.Daemon). What it
// looks at it looks at anew each time, but for the kernel, which was tried at the start.
func (d *Daemon) Doctor() wire.Doctor {
	var e examination
	e.kernel(d.table.Features())
	e.rights()
	e.memory(d.shares.ringSize, d.shares.receiveBuffer)
	e.disk(d.Status().Spool)
	e.clock(readClock())
	e.guard(d.config().Limits.MaxPacketRate)
	e.groups(accessOf(d.config()))
	e.places(d.Status())
	e.configuration(d)
	e.destinations(len(d.config().Destinations))
	return wire.Doctor{OK: !slices.ContainsFunc(e.findings, func(f wire.Finding) bool { return f.Level == wire.LevelError }), Findings: e.findings}
}

// examination collects findings.
type examination struct{ findings []wire.Finding }

func (e *examination) find(level, id, hint, format string, args ...any) {
	e.findings = append(e.findings, wire.Finding{ID: id, Level: level, Message: fmt.Sprintf(format, args...), Hint: hint})
}

// kernel tells what the kernel cannot do, feature by feature, and that it can do the rest.
func (e *examination) kernel(features nft.Features) {
	var has []string
	for _, f := range features.List() {
		if f.Err == nil {
			has = append(has, f.Name)
			continue
		}
		level := wire.LevelWarning
		if f.Needed {
			level = wire.LevelError
		}
		message, mend := f.Lack()
		e.find(level, "kernel."+f.Name, mend, "%s", message)
	}
	if len(has) > 0 {
		e.find(wire.LevelOK, "kernel", "", "%s has %s", kernelRelease(), strings.Join(has, ", "))
	}
}

// rights tells whether capd has the one capability that it needs, and no other.
func (e *examination) rights() {
	const id = "capabilities"
	effective, err := strconv.ParseUint(procField("/proc/self/status", "CapEff"), 16, 64)
	switch {
	case err != nil:
		e.find(wire.LevelWarning, id, "is /proc mounted?", "capd's own capabilities cannot be read: %v", err)
	case effective&(1<<unix.CAP_NET_ADMIN) == 0:
		e.find(wire.LevelError, id, "AmbientCapabilities=CAP_NET_ADMIN in its unit, or run it as root", "capd has no CAP_NET_ADMIN")
	case effective != 1<<unix.CAP_NET_ADMIN:
		e.find(wire.LevelWarning, id, "run it by capd.service, as the user capd", "capd has more than CAP_NET_ADMIN: %#x", effective)
	default:
		e.find(wire.LevelOK, id, "", "capd has CAP_NET_ADMIN and nothing else")
	}
}

// memory tells whether captures get the memory and the receive buffers that they are
// configured to have, in bytes.
func (e *examination) memory(ringSize, receiveBuffer int) {
	available, err := strconv.ParseInt(strings.TrimSuffix(procField("/proc/meminfo", "MemAvailable"), " kB"), 10, 64)
	available *= 1024
	need := int64(ringSize + receiveBuffer)
	switch {
	case err != nil:
		e.find(wire.LevelWarning, "memory", "is /proc mounted?", "the free memory cannot be read: %v", err)
	case available < need:
		e.find(wire.LevelError, "memory", "make [ring] size and receive_buffer smaller in capd.toml",
			"captures may take %s, and %s are available", wire.About(need), wire.About(available))
	case available < 2*need:
		e.find(wire.LevelWarning, "memory", "make [ring] size and receive_buffer smaller in capd.toml",
			"captures may take %s, more than half of the %s that are available", wire.About(need), wire.About(available))
	default:
		e.find(wire.LevelOK, "memory", "", "captures may take %s of the %s that are available", wire.About(need), wire.About(available))
	}
	got, err := forcedBuffer(receiveBuffer)
	switch {
	case err != nil:
		e.find(wire.LevelError, "receive_buffer", "RestrictAddressFamilies= of capd's unit must allow AF_NETLINK", "no netfilter socket can be had: %v", err)
	case got < receiveBuffer:
		e.find(wire.LevelWarning, "receive_buffer", "sysctl -w net.core.rmem_max="+strconv.Itoa(receiveBuffer),
			"sockets get %s of the %s that are configured: bursts may be lost", wire.About(got), wire.About(receiveBuffer))
	default:
		e.find(wire.LevelOK, "receive_buffer", "", "sockets get the %s that are configured", wire.About(receiveBuffer))
	}
}

// forcedBuffer tries a receive buffer of so many bytes on a socket and tells what the
// kernel made of it.
func forcedBuffer(size int) (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, fmt.Errorf("open a netlink socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	// As the ring does it; the kernel doubles what it is given (socket(7)).
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size/2) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, size/2)
	}
	return unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
}

// disk tells how much the spool still takes.
func (e *examination) disk(s wire.StatusSpool) {
	const id, hint = "disk", "capctl rm what is not needed any more, or see spool_size and min_free_space in capd.toml"
	left := min(max(0, s.Size-s.Used), max(0, s.Free-s.MinFree))
	switch {
	case left == 0:
		e.find(wire.LevelError, id, hint, "the spool takes nothing more: %s of %s used, %s free on its disk, of which %s stay free", wire.About(s.Used), wire.About(s.Size), wire.About(s.Free), wire.About(s.MinFree))
	case left < s.Size/5:
		e.find(wire.LevelWarning, id, hint, "the spool takes %s more: %s of %s used, %s free on its disk, of which %s stay free", wire.About(left), wire.About(s.Used), wire.About(s.Size), wire.About(s.Free), wire.About(s.MinFree))
	default:
		e.find(wire.LevelOK, id, "", "the spool takes %s more", wire.About(left))
	}
}

// clock tells whether timestamps can be trusted.
func (e *examination) clock(c wire.ClockState) {
	if !c.Synchronized {
		e.find(wire.LevelWarning, "clock", "run chrony or systemd-timesyncd: timedatectl set-ntp true",
			"nothing keeps the clock: timestamps cannot be compared with those of other boxes")
		return
	}
	e.find(wire.LevelOK, "clock", "", "the clock is kept, to within %v", time.Duration(c.MaxErrorUS)*time.Microsecond)
}

// guard tells what bounds the load that a capture can be.
func (e *examination) guard(rate uint64) {
	if rate == 0 {
		e.find(wire.LevelWarning, "rate_guard", "set limits.max_packet_rate", "nothing bounds how many packets a second captures take")
		return
	}
	e.find(wire.LevelOK, "rate_guard", "", "captures take at most %d packets/s", rate)
}

// groups tells whether the groups that may use capd exist, and can do with it what they may.
func (e *examination) groups(access api.Access) {
	var there []string
	exists := func(key, name, hint string) {
		if name == "" {
			return
		}
		if _, err := user.LookupGroup(name); err != nil {
			e.find(wire.LevelWarning, "access."+key, "groupadd --system "+name+hint, "the group %s does not exist: nobody is in it", name)
			return
		}
		there = append(there, name)
	}
	exists("control_group", access.ControlGroup, ", or name another one in [access]")
	exists("view_group", access.ViewGroup, ", or name another one in [access]")
	for _, name := range slices.Sorted(maps.Keys(access.Groups)) {
		exists("group."+name, name, ", or remove [access.group."+name+"]")
		if l := access.Groups[name]; l.Sealed != nil && len(l.MaySealTo()) == 0 {
			e.find(wire.LevelWarning, "access.group."+name, "set encrypt_to in the profile of a destination that it may use",
				"captures of the group %s are sealed, and none of its destinations seals: it can start none", name)
		}
	}
	if len(there) > 0 {
		e.find(wire.LevelOK, "access", "", "root and the groups %s may use capd", strings.Join(there, ", "))
	}
}

// places tells whether another capture can start, and what waits for delivery.
func (e *examination) places(st wire.Status) {
	if st.Captures.Running >= st.Limits.MaxCaptures {
		e.find(wire.LevelError, "captures", "capctl stop one, or raise limits.max_captures", "%d captures run, as many as are allowed", st.Captures.Running)
	} else {
		e.find(wire.LevelOK, "captures", "", "%d of %d run", st.Captures.Running, st.Limits.MaxCaptures)
	}
	if u := st.Undelivered; u.Failed > 0 {
		e.find(wire.LevelError, "undelivered", "capctl list --all shows whose they are, capctl retry CAPTURE tries again",
			"%d files (%s) wait for delivery, %d of them are not tried any more", u.Files, wire.About(u.Bytes), u.Failed)
	} else if u.Files > 0 {
		e.find(wire.LevelInfo, "undelivered", "", "%d files (%s) wait for delivery", u.Files, wire.About(u.Bytes))
	}
}

// destinations tells when there are none; whether they work is checked one by one.
func (e *examination) destinations(n int) {
	if n == 0 {
		e.find(wire.LevelInfo, "destinations", "a file /etc/capd/destinations.d/NAME.toml, then systemctl reload capd",
			"there are none: captures stay on this box until capctl download fetches them")
	}
}

// procField reads the value of a line "NAME:  VALUE" of a file; "" where there is none.
func procField(path, name string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
