package ctl

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"capd/testbed"
)

// What two servers were delivered, plain and sealed, becomes one file in the order of
// time, through a pipe too.
func TestMergeDelivered(t *testing.T) {
	testbed.NeedRoot(t)
	testbed.NeedCommand(t, "tshark", "capinfos", "tcpdump")
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	d, sftp, s3 := deliverFor(t, key)
	dir := t.TempDir()
	identity, out := filepath.Join(dir, "key.txt"), filepath.Join(dir, "all.pcapng")
	put(t, identity, []byte(key.String()))
	const host = "edge-1"

	if r := d.Capctl("merge", "-o", out, s3); r.Code != 1 || !strings.Contains(r.Stderr, "hint: --identity FILE") {
		t.Errorf("sealed, without a key: %+v", r)
	}
	r := d.Capctl("merge", "--identity", identity, "-o", out, s3, sftp)
	if r.Code != 0 || !strings.Contains(r.Stderr, "600 packets from ") || !strings.Contains(r.Stderr, " of 1 host") {
		t.Fatalf("%+v", r)
	}
	info := testbed.Capinfos(t, out)
	if info.Packets != 600 || !info.Ordered {
		t.Errorf("%+v", info)
	}
	for _, p := range testbed.TsharkPackets(t, out, "") {
		if p.Interface != host+"/lo" {
			t.Fatalf("interface %q", p.Interface)
		}
	}
	if text := testbed.Run(t, "capinfos", out); !strings.Contains(text, "host "+host+": clock ") || !strings.Contains(text, "synchronized") {
		t.Errorf("nothing about the clock: %s", text)
	}
	// What it wrote itself it does not take for one more capture.
	beside := filepath.Join(dir, "beside")
	if err := os.Mkdir(beside, 0o700); err != nil {
		t.Fatal(err)
	}
	again := filepath.Join(beside, "again.pcapng")
	d.Must("merge", "-o", again, sftp)
	if r := d.Capctl("merge", "-f", "-o", again, sftp, beside); r.Code != 1 || !strings.Contains(r.Stderr, again+" is left out: merge wrote it") || !strings.Contains(r.Stderr, "no capture files in "+beside) {
		t.Errorf("%+v", r)
	}
	if r := d.Capctl("merge", "-f", "-o", filepath.Join(dir, "twice.pcapng"), sftp, again); r.Code != 0 || !strings.Contains(r.Stderr, "600 packets from ") {
		t.Errorf("%+v", r)
	}
	if r := d.Capctl("merge", "-o", out, sftp); r.Code != 1 || !strings.Contains(r.Stderr, "is there already") {
		t.Errorf("%+v", r)
	}

	// tcpdump's own file beside capd's, into a pipe.
	classic := filepath.Join(dir, "lan.pcap")
	testbed.Run(t, "tcpdump", "-r", filesBelow(t, sftp)["0001.pcapng"], "-w", classic)
	count := len(testbed.TsharkPackets(t, classic, ""))
	piped := exec.Command("sh", "-c", `"$1" -q merge -o - lan="$2" "$3" --shift lan=1h | tshark -n -r - -T fields -e frame.interface_name`,
		"sh", d.Command().Path, classic, sftp)
	got, err := piped.Output()
	lines := strings.Fields(string(got))
	if err != nil || len(lines) != 300+count || lines[0] != host+"/lo" || lines[len(lines)-1] != "lan/any" {
		t.Errorf("%v: %d lines, %q", err, len(lines), lines)
	}
	if r := d.Capctl("merge", "-o", "-", "--shift", "wan=1s", sftp); r.Code != 2 || !strings.Contains(r.Stderr, "hint: hosts: "+host) {
		t.Errorf("%+v", r)
	}
	// Who has seen enough ends it without a word.
	piped = exec.Command("sh", "-c", `("$1" -q merge -o - "$2" 2>&1 >&3 | cat) 3>&1 | head -c 100 | wc -c`, "sh", d.Command().Path, sftp)
	if got, err := piped.CombinedOutput(); err != nil || strings.TrimSpace(string(got)) != "100" {
		t.Errorf("%v: %s", err, got)
	}
	// One that is cut is merged up to there.
	data, err := os.ReadFile(classic)
	if err != nil {
		t.Fatal(err)
	}
	put(t, classic, data[:len(data)-5])
	if r := d.Capctl("merge", "-o", filepath.Join(dir, "cut.pcapng"), classic); r.Code != 1 || !strings.Contains(r.Stderr, "1 file ended early") {
		t.Errorf("%+v", r)
	}
	if info := testbed.Capinfos(t, filepath.Join(dir, "cut.pcapng")); info.Packets != count-1 {
		t.Errorf("%+v, whole were %d", info, count)
	}
}
