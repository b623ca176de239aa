package main

import (
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
