package nft

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"capd/testbed"
)

// What the kernel lacks is said before anything is touched.
func TestLacking(t *testing.T) {
	ns := testbed.NewNS(t)
	table := openIn(t, ns)
	missing := fmt.Errorf("this kernel lacks it: %w", errors.ErrUnsupported)
	table.features = Features{Sample: missing, Flow: missing, Rate: missing, IPsec: missing, VRF: missing, Ingress: missing, Egress: missing}
	s := defaultSpec("00000001")
	s.Interfaces = []string{"lo"}
	for _, change := range []func(*Spec){
		func(s *Spec) { s.Sample = 2 },
		func(s *Spec) { s.Sample, s.SampleFlow = 2, true },
		func(s *Spec) { s.Rate = 1 },
		func(s *Spec) { s.Hooks = append(slices.Clone(s.Hooks), "ingress") },
		func(s *Spec) { s.Hooks = []string{"egress"} },
	} {
		bad := s
		change(&bad)
		err := table.Install(bad)
		var lack *Lack
		if !errors.Is(err, errors.ErrUnsupported) || !errors.As(err, &lack) || lack.Mend == "" {
			t.Errorf("got %v", err)
		}
	}
	if found, err := table.Hazards(s); err != nil || len(found) != 2 || found[0].Code != HazardTwice || found[1].Code != HazardTwice {
		t.Errorf("rules that see packets twice: %+v, %v", found, err)
	}
	install(t, table, s) // with rules left out
	if got := listRuleset(t, ns); strings.Contains(got, "ipsec") || strings.Contains(got, "vrf") {
		t.Errorf("needs what is not there:\n%s", got)
	}
	for _, f := range []Features{{Flows: missing}, {Log: missing}, {Owner: missing, Timeout: missing}} {
		if err := f.floor(); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("got %v", err)
		}
	}
	for _, f := range []Features{{Owner: missing}, {Timeout: missing}, table.features} {
		if err := f.floor(); err != nil {
			t.Errorf("got %v", err)
		}
	}
	if got := (Features{Owner: missing, Timeout: missing}).List(); !slices.ContainsFunc(got, func(f Feature) bool { return f.Name == "timeout" && f.Needed }) {
		t.Errorf("without an owner the dead-man switch is not needed: %+v", got)
	}
}

// Probe leaves nothing, and an unprivileged caller is told what it lacks.
func TestProbe(t *testing.T) {
	testbed.NeedCommand(t, "nft", "ip", "setpriv")
	ns := testbed.NewNS(t)
	testbed.In(t, ns, func() error {
		f, err := Probe()
		if err == nil {
			err = f.floor()
		}
		return err
	})
	if got := listRuleset(t, ns); got != "" {
		t.Errorf("left behind:\n%s", got)
	}
	out, err := exec.Command("ip", "netns", "exec", ns, "setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin",
		"env", ownerEnv+"=nothing", "timeout", "5", os.Args[0]).CombinedOutput()
	if !strings.Contains(string(out), "CAP_NET_ADMIN") {
		t.Errorf("without the capability: %s, %v", out, err)
	}
}
