package testbed

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// InjectOptions says which frames Inject makes. The zero values of all but Interface and
// Count are usable.
type InjectOptions struct {
	Interface string // the device that the frames seem to arrive on
	Count     int    // frames
	Length    int    // bytes of a frame with its 14-byte Ethernet header, without FCS: 42 to about 3400; 0 = 60
	// Rate is how many frames/s there are at most; 0 = as fast as the CPU goes. From 1,000 on
	// it is about a tenth of this, because the kernel takes some 25 ms for a call of more than
	// one frame, with whatever many.
	Rate        float64
	Flows       int        // source ports 4000, 4001, … used in turn, at most 1000; 0 = 1
	Pin         bool       // run on CPU alone
	CPU         int        // with Pin
	Source      netip.Addr // IPv4; invalid = 10.9.0.1
	Destination netip.Addr // IPv4; invalid = 10.9.0.2
	Port        uint16     // UDP destination port; 0 = 9 (discard)
	// Forwarded says that the frames are for another host, to which the namespace forwards
	// them. The kernel uses frames again as they came back, so that each must first be given
	// the headers that a router changes.
	Forwarded bool
}

// Injected is what Inject did.
type Injected struct {
	Frames  int
	Elapsed time.Duration
	CPU     time.Duration // of the injecting thread, with what the kernel did to the frames there
}

// Rate is in frames per second.
func (r Injected) Rate() float64 { return float64(r.Frames) / r.Elapsed.Seconds() }

// Where a frame's parts begin, and the ports.
const (
	ethernetLen      = 14
	udpOffset        = ethernetLen + 20
	injectHeaders    = udpOffset + 8
	firstSourcePort  = 4000
	discardPort      = 9
	minEthernetFrame = 60
)

// Inject makes the kernel receive UDP frames on a device of the namespace (ns "": the
// caller's), with no hardware and no sender's stack: an XDP program that says XDP_PASS is
// run by BPF_PROG_TEST_RUN with BPF_F_TEST_XDP_LIVE_FRAMES (Linux 5.18,
// Documentation/bpf/bpf_prog_run.rst). One CPU makes some 2 million frames a second. The
// UDP checksum is 0 (none). The payload of every frame is the same, byte i of a frame
// being i mod 256. Needs CAP_BPF and CAP_NET_ADMIN.
func Inject(ns string, o InjectOptions) (Injected, error) {
	var done Injected
	run := func() (err error) {
		done, err = inject(o)
		return err
	}
	var err error
	if ns == "" {
		err = onThrowawayThread(run)
	} else {
		err = Do(ns, run)
	}
	return done, err
}

// onThrowawayThread runs f where thread attributes (affinity, signal mask) may be changed.
func onThrowawayThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread with the goroutine
		done <- f()
	}()
	return <-done
}

func (o *InjectOptions) fill() error {
	if o.Length == 0 {
		o.Length = minEthernetFrame
	}
	if o.Flows == 0 {
		o.Flows = 1
	}
	if o.Port == 0 {
		o.Port = discardPort
	}
	if !o.Source.IsValid() {
		o.Source = netip.AddrFrom4([4]byte{10, 9, 0, 1})
	}
	if !o.Destination.IsValid() {
		o.Destination = netip.AddrFrom4([4]byte{10, 9, 0, 2})
	}
	switch {
	case o.Count < 1:
		return fmt.Errorf("inject: count %d is not at least 1", o.Count)
	case o.Length < injectHeaders:
		return fmt.Errorf("inject: length %d does not hold Ethernet, IPv4 and UDP headers (%d)", o.Length, injectHeaders)
	case o.Flows < 1 || o.Flows > 1000:
		return fmt.Errorf("inject: flows %d is not between 1 and 1000", o.Flows)
	case !o.Source.Is4() || !o.Destination.Is4():
		return errors.New("inject: only IPv4 addresses")
	}
	return nil
}

// xdpMD is the part of struct xdp_md that the kernel takes as context
// (include/uapi/linux/bpf.h).
type xdpMD struct {
	data, dataEnd, dataMeta                     uint32
	ingressIfindex, rxQueueIndex, egressIfindex uint32
}

// testRunAttr is union bpf_attr's member test.
type testRunAttr struct {
	progFD, retval, dataSizeIn, dataSizeOut uint32
	dataIn, dataOut                         uint64
	repeat, duration, ctxSizeIn, ctxSizeOut uint32
	ctxIn, ctxOut                           uint64
	flags, cpu, batchSize, _                uint32
}

func inject(o InjectOptions) (Injected, error) {
	if err := o.fill(); err != nil {
		return Injected{}, err
	}
	// BPF_PROG_TEST_RUN ends early at a pending signal, and does not say how far it came.
	// The thread is thrown away, and with it its mask.
	var all unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, nil); err != nil {
		return Injected{}, fmt.Errorf("block signals: %w", err)
	}
	if o.Pin {
		var set unix.CPUSet
		set.Set(o.CPU)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return Injected{}, fmt.Errorf("sched_setaffinity to CPU %d: %w", o.CPU, err)
		}
	}
	dev, err := net.InterfaceByName(o.Interface)
	if err != nil {
		return Injected{}, fmt.Errorf("inject on %q: %w", o.Interface, err)
	}
	frame := injectFrame(o, dev.HardwareAddr)
	var again []byte
	if o.Forwarded {
		again = frame[:28] // addresses, time to live, checksum
	}
	prog, err := loadPass(again)
	if err != nil {
		return Injected{}, err
	}
	defer func() { _ = unix.Close(prog) }()

	ctx := &xdpMD{dataEnd: uint32(o.Length), ingressIfindex: uint32(dev.Index)}
	attr := &testRunAttr{progFD: uint32(prog), dataSizeIn: uint32(o.Length), ctxSizeIn: uint32(unsafe.Sizeof(*ctx)), flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES}
	var pins runtime.Pinner
	defer pins.Unpin()
	pins.Pin(&frame[0])
	pins.Pin(ctx)
	attr.dataIn = uint64(uintptr(unsafe.Pointer(&frame[0])))
	attr.ctxIn = uint64(uintptr(unsafe.Pointer(ctx)))

	chunk := 1 << 18
	if o.Flows > 1 {
		chunk = 4096
	}
	if o.Rate > 0 {
		chunk = max(1, min(chunk, int(o.Rate/500)))
	}
	start, before := time.Now(), threadCPU()
	done := func(sent int) Injected { return Injected{sent, time.Since(start), threadCPU() - before} }
	sent := 0
	for flow := 0; sent < o.Count; flow = (flow + 1) % o.Flows {
		binary.BigEndian.PutUint16(frame[udpOffset:], uint16(firstSourcePort+flow))
		n := min(chunk, o.Count-sent)
		attr.repeat = uint32(n)
		attr.batchSize = uint32(min(n, 64))
		if err := bpf(unix.BPF_PROG_TEST_RUN, unsafe.Pointer(attr), unsafe.Sizeof(*attr)); err != nil {
			return done(sent), fmt.Errorf("bpf BPF_PROG_TEST_RUN: %w", err)
		}
		sent += n
		if o.Rate > 0 {
			time.Sleep(time.Duration(float64(sent)/o.Rate*float64(time.Second)) - time.Since(start))
		}
	}
	return done(sent), nil
}

// threadCPU is the CPU time of the calling thread so far.
func threadCPU() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// injectFrame builds Ethernet, IPv4 and UDP headers and a payload.
func injectFrame(o InjectOptions, mac net.HardwareAddr) []byte {
	f := make([]byte, o.Length)
	for i := range f {
		f[i] = byte(i)
	}
	copy(f, mac)
	copy(f[6:], []byte{2, 0, 0, 0, 0, 1})
	binary.BigEndian.PutUint16(f[12:], unix.ETH_P_IP)
	ip := f[ethernetLen:udpOffset]
	clear(ip)
	ip[0] = 0x45
	binary.BigEndian.PutUint16(ip[2:], uint16(o.Length-ethernetLen))
	ip[8] = 64 // time to live
	ip[9] = unix.IPPROTO_UDP
	copy(ip[12:], o.Source.AsSlice())
	copy(ip[16:], o.Destination.AsSlice())
	binary.BigEndian.PutUint16(ip[10:], internetChecksum(ip))
	udp := f[udpOffset:]
	binary.BigEndian.PutUint16(udp, firstSourcePort)
	binary.BigEndian.PutUint16(udp[2:], o.Port)
	binary.BigEndian.PutUint16(udp[4:], uint16(o.Length-udpOffset))
	binary.BigEndian.PutUint16(udp[6:], 0)
	return f
}

// internetChecksum is RFC 1071's.
func internetChecksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// loadPass loads an XDP program that writes the header, of a multiple of 4 bytes, over each
// frame's beginning and says XDP_PASS.
func loadPass(header []byte) (int, error) {
	const xdpPass = 2
	type insn struct {
		code, registers uint8
		offset          int16
		imm             int32
	}
	type loadAttr struct {
		progType, insnCount      uint32
		insns, license           uint64
		logLevel, logSize        uint32
		logBuf                   uint64
		kernelVersion, progFlags uint32
	}
	var program []insn
	if words := len(header) / 4; words > 0 {
		const ctx, data, end, past = 1, 2, 3, 4 // registers; the low half of a byte is the destination
		program = []insn{
			{code: unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W, registers: ctx<<4 | data, offset: 0},
			{code: unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W, registers: ctx<<4 | end, offset: 4},
			{code: unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_X, registers: data<<4 | past},
			{code: unix.BPF_ALU64 | unix.BPF_ADD | unix.BPF_K, registers: past, imm: int32(len(header))},
			{code: unix.BPF_JMP | unix.BPF_JGT | unix.BPF_X, registers: end<<4 | past, offset: int16(words)},
		}
		for at := 0; at < len(header); at += 4 {
			program = append(program, insn{code: unix.BPF_ST | unix.BPF_MEM | unix.BPF_W, registers: data, offset: int16(at),
				imm: int32(binary.NativeEndian.Uint32(header[at:]))})
		}
	}
	program = append(program,
		insn{code: unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K, imm: xdpPass},
		insn{code: unix.BPF_JMP | unix.BPF_EXIT})
	license := []byte("Dual MIT/GPL\x00")
	var pins runtime.Pinner
	defer pins.Unpin()
	pins.Pin(&program[0])
	pins.Pin(&license[0])
	attr := &loadAttr{
		progType: unix.BPF_PROG_TYPE_XDP, insnCount: uint32(len(program)),
		insns: uint64(uintptr(unsafe.Pointer(&program[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0]))),
	}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(attr)), unsafe.Sizeof(*attr))
	if errno != 0 {
		return -1, fmt.Errorf("bpf BPF_PROG_LOAD of an XDP program: %w", errno)
	}
	unix.CloseOnExec(int(fd))
	return int(fd), nil
}

func bpf(command int, attr unsafe.Pointer, size uintptr) error {
	if _, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(command), uintptr(attr), size); errno != 0 {
		return errno
	}
	return nil
}
