package ctl

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"capd/ctl/wire"
	"capd/testbed"
)

// nobody is a user without rights; its group controls capd in this test.
const nobody = 65534

// tshark itself lists the routers, shows their fields and captures through them, as a
// user without rights.
func TestExtcapInTshark(t *testing.T) {
	testbed.NeedRoot(t)
	testbed.NeedCommand(t, "tshark")
	group := strings.TrimSpace(testbed.Run(t, "sh", "-c", fmt.Sprintf("getent group %d | cut -d: -f1", nobody)))
	ns := testbed.NewNS(t)
	d := testbed.StartDaemon(t, ns, fmt.Sprintf("[access]\ncontrol_group = %q\n", group))
	dir, err := os.MkdirTemp("", "extcap") // others must be able to enter it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// Called under its other name, capctl is another program.
	capctl, err := os.ReadFile(filepath.Join(testbed.Build(t), "capctl"))
	if err != nil {
		t.Fatal(err)
	}
	// In place of ssh a program that runs the command here: TestFleet has the real one.
	for name, text := range map[string][]byte{
		extcapName: capctl,
		"ssh":      []byte("#!/bin/sh\necho \"$@\" >> " + dir + "/said/calls\nfor last; do :; done\nPATH=" + dir + "/bin:$PATH exec sh -c \"$last\"\n"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, folder := range []string{"bin", "said", "home"} {
		if err := os.Mkdir(filepath.Join(dir, folder), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(filepath.Join(dir, folder), nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "bin", "capctl"), capctl, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts"), []byte("edge: edge-1 ops@edge-2:2222\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	extcaps := filepath.Join(dir, "extcaps")
	if err := os.Mkdir(extcaps, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, extcapName), filepath.Join(extcaps, extcapName)); err != nil {
		t.Fatal(err)
	}
	environment := append(os.Environ(), "WIRESHARK_EXTCAP_DIR="+extcaps, "HOME="+filepath.Join(dir, "home"), "TMPDIR="+filepath.Join(dir, "home"),
		"CAPD_SOCKET="+d.Socket, "CAPCTL_HOSTS="+filepath.Join(dir, "hosts"), "CAPCTL_SSH="+filepath.Join(dir, "ssh"), "XDG_RUNTIME_DIR=")
	run := func(program string, args ...string) *exec.Cmd {
		cmd := exec.Command(program, args...)
		cmd.Dir, cmd.Env = "/", environment
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		return cmd
	}

	list, err := run("tshark", "-D").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, list)
	}
	for _, want := range []string{"capd:local (capd on this machine)", "capd:edge-1 (capd on edge-1)", "capd:ops@edge-2:2222 (", "capd:ssh ("} {
		if !strings.Contains(string(list), want) {
			t.Errorf("tshark -D has no %q: %s", want, list)
		}
	}
	if links, err := run("tshark", "-i", "capd:local", "-L").CombinedOutput(); err != nil || !strings.Contains(string(links), "LINUX_SLL2") {
		t.Errorf("tshark -L: %v: %s", err, links)
	}
	form, err := run(filepath.Join(extcaps, extcapName), "--extcap-interface", "capd:ssh", "--extcap-config").CombinedOutput()
	for _, want := range []string{"{call=--router}", "{call=--filter}", "{call=--hook}", "{call=--interface}", "{call=--snaplen}", "{call=--sample}", "{required=true}", "{value=prerouting}"} {
		if err != nil || !strings.Contains(string(form), want) {
			t.Errorf("%v: the form has no %s: %s", err, want, form)
		}
	}
	for filter, good := range map[string]bool{"udp port 53": true, "udp prot 53": false} {
		out, err := run(filepath.Join(extcaps, extcapName), "--extcap-interface", "capd:local", "--extcap-capture-filter", filter).CombinedOutput()
		if err != nil || (len(out) == 0) != good {
			t.Errorf("%q: %v: %s", filter, err, out)
		}
	}

	ping := exec.Command("ip", "netns", "exec", ns, "ping", "-q", "-i", "0.05", "-s", "200", "127.0.0.1")
	if err := ping.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ping.Process.Kill(); _ = ping.Wait() })
	for _, test := range []struct {
		iface   string
		options []string
		calls   string
	}{
		{"capd:local", nil, ""},
		{"capd:edge-1", nil, "-T -- edge-1 capctl dial-stdio --greet"},
		{"capd:ssh", []string{"-o", "extcap.capd_ssh.router:ops@edge-9:2222", "-o", "extcap.capd_ssh.snaplen:64"}, "-T -p 2222 -l ops -- edge-9 capctl dial-stdio --greet"},
	} {
		t.Run(test.iface, func(t *testing.T) {
			args := append([]string{"-n", "-l", "-i", test.iface, "-f", "icmp", "-c", "4", "-T", "fields", "-e", "icmp.type", "-e", "frame.cap_len", "-e", "frame.len"}, test.options...)
			var stderr bytes.Buffer
			cmd := run("tshark", args...)
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			rows := strings.Split(strings.TrimSpace(string(out)), "\n")
			if err != nil || len(rows) != 4 {
				t.Fatalf("%v: %q: %s", err, rows, &stderr)
			}
			for _, row := range rows {
				columns := strings.Fields(row)
				if len(columns) != 3 || columns[0] != "8" && columns[0] != "0" || (len(test.options) > 0) != (columns[1] == "64") || columns[2] != "248" { // 20 of SLL2, 20 IPv4, 8 ICMP, 200
					t.Errorf("%q", row)
				}
			}
			calls, _ := os.ReadFile(filepath.Join(dir, "said", "calls"))
			if !strings.Contains(string(calls), test.calls) {
				t.Errorf("ssh was called with %s", calls)
			}
		})
	}
	// Nothing is left running.
	for _, line := range strings.Split(d.Must("list", "--json"), "},{\"id\":\"") {
		line = strings.TrimPrefix(line, "[{\"id\":\"")
		d.Await(line[:32], "finished", func(c wire.Capture) bool { return finished(c) })
	}
}
