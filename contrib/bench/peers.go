package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"capd/testbed"
)

// sample is what one run of one reader gave.
type sample struct {
	Reader       string
	Command      string
	Frame        int // bytes
	Sent         int // frames, as the rule before the reader counted them
	Captured     int
	User, System time.Duration // CPU, from the reader's start to its end
	Later        time.Duration // capd: CPU after the capture had stopped (hashing)
	Other        time.Duration // capd: of User+System, what was not the reading thread's
	Rate         float64       // frames/s sent
	PeakRSS      int64         // bytes
	Ring         int64         // capd: bytes
}

func (s sample) lost() int { return s.Sent - s.Captured }

func (s sample) lostPercent() float64 { return 100 * float64(s.lost()) / float64(max(1, s.Sent)) }

// perPacket is user and system CPU time for each captured packet, in ns.
func (s sample) perPacket() float64 {
	return float64(s.User+s.System) / float64(max(1, s.Captured))
}

// queueThreshold fills a 64 KiB message: a packet takes its bytes and some 144 more.
func queueThreshold(frame int) int {
	if frame > 500 {
		return 42
	}
	return 230
}

const peerGroup = 1

// peer is a reader that is not ours.
type peer struct {
	name  string
	group int // NFLOG group; 0 = AF_PACKET
	// command gives the program and its arguments; file is where it writes.
	command func(b *bed, file string, frame int) ([]string, error)
	// count reads how many packets it captured.
	count  func(file, output string) (int, error)
	signal syscall.Signal
}

// readBuffer is the receive buffer of every reader that takes one, in bytes.
const readBuffer = 64 << 20

func args(a ...string) func(*bed, string, int) ([]string, error) {
	return func(_ *bed, file string, _ int) ([]string, error) {
		out := make([]string, len(a))
		for i, s := range a {
			out[i] = strings.ReplaceAll(s, "FILE", file)
		}
		return out, nil
	}
}

// The peers, by what they are called in tables.
func sink() peer {
	return peer{"sink (C, discards)", peerGroup, func(*bed, string, int) ([]string, error) {
		exe, err := os.Executable()
		return []string{filepath.Join(filepath.Dir(exe), "sink"), "-g", strconv.Itoa(peerGroup), "-r", strconv.Itoa(readBuffer)}, err
	}, printed(`packets (\d+) `), syscall.SIGTERM}
}

func tcpdumpBig() peer {
	return peer{"tcpdump -B 65536 -i nflog", peerGroup, args("tcpdump", "-Z", "root", "-B", "65536", "-i", "nflog:1", "-w", "FILE"), printed(`(\d+) packets? captured`), syscall.SIGINT}
}

func otherPeers() []peer {
	return []peer{
		{"tcpdump -i nflog", peerGroup, args("tcpdump", "-Z", "root", "-i", "nflog:1", "-w", "FILE"), printed(`(\d+) packets? captured`), syscall.SIGINT},
		{"ulogd2 PCAP, tuned", peerGroup, ulogd, counted, syscall.SIGTERM},
		{"dumpcap -B 64 -i nflog", peerGroup, args("dumpcap", "-q", "-B", "64", "-i", "nflog:1", "-w", "FILE"), counted, syscall.SIGINT},
		{"tcpdump -i vb (AF_PACKET)", 0, args("tcpdump", "-Z", "root", "-i", device, "-w", "FILE", "udp port 9"), printed(`(\d+) packets? captured`), syscall.SIGINT},
	}
}

// ulogd writes a configuration with large buffers and the threshold of the others.
func ulogd(b *bed, file string, frame int) ([]string, error) {
	plugins, err := filepath.Glob("/usr/lib/*/ulogd/ulogd_*_*.so")
	if err != nil {
		return nil, err
	}
	var conf strings.Builder
	fmt.Fprintf(&conf, "[global]\nlogfile=\"%s\"\nloglevel=7\n", b.path("ulogd.log"))
	for _, p := range plugins {
		switch filepath.Base(p) {
		case "ulogd_inppkt_NFLOG.so", "ulogd_raw2packet_BASE.so", "ulogd_output_PCAP.so":
			fmt.Fprintf(&conf, "plugin=\"%s\"\n", p)
		}
	}
	fmt.Fprintf(&conf, "stack=in:NFLOG,base:BASE,out:PCAP\n[in]\ngroup=%d\nbufsize=65216\nnetlink_socket_buffer_size=%d\nnetlink_socket_buffer_maxsize=%d\n"+
		"netlink_qthreshold=%d\nnetlink_qtimeout=10\n[out]\nfile=\"%s\"\nsync=0\n", peerGroup, readBuffer, readBuffer, queueThreshold(frame), file)
	name := b.path("ulogd.conf")
	return []string{"ulogd", "-c", name}, os.WriteFile(name, []byte(conf.String()), 0o600)
}

// printed finds the number in what the program printed.
func printed(pattern string) func(string, string) (int, error) {
	re := regexp.MustCompile(pattern)
	return func(_, output string) (int, error) {
		m := re.FindStringSubmatch(output)
		if m == nil {
			return 0, fmt.Errorf("no count in %q", output)
		}
		return strconv.Atoi(m[1])
	}
}

// counted has capinfos count the packets of the file.
func counted(file, _ string) (int, error) {
	out, err := exec.Command("capinfos", "-T", "-r", "-M", "-c", file).Output()
	if err != nil && len(out) == 0 {
		return 0, fmt.Errorf("capinfos %s: %w", file, err)
	}
	f := strings.Fields(string(out))
	if len(f) == 0 {
		return 0, fmt.Errorf("capinfos said nothing of %s", file)
	}
	return strconv.Atoi(f[len(f)-1])
}

// run measures one flood of frames read by the peer.
func (p peer) run(b *bed, frames, length int) (s sample, err error) {
	s = sample{Reader: p.name, Frame: length}
	rule := "udp dport 9 counter drop"
	if p.group != 0 {
		rule = fmt.Sprintf("udp dport 9 counter log group %d queue-threshold %d drop", p.group, queueThreshold(length))
	}
	if err := back(); err != nil {
		return s, err
	}
	if err := b.rule(rule); err != nil {
		return s, err
	}
	defer func() {
		if e := b.unrule(); err == nil {
			err = e
		}
	}()
	file := b.path("peer.pcap")
	defer func() { _ = os.Remove(file) }()
	argv, err := p.command(b, file, length)
	if err != nil {
		return s, err
	}
	s.Command = strings.ReplaceAll(strings.Join(append([]string{filepath.Base(argv[0])}, argv[1:]...), " "), b.dir+"/", "")
	var output bytes.Buffer
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := b.start(cmd, readerCPU); err != nil {
		return s, err
	}
	defer b.end(cmd, syscall.SIGTERM)
	if err := await(p.name+"'s start", 20*time.Second, func() (bool, error) { return b.bound(p.group) }); err != nil {
		return s, fmt.Errorf("%w: %s", err, readAll(b.path("ulogd.log")))
	}
	time.Sleep(300 * time.Millisecond) // it has bound; let it finish its settings
	sent, err := inject(b, frames, length, injectorCPU)
	if err != nil {
		return s, err
	}
	if err := b.drained(cmd.Process.Pid); err != nil {
		return s, err
	}
	s.PeakRSS = status(cmd.Process.Pid, "VmHWM")
	b.end(cmd, p.signal)
	s.User, s.System, s.Rate = cmd.ProcessState.UserTime(), cmd.ProcessState.SystemTime(), sent.Rate()
	if s.Sent, err = b.counter(); err != nil {
		return s, err
	}
	if s.Sent != sent.Frames {
		return s, fmt.Errorf("injected %d frames, the rule counted %d", sent.Frames, s.Sent)
	}
	s.Captured, err = p.count(file, output.String())
	return s, err
}

func inject(b *bed, frames, length, cpu int) (testbed.Injected, error) {
	return testbed.Inject(b.b, testbed.InjectOptions{Interface: device, Count: frames, Length: length, Pin: true, CPU: cpu})
}

// status reads a value in kB from /proc/PID/status and gives bytes; 0 when it is gone.
func status(pid int, key string) int64 {
	for line := range strings.Lines(readAll(fmt.Sprintf("/proc/%d/status", pid))) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == key+":" {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n << 10
		}
	}
	return 0
}

func readAll(name string) string {
	b, _ := os.ReadFile(name) // for messages and /proc: gone means empty
	return string(b)
}
