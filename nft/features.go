package nft

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Features tells what this kernel can do: nil, or why not.
type Features struct {
	Owner   error // tables with an owner; without it Table keeps watch over its rules itself
	Log     error // NFLOG from nftables; without it there is no capture
	Flows   error // sets of connections, for capd's own; without it there is no capture
	Timeout error // sets with timeouts, for the dead-man switch; it or Owner has to be there
	Sample  error // numgen, for one in N packets
	Flow    error // symhash, for one in N flows
	Rate    error // limit objects
	IPsec   error // meta ipsec and rt ipsec: without them Once cannot tell second passes
	VRF     error // meta iifkind and fib: as IPsec
	Ingress error // netdev ingress
	Egress  error // netdev egress
}

// Feature is one thing that a kernel can do or cannot.
type Feature struct {
	Name    string // as status and doctor call it
	Err     error  // nil: it can
	Needed  bool   // without it there is no capture
	Gives   string // what it is there for, in words
	Without string // what is different where it is missing, in words
}

// Lack says what the kernel lacks and what that means, and what to do about it.
func (f Feature) Lack() (message, mend string) {
	return fmt.Sprintf("%v; it is for %s: without it %s", f.Err, f.Gives, f.Without), "load the module it names, or use a newer kernel"
}

// named pairs the features with their names.
func (f *Features) named() []struct {
	name string
	err  *error
} {
	return []struct {
		name string
		err  *error
	}{
		{"nflog", &f.Log}, {"flows", &f.Flows}, {"owner", &f.Owner}, {"timeout", &f.Timeout}, {"rate", &f.Rate}, {"sample", &f.Sample},
		{"flow", &f.Flow}, {"ingress", &f.Ingress}, {"egress", &f.Egress}, {"ipsec", &f.IPsec}, {"vrf", &f.VRF},
	}
}

// words says of each feature what it gives and what its absence costs.
var words = map[string][2]string{
	"nflog": {"packets from rules", "there is no capture"},
	"flows": {"capd's own connections, which are in no capture", "there is no capture"},
	"owner": {"rules that vanish with capd and that nobody else can change",
		"the rules of a killed capd log for up to 5 s more and stay until its next start, and a firewall reload (nft flush ruleset) takes those of running captures, " +
			"which capd puts back within about a second, with a warning in the capture"},
	"timeout": {"the dead-man switch", "the kernel goes on logging while capd hangs"},
	"rate":    {"the rate guard (max_packet_rate)", "captures start only with limits.max_packet_rate = 0"},
	"sample":  {"one packet in N (--sample)", "captures with --sample are refused"},
	"flow":    {"one flow in N (--sample-by flow)", "captures with --sample-by flow are refused"},
	"ingress": {"what an interface receives (-i, --hook ingress)", "captures with it are refused"},
	"egress":  {"what an interface sends (-i, --hook egress)", "captures with it are refused; --hook input,forward,output -i IF sees an interface's IP packets both ways"},
	"ipsec":   {"packets once, not again after IPsec", "packets over IPsec and copies of multicast sent from here are captured twice"},
	"vrf":     {"packets once, not again in a VRF", "packets of VRFs are captured twice"},
}

// List gives the features, those first without which there is no capture.
func (f Features) List() []Feature {
	var out []Feature
	for _, n := range f.named() {
		feature := Feature{Name: n.name, Err: *n.err, Gives: words[n.name][0], Without: words[n.name][1]}
		switch n.name {
		case "nflog", "flows":
			feature.Needed = true
		case "timeout":
			if feature.Needed = f.Owner != nil; feature.Needed {
				feature.Without = "there is no capture, because this kernel has no tables with an owner either: nothing would end the logging of a capd that was killed"
			}
		}
		out = append(out, feature)
	}
	return out
}

// without gives the features as they would be in a kernel that lacks some, by name.
func (f Features) without(names string) Features {
	for _, n := range f.named() {
		if slices.Contains(strings.Split(names, ","), n.name) && *n.err == nil {
			*n.err = fmt.Errorf("this kernel is taken for one that lacks %s: %w", n.name, errors.ErrUnsupported)
		}
	}
	return f
}

// floor gives the first thing missing without which no capture is possible.
func (f Features) floor() error {
	for _, feature := range f.List() {
		if feature.Needed && feature.Err != nil {
			return fmt.Errorf("nft: %w: without it %s", feature.Err, feature.Without)
		}
	}
	return nil
}

// lacks gives what rules have to do without.
func (f Features) lacks() lacks {
	return lacks{owner: f.Owner != nil, timeout: f.Timeout != nil, ipsec: f.IPsec != nil, vrf: f.VRF != nil}
}

// Lack says what a kernel would have to have for a capture, and what to do about it. It is
// errors.ErrUnsupported.
type Lack struct {
	Err  error
	Mend string
}

// Error names the feature and, where one is known, its kernel module.
func (l *Lack) Error() string { return l.Err.Error() }

// Unwrap gives the kernel's answer to the probe.
func (l *Lack) Unwrap() error { return l.Err }

// allow gives, as a *Lack, the first thing missing that a capture needs.
func (f Features) allow(s Spec) error {
	for _, need := range []struct {
		needed bool
		err    error
		mend   string
	}{
		{s.Sample > 1 && !s.SampleFlow, f.Sample, "load the module, or start it without --sample, or with --sample-by flow"},
		{s.Sample > 1 && s.SampleFlow, f.Flow, "load the module, or start it with --sample-by packet"},
		{s.Rate > 0, f.Rate, "load the module, or set limits.max_packet_rate = 0 in capd.toml, and nothing bounds the load of captures then"},
		{slices.Contains(s.Hooks, "ingress"), f.Ingress, "--hook prerouting sees the IP packets that interfaces receive"},
		{slices.Contains(s.Hooks, "egress"), f.Egress, "--hook ingress sees what interfaces receive, --hook input,forward,output their IP packets both ways"},
	} {
		if need.needed && need.err != nil {
			return &Lack{need.err, need.mend}
		}
	}
	return nil
}

// hazards gives what a capture is told of that does its work all the same.
func (f Features) hazards(s Spec) (out []Hazard) {
	if f.Timeout != nil {
		out = append(out, Hazard{HazardNoSwitch, "this kernel has no sets with timeouts, and so no dead-man switch: while capd hangs, the kernel goes on logging, which costs the box time; when capd ends, so do the rules"})
	}
	if s.Once && f.IPsec != nil {
		out = append(out, Hazard{HazardTwice, "this kernel cannot match packets by IPsec (meta ipsec, rt ipsec): those that come out of IPsec, and copies of multicast sent from here, are captured twice"})
	}
	if s.Once && f.VRF != nil {
		out = append(out, Hazard{HazardTwice, "this kernel cannot match packets by VRF (meta iifkind, fib): those that enter or leave by a VRF are captured twice"})
	}
	return out
}
