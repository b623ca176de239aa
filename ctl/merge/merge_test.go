package merge

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"capd/ring/pcapng"
	"capd/testbed"
)

const epoch = int64(1_790_000_000_000_000_000)

// file makes a pcapng file of capd's kind with packets at the given offsets in
// microseconds; its packets' payloads name them.
func file(host, iface string, at ...int64) []byte {
	s := pcapng.Section{Comment: "capd capture=0f8c host=" + url.PathEscape(host) + " hooks=prerouting"}
	i := pcapng.Interface{LinkType: 1, Snaplen: 262144, Name: iface}
	b := i.Append(s.Append(nil))
	for _, t := range at {
		p := pcapng.Packet{Time: epoch + t*1000, Flags: pcapng.FlagInbound, Comment: "at " + strconv.FormatInt(t, 10)}
		p.Body = fmt.Appendf(make([]byte, 14, 60), "%s/%s %d", host, iface, t)
		p.Original = uint32(len(p.Body))
		b = p.Append(b)
	}
	st := pcapng.Statistics{Time: epoch, Start: epoch, End: epoch + 1e9, Received: uint64(len(at)) + 2, Dropped: 2,
		FilterAccepted: uint64(len(at)) + 2, OSDropped: 2, Delivered: uint64(len(at))}
	return st.Append(b)
}

func input(name string, data []byte) Input {
	return Input{Name: name, Fallback: name, Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }}
}

func merged(t *testing.T, inputs ...Input) (string, Result) {
	t.Helper()
	m, err := New(inputs)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	path := filepath.Join(t.TempDir(), "merged.pcapng")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := m.Write(f, pcapng.Section{Comment: "two\nlines"})
	if err != nil {
		t.Fatal(err)
	}
	return path, r
}

func span(from, to, step int64) (all []int64) {
	for t := from; t < to; t += step {
		all = append(all, t)
	}
	return all
}

// tshark and capinfos judge what comes out: order, names of interfaces, counts, comments.
func TestMergeForWireshark(t *testing.T) {
	classic := pcapng.AppendClassicHeader(nil, 1, 0)
	for _, at := range span(5, 1000, 10) {
		p := pcapng.Packet{Time: epoch + at*1000, Body: fmt.Appendf(make([]byte, 14, 60), "classic %d", at)}
		p.Original = uint32(len(p.Body))
		classic = p.AppendClassic(classic)
	}
	path, r := merged(t,
		input("a1", file("edge-1", "eth0", span(0, 500, 10)...)),
		input("a2", file("edge-1", "eth0", span(500, 1000, 10)...)),
		input("b1", file("edge-2", "eth1", append([]int64{40, 20, 0}, span(50, 1000, 10)...)...)),
		input("wan", classic))
	if r.Packets != 100+98+100 || r.Interfaces != 3 || r.Unordered != 0 || len(r.Ended) != 0 || strings.Join(r.Hosts, " ") != "edge-1 edge-2 wan" {
		t.Errorf("%+v", r)
	}
	info := testbed.Capinfos(t, path)
	if info.Packets != 298 || !info.Ordered || info.Type != "pcapng" {
		t.Errorf("%+v", info)
	}
	names := map[string]int{}
	for _, p := range testbed.TsharkPackets(t, path, "") {
		names[p.Interface]++
		if strings.HasPrefix(p.Interface, "edge") && (p.Direction != "1" || p.Comment == "") {
			t.Fatalf("flags and comment are gone: %+v", p)
		}
	}
	if names["edge-1/eth0"] != 100 || names["edge-2/eth1"] != 98 || names["wan/any"] != 100 {
		t.Errorf("%v", names)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	reader := pcapng.NewReader(bytes.NewReader(data))
	got := map[string]pcapng.Statistics{}
	for {
		b, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if b.Type == pcapng.TypeStatistics {
			st, err := b.Statistics()
			if err != nil {
				t.Fatal(err)
			}
			got[reader.Interfaces()[st.Interface].Name] = st
		}
	}
	if st := got["edge-1/eth0"]; st.Received != 104 || st.Dropped != 4 || st.Delivered != 100 {
		t.Errorf("the segments' accounts do not add up: %+v", st)
	}
}

// mergecap agrees on the packets and their order.
func TestMergeAsMergecapDoes(t *testing.T) {
	testbed.NeedCommand(t, "mergecap", "tshark")
	dir := t.TempDir()
	var inputs []Input
	args := []string{"-w", filepath.Join(dir, "theirs.pcapng")}
	for n := range 5 {
		data := file(fmt.Sprintf("h%d", n), "eth0", span(int64(n), 2000, 7)...)
		path := filepath.Join(dir, fmt.Sprintf("%d.pcapng", n))
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, path)
		inputs = append(inputs, input(path, data))
	}
	testbed.Run(t, "mergecap", args...)
	ours, _ := merged(t, inputs...)
	fields := []string{"frame.time_epoch", "frame.len", "frame.comment"}
	theirs := testbed.Tshark(t, args[1], "", fields...)
	if got := testbed.Tshark(t, ours, "", fields...); fmt.Sprint(got) != fmt.Sprint(theirs) {
		t.Errorf("%d packets, mergecap has %d, or others", len(got), len(theirs))
	}
}

// Of many inputs only few are open at once, and each is closed.
func TestMergeManyFiles(t *testing.T) {
	opened, most := 0, 0
	var inputs []Input
	total := 0
	for n := range 3 * openAtOnce {
		data := file("edge-1", "eth0", span(int64(n)*1000, int64(n)*1000+1000, 100)...)
		total += 10
		in := input(strconv.Itoa(n), data)
		in.Open = func() (io.ReadCloser, error) {
			opened++
			most = max(most, opened)
			return &counted{bytes.NewReader(data), &opened}, nil
		}
		inputs = append(inputs, in)
	}
	rand.Shuffle(len(inputs), func(i, j int) { inputs[i], inputs[j] = inputs[j], inputs[i] })
	path, r := merged(t, inputs...)
	if r.Packets != uint64(total) || r.Unordered != 0 || opened != 0 || most > 3 {
		t.Errorf("%+v, %d open, at once %d", r, opened, most)
	}
	if info := testbed.Capinfos(t, path); !info.Ordered || info.Packets != total {
		t.Errorf("%+v", info)
	}
}

type counted struct {
	io.Reader
	open *int
}

func (c *counted) Close() error { *c.open--; return nil }

// Faults end an input, not the merge; what stands before them is there.
func TestMergeFaults(t *testing.T) {
	whole := file("edge-1", "eth0", span(0, 100, 10)...)
	path, r := merged(t, input("whole", whole), input("cut", file("edge-2", "eth0", span(0, 100, 10)...)[:690]))
	if len(r.Ended) != 1 || r.Ended[0].Name != "cut" || !errors.Is(r.Ended[0], io.ErrUnexpectedEOF) || r.Packets != 10+r.Ended[0].Packets || r.Ended[0].Packets == 0 {
		t.Errorf("%+v", r)
	}
	if info := testbed.Capinfos(t, path); uint64(info.Packets) != r.Packets {
		t.Errorf("%+v", info)
	}
	for name, data := range map[string][]byte{"empty": nil, "text": []byte("hello, world, this is no capture"), "short": {10, 13}} {
		_, err := New([]Input{input("whole", whole), input(name, data)})
		if err == nil || !strings.HasPrefix(err.Error(), name+": ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// No packet at all still gives a file that readers take.
	path, r = merged(t, input("none", file("edge-1", "eth0")))
	if info := testbed.Capinfos(t, path); info.Packets != 0 || r.Packets != 0 {
		t.Errorf("%+v", info)
	}
}

// What other programs put beside packets stays: with the secrets of a TLS connection in
// one file Wireshark still reads the other's packets.
func TestMergeKeeps(t *testing.T) {
	testbed.NeedRoot(t)
	testbed.NeedCommand(t, "tcpdump", "editcap", "tshark")
	dir := t.TempDir()
	keys, captured, with, without := filepath.Join(dir, "keys"), filepath.Join(dir, "all.pcap"), filepath.Join(dir, "with.pcapng"), filepath.Join(dir, "without.pcapng")
	talkTLS(t, captured, keys)
	for _, args := range [][]string{
		{"-r", "--inject-secrets", "tls," + keys, captured, with, "1"}, // the first packet alone
		{captured, without, "1"}, // all others
	} {
		testbed.Run(t, "editcap", args...)
	}
	twice := file("edge-2", "eth0", 1)
	p := pcapng.Packet{Time: epoch, Body: make([]byte, 60), Original: 60, Comment: "mine"}
	twice = p.AppendWith(twice, pcapng.AppendComment(nil, "and yours"))
	open := func(path string) Input {
		return Input{Name: path, Fallback: "edge-1", Open: func() (io.ReadCloser, error) { return os.Open(path) }}
	}
	path, r := merged(t, open(without), open(with), input("twice", twice))
	if len(r.LeftOut) != 0 || r.Packets < 10 {
		t.Errorf("%+v", r)
	}
	rows := testbed.Tshark(t, path, "http.request", "http.request.uri")
	if len(rows) != 1 || rows[0][0] != "/secret" {
		t.Errorf("the request is %q", rows)
	}
	rows = testbed.Tshark(t, path, `frame.comment contains "mine"`, "frame.comment")
	if len(rows) != 1 || rows[0][0] != "mine,and yours" {
		t.Errorf("the comments are %q", rows)
	}
}

// talkTLS captures a request over TLS on the loopback, and logs its secrets.
func talkTLS(t *testing.T, capture, keys string) {
	t.Helper()
	log, err := os.Create(keys)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "hello") }))
	defer server.Close()
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	tcpdump := exec.Command("tcpdump", "-i", "lo", "-U", "-Z", "root", "-w", capture, "tcp", "port", port)
	said := new(testbed.Buffer)
	tcpdump.Stderr = said
	if err := tcpdump.Start(); err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(said.String(), "listening on") {
		time.Sleep(10 * time.Millisecond) // the test's own time limit bounds this
	}
	client := server.Client()
	client.Transport.(*http.Transport).TLSClientConfig.KeyLogWriter = log
	resp, err := client.Get(server.URL + "/secret")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	client.CloseIdleConnections()
	// What comes last, in the clear: with it everything before is in the file.
	const end = "\x00this is the end of it"
	last, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer last.Close()
	if _, err := last.Write([]byte(end)); err != nil {
		t.Fatal(err)
	}
	for data := []byte(nil); !bytes.Contains(data, []byte(end)); time.Sleep(10 * time.Millisecond) {
		if data, err = os.ReadFile(capture); err != nil {
			t.Fatal(err)
		}
	}
	if err := tcpdump.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := tcpdump.Wait(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
}

func TestMergeShift(t *testing.T) {
	late := input("b", file("edge-2", "eth0", 0, 10))
	late.Shift = 5 * time.Microsecond
	path, _ := merged(t, input("a", file("edge-1", "eth0", 0, 10)), late)
	var order []string
	for _, p := range testbed.TsharkPackets(t, path, "") {
		order = append(order, p.Interface+" "+p.Time[len(p.Time)-5:])
	}
	if got := strings.Join(order, ", "); got != "edge-1/eth0 00000, edge-2/eth0 05000, edge-1/eth0 10000, edge-2/eth0 15000" {
		t.Error(got)
	}
}

func FuzzMerge(f *testing.F) {
	f.Add(file("edge-1", "eth0", 3, 1, 2))
	f.Add(pcapng.AppendClassicHeader(nil, 1, 0))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := New([]Input{input("whole", file("edge-2", "eth0", 1, 2, 3)), input("fuzzed", data)})
		if err != nil {
			return
		}
		defer m.Close()
		var out bytes.Buffer
		r, err := m.Write(&out, pcapng.Section{})
		if err != nil || r.Packets < 3 {
			t.Fatalf("%+v %v", r, err)
		}
		again, err := New([]Input{input("merged", out.Bytes())})
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		if r2, err := again.Write(io.Discard, pcapng.Section{}); err != nil || r2.Packets != r.Packets || len(r2.Ended) != 0 {
			t.Fatalf("%+v %+v %v", r, r2, err)
		}
	})
}

// Live streams come out in order as long as they differ by less than the hold, each
// packet at once where all have sent one, and soon where one is silent.
func TestLive(t *testing.T) {
	var ins []LiveInput
	var ends []*io.PipeWriter
	for _, host := range []string{"edge-1", "edge-2"} {
		r, w := io.Pipe()
		ins, ends = append(ins, LiveInput{host, r}), append(ends, w)
	}
	outR, outW := io.Pipe()
	results := make(chan Result, 1)
	go func() {
		r, err := Live(outW, pcapng.Section{Comment: "live"}, ins, nil)
		if err != nil {
			t.Error(err)
		}
		outW.Close()
		results <- r
	}()
	reader := pcapng.NewReader(outR)
	next := func() (string, int64) {
		t.Helper()
		for {
			b, err := reader.Next()
			if errors.Is(err, io.EOF) {
				return "", 0
			}
			if err != nil {
				t.Fatal(err)
			}
			if b.Type == pcapng.TypePacket {
				p, err := b.Packet()
				if err != nil {
					t.Fatal(err)
				}
				return reader.Interfaces()[p.Interface].Name, (p.Time - epoch) / 1000
			}
		}
	}
	want := func(name string, at int64) {
		t.Helper()
		if n, got := next(); n != name || got != at {
			t.Errorf("%s at %d, not %s at %d", n, got, name, at)
		}
	}
	// The one comes later and is older.
	one, two := file("edge-1", "eth0", 10, 20, 30), file("edge-2", "eth0", 5, 15, 25)
	if _, err := ends[0].Write(one); err != nil {
		t.Fatal(err)
	}
	if _, err := ends[1].Write(two); err != nil {
		t.Fatal(err)
	}
	for i, at := range []int64{5, 10, 15, 20, 25, 30} {
		want([]string{"edge-2/eth0", "edge-1/eth0"}[i%2], at)
	}
	// The other is silent now: nothing waits for it for ever.
	if _, err := ends[0].Write(file("edge-1", "eth0", 40)); err != nil {
		t.Fatal(err)
	}
	want("edge-1/eth0", 40)
	ends[0].Close()
	if _, err := ends[1].Write(file("edge-2", "eth0", 50)); err != nil {
		t.Fatal(err)
	}
	want("edge-2/eth0", 50)
	ends[1].CloseWithError(errors.New("cut"))
	if name, _ := next(); name != "" {
		t.Errorf("more: %s", name)
	}
	if r := <-results; r.Packets != 8 || r.Unordered != 0 || len(r.Ended) != 1 || r.Interfaces != 2 {
		t.Errorf("%+v", r)
	}
}

// A reader that goes ends the merge and its inputs.
func TestLiveReaderGone(t *testing.T) {
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := Live(gone{}, pcapng.Section{}, []LiveInput{{"edge-1", r}, {"edge-2", io.NopCloser(bytes.NewReader(nil))}}, nil)
		done <- err
	}()
	for {
		if _, err := w.Write(file("edge-1", "eth0", 1)); err != nil {
			break
		}
	}
	if err := <-done; !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
}

type gone struct{}

func (gone) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
