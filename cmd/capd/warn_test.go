package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"capd/testbed"
)

// An interface that is not there is refused where a capture would hang on it, waited for
// with a *, and warned of where rules go by its name.
func TestInterfaceThatIsNotThere(t *testing.T) {
	p := testbed.NewPair(t)
	d := testbed.StartDaemon(t, p.B, "")
	for _, c := range []struct {
		args []string
		code int
		want []string
	}{
		{[]string{"-i", "nosuch0"}, 2, []string{`interfaces: there is no interface "nosuch0" here`, `"nosuch0*" waits for it`, "lo"}},
		{[]string{"-i", "lo", "-i", "nosuch0", "--hook", "egress,output"}, 2, []string{`there is no interface "nosuch0" here`}},
		{[]string{"-i", `we"ird`}, 2, []string{"interfaces[0]: ", "is not an interface", "printable ASCII"}},
		{[]string{"-i", "wég0", "--hook", "output"}, 2, []string{"interfaces[0]: ", "is not an interface", "printable ASCII"}},
		{[]string{"-i", "nosuch*"}, 0, []string{"warning: no interface here is called nosuch*"}},
		{[]string{"-i", "nosuch0", "--hook", "prerouting"}, 0, []string{"warning: no interface here is called nosuch0"}},
	} {
		r := d.Capctl(append([]string{"start"}, c.args...)...)
		if r.Code != c.code {
			t.Errorf("start %q: exit code %d, want %d\n%s", c.args, r.Code, c.code, r.Stderr)
		}
		for _, want := range c.want {
			if !strings.Contains(r.Stderr, want) {
				t.Errorf("start %q says %q, want %q in it", c.args, r.Stderr, want)
			}
		}
	}
	if r := d.Must("start", "-i", "lo"); strings.Contains(r, "warning") {
		t.Errorf("an interface that is there is warned of: %s", r)
	}
}

// What would make two captures meet under one name at the destination is told at the start,
// not when the second one fails.
func TestPathThatIsNotUnique(t *testing.T) {
	p := testbed.NewPair(t)
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	profile := func(name, path string) string {
		return fmt.Sprintf("[destination.%s]\ntype = 'sftp'\naddress = '192.0.2.9'\nuser = 'u'\nprivate_key = '%s'\nknown_hosts = '%[2]s'\n%s\n", name, key, path)
	}
	d := testbed.StartDaemon(t, p.B, profile("plain", "")+profile("flat", "path = 'in/{name}/{file}'")+profile("timed", "path = 'in/{time}/{file}'"))
	for name, warned := range map[string]bool{"plain": false, "flat": true, "timed": false} {
		r := d.Capctl("start", "-d", name, "--no-check", "-t", "1h", "icmp")
		if r.Code != 0 || strings.Contains(r.Stderr, "in/{name}/{file}") != warned || strings.Contains(r.Stderr, "warning") != warned {
			t.Errorf("to %s: %+v", name, r)
		}
	}
	// A piece of an id that is too short is told as such.
	if r := d.Capctl("show", "abc"); r.Code != 5 || !strings.Contains(r.Stderr, "4 characters or more") {
		t.Errorf("show abc: %+v", r)
	}
}
