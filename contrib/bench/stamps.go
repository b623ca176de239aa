package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"capd/ctl/wire"
	"capd/ring/pcapng"
	"capd/testbed"
)

// What the sender of numbered packets does: after each stretch it pauses, because a pause
// is what leaves a batch in the kernel that is not full.
const (
	stampPort    = 6000
	stampSpan    = 2 * time.Second // of sending
	stampStretch = 250 * time.Millisecond
	stampPause   = 50 * time.Millisecond
)

// stamps measures how late the stamps of packets are at the hooks where the kernel gives
// none, against AF_PACKET's stamps of the same packets on their device. What the machine
// allows at best is told by a process that does nothing but wait for packets, and reads its
// clock when it has one.
func stamps(b *bench) ([]figure, error) {
	var out []figure
	rates := []int{500, 1000, 5000, 20_000, 60_000}
	for _, hook := range []string{"output", "postrouting"} {
		err := b.withCapd(readerCPU, "auto", func(d *capd) error {
			for _, rate := range rates {
				bound := 10.0
				if rate <= 1000 {
					bound = 1
				}
				late, err := captureStamps(b, d, hook, rate)
				if err != nil {
					return err
				}
				out = append(out, lateness(b, fmt.Sprintf("%s at %d packets/s", hook, rate), late, bound)...)
			}
			return nil
		})
		if err != nil {
			return out, err
		}
	}
	for _, rate := range rates {
		late, err := waiterStamps(b, rate)
		if err != nil {
			return out, err
		}
		out = append(out, lateness(b, fmt.Sprintf("a process that only waits, at %d packets/s", rate), late, 0)...)
	}
	return out, nil
}

// lateness sums up how late stamps were, in ms. A bound is the target of 99 of 100: the
// latest are those for which the scheduler, or a hypervisor, had other plans, which shows in
// those of the process that only waits.
func lateness(b *bench, what string, late []float64, bound float64) []figure {
	slices.Sort(late)
	n := len(late)
	most := figure{What: what + ": 99 % within", Unit: "ms", Value: late[n*99/100]}
	out := []figure{{What: what + ": median", Unit: "ms", Value: median(late)}, most, {What: what + ": the latest", Unit: "ms", Value: late[n-1]}}
	share := 0.0
	if bound > 0 {
		if beyond := slices.IndexFunc(late, func(ms float64) bool { return ms > bound }); beyond >= 0 {
			share = 100 * float64(n-beyond) / float64(n)
		}
		out[1].Target, out[1].Met, out[1].Command = fmt.Sprintf("≤ %g", bound), most.Value <= bound, "capctl start --hook"
		out = append(out, figure{What: fmt.Sprintf("%s: later than %g ms", what, bound), Unit: "%", Value: share})
	}
	b.log("  %-50s median %8.3f ms, 99 %% %8.3f, latest %8.3f of %d, %.2f %% too late, earliest %.3f", what, out[0].Value, most.Value, late[n-1], n, share, late[0])
	return out
}

// captureStamps sends packets past a hook and gives how much later than the truth each one's
// stamp in the capture is, in ms.
func captureStamps(b *bench, d *capd, hook string, rate int) ([]float64, error) {
	id, _, err := d.begin(stampPort, "--hook", hook, "--link-type", "raw")
	if err != nil {
		return nil, err
	}
	l, err := listenStamps(b.bed)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(l) }()
	count, err := sendNumbered(b.bed, rate)
	if err != nil {
		return nil, err
	}
	if _, _, err := d.finish(id); err != nil {
		return nil, err
	}
	c, err := d.completed(id)
	if err != nil {
		return nil, err
	}
	truth, err := readStamps(l, count, nil)
	if err != nil {
		return nil, err
	}
	late := make([]float64, 0, count)
	for _, f := range c.Files {
		late, err = fileStamps(filepath.Join(filepath.Dir(d.socket), "spool", id, f.Name), truth, late)
		if err != nil {
			return nil, err
		}
	}
	if len(late) != count || c.Status != wire.StatusComplete {
		return nil, fmt.Errorf("%d packets were sent, the capture (%s) has %d: %s", count, c.Status, len(late), describe(c.Packets))
	}
	_, _, err = d.ctl("rm", id)
	return late, err
}

// waiterStamps is captureStamps of a thread on the reader's CPU that waits for packets.
func waiterStamps(b *bench, rate int) ([]float64, error) {
	l, err := listenStamps(b.bed)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(l) }()
	type result struct {
		kernel []int64
		err    error
	}
	expected := int(stampSpan.Seconds() * float64(rate))
	own := make([]int64, expected)
	read := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		var set unix.CPUSet
		set.Set(readerCPU)
		err := unix.SchedSetaffinity(0, &set)
		var kernel []int64
		if err == nil {
			kernel, err = readStamps(l, expected, own)
		}
		read <- result{kernel, err}
	}()
	if _, err := sendNumbered(b.bed, rate); err != nil {
		return nil, err
	}
	r := <-read
	if r.err != nil {
		return nil, r.err
	}
	late := make([]float64, expected)
	for i := range late {
		late[i] = float64(own[i]-r.kernel[i]) / 1e6
	}
	return late, nil
}

// listenStamps opens an AF_PACKET socket on the bed's device that keeps what passes, with
// the kernel's stamps, until it is read: it takes no CPU time meanwhile.
func listenStamps(bed *bed) (fd int, err error) {
	err = testbed.Do(bed.b, func() error {
		dev, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		all := uint16(unix.ETH_P_ALL)<<8 | unix.ETH_P_ALL>>8
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(all)); err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: dev.Index}); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 512<<20); err != nil {
			return err
		}
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
			return err
		}
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
	})
	if err != nil {
		return -1, fmt.Errorf("listen on %s by AF_PACKET: %w", device, err)
	}
	return fd, nil
}

// readStamps reads count numbered packets and gives the kernel's stamps by number, in
// nanoseconds since the epoch. Own, where given, gets this thread's clock after each read.
func readStamps(fd, count int, own []int64) ([]int64, error) {
	const headers = 20 + 8 // IPv4 and UDP
	kernel := make([]int64, count)
	b, oob := make([]byte, 256), make([]byte, 128)
	for got := 0; got < count; {
		n, m, _, _, err := unix.Recvmsg(fd, b, oob, 0)
		now := time.Now().UnixNano()
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("AF_PACKET, after %d of %d packets: %w", got, count, err)
		}
		if n < headers+8 || b[9] != unix.IPPROTO_UDP || binary.BigEndian.Uint16(b[22:]) != stampPort {
			continue
		}
		messages, err := unix.ParseSocketControlMessage(oob[:m])
		if err != nil {
			return nil, fmt.Errorf("AF_PACKET's stamp: %w", err)
		}
		if len(messages) == 0 || messages[0].Header.Type != unix.SO_TIMESTAMPNS {
			return nil, errors.New("AF_PACKET gave a packet without a stamp")
		}
		stamp, number := messages[0].Data, binary.BigEndian.Uint64(b[headers:])
		if number >= uint64(count) || kernel[number] != 0 {
			return nil, fmt.Errorf("AF_PACKET gave packet %d of %d twice", number, count)
		}
		kernel[number] = int64(binary.NativeEndian.Uint64(stamp))*1e9 + int64(binary.NativeEndian.Uint64(stamp[8:]))
		if own != nil {
			own[number] = now
		}
		got++
	}
	return kernel, nil
}

// fileStamps appends, for each packet of a file, how much later than the truth its stamp is.
func fileStamps(path string, truth []int64, late []float64) ([]float64, error) {
	f, err := os.Open(path)
	if err != nil {
		return late, err
	}
	defer f.Close()
	const headers = 20 + 8 // IPv4 and UDP
	r := pcapng.NewReader(f)
	for {
		block, err := r.Next()
		if errors.Is(err, io.EOF) {
			return late, nil
		}
		if err != nil {
			return late, err
		}
		if block.Type != pcapng.TypePacket {
			continue
		}
		p, err := block.Packet()
		if err != nil {
			return late, err
		}
		number := binary.BigEndian.Uint64(p.Body[headers:])
		if number >= uint64(len(truth)) {
			return late, fmt.Errorf("%s has packet %d of %d", path, number, len(truth))
		}
		late = append(late, float64(p.Time-truth[number])/1e6)
	}
}

// sendNumbered sends packets from namespace b, evenly but for the pauses, on the injector's
// CPU, and gives how many.
func sendNumbered(bed *bed, rate int) (count int, err error) {
	count = int(stampSpan.Seconds() * float64(rate))
	err = testbed.Do(bed.b, func() error { // on a thread that ends with it
		var set unix.CPUSet
		set.Set(injectorCPU)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		to := &unix.SockaddrInet4{Port: stampPort, Addr: [4]byte{10, 9, 0, 1}}
		b := make([]byte, 100)
		begin := time.Now()
		for i := range count {
			at := time.Duration(i) * time.Second / time.Duration(rate)
			at += at / stampStretch * stampPause
			for left := at - time.Since(begin); left > 0; left = at - time.Since(begin) {
				if left > 100*time.Microsecond { // else it spins: no sleep is that exact
					rest := unix.NsecToTimespec(int64(left - 100*time.Microsecond))
					_ = unix.Nanosleep(&rest, nil)
				}
			}
			binary.BigEndian.PutUint64(b, uint64(i))
			if err := unix.Sendto(fd, b, 0, to); err != nil {
				return fmt.Errorf("send: %w", err)
			}
		}
		return nil
	})
	return count, err
}
