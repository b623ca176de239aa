package daemon

import (
	"errors"
	"fmt"
	"math"
	"strings"

	"capd/ctl/wire"
	"capd/daemon/config"
	"capd/nearest"
	"capd/nft"
	"capd/nft/filter"
	"capd/ring"
)

// prefix marks a capture's log messages, so that another tool's rule that names the
// same group cannot slip packets into the file.
func prefix(id string) string { return "capd:" + id[:8] }

// rules is what is asked for, sample and snaplen included, whoever applies them: what the
// kernel is to do is Staged of it. The groups are filled in once they are bound.
func (p *plan) rules(id string, cfg *config.Config) nft.Spec {
	r := &p.request
	return nft.Spec{
		ID: id, Name: r.Name, Filter: p.filter, Exclude: p.exclude,
		Hooks: r.Hooks, Interfaces: r.Interfaces, Bare: p.bare != "", Offloaded: p.offloaded, Once: p.once, CPUs: nft.CPUs(),
		Prefix: prefix(id), Snaplen: *r.Snaplen, Raw: r.LinkType == wire.LinkRaw, QueueThreshold: math.MaxUint16,
		Sample: *r.Sample, SampleFlow: r.SampleBy == wire.SampleByFlow,
		Rate: cfg.Limits.MaxPacketRate, HeadersOnly: r.HeadersOnly, Annotate: r.Annotate,
	}
}

// classes tells which kinds of group a plan needs.
func (p *plan) classes() (stamped, clocked bool) {
	for _, h := range p.request.Hooks {
		if h == wire.HookOutput || h == wire.HookPostrouting {
			clocked = true
		} else {
			stamped = true
		}
	}
	return stamped, clocked
}

// ringConfig is the ring that reads what the kernel's part of the rules logs.
func (p *plan) ringConfig(kernel nft.Spec, cfg *config.Config, sh *share) ring.Config {
	rc := ring.Config{Memory: sh.slots, ReceiveBuffer: sh.recv, CopyRange: kernel.CopyRange(), Prefix: kernel.Prefix, Conntrack: p.request.Annotate}
	stamped, clocked := p.classes()
	if stamped {
		rc.Stamped = groupsPerClass(cfg)
	}
	if clocked {
		rc.Clocked = groupsPerClass(cfg)
	}
	return rc
}

// checkInterfaces refuses ingress and egress of an interface that is not here: there is
// nothing to hang a chain on. With a * at the end it may still come.
func (p *plan) checkInterfaces() error {
	if !p.atNetdev() {
		return nil
	}
	none, here, err := absent(p.request.Interfaces)
	if err != nil {
		return err
	}
	for _, name := range none {
		if !strings.HasSuffix(name, "*") {
			return invalid("interfaces", fmt.Sprintf("there is no interface %q here", name), nearest.Hint(name, here)+
				fmt.Sprintf("; %q waits for it", name+"*"))
		}
	}
	return nil
}

// warnings are what a person should know before the first packet: what in the kernel
// makes the capture see less than its words say.
func (d *Daemon) warnings(p *plan) []wire.Warning {
	out := []wire.Warning{}
	found, err := d.table.Hazards(p.rules(strings.Repeat("0", 32), d.config()))
	if err != nil {
		d.log.Warn("cannot look for what hides packets from a capture", "err", err)
	}
	for _, h := range found {
		out = append(out, wire.Warning{Code: h.Code, Message: h.Message})
	}
	none, _, err := absent(p.request.Interfaces)
	if err != nil {
		d.log.Warn("cannot look for interfaces", "err", err)
	}
	if len(none) > 0 {
		out = append(out, wire.Warning{Code: "no_interface", Message: fmt.Sprintf(
			"no interface here is called %s: nothing is captured there until one is", strings.Join(none, ", "))})
	}
	if p.bare != "" && p.framed != "" && !p.filter.All() {
		out = append(out, wire.Warning{Code: "filter_from_ip", Message: fmt.Sprintf(
			"packets of %s have no Ethernet header, those of %s have: at both the filter is matched from the IP header on, which finds also what stands behind a VLAN tag, "+
				"and nothing that is not IP; for tcpdump's exact meaning capture at interfaces of one kind", p.bare, p.framed)})
	}
	if c, ok := d.config().Destinations[p.request.Destination]; ok && c.Path != "" && !strings.Contains(c.Path, "{id}") && !strings.Contains(c.Path, "{time}") {
		out = append(out, wire.Warning{Code: "path_not_unique", Message: fmt.Sprintf(
			"the path of destination %s (%s) has neither {id} nor {time}: files of an earlier capture under the same names are not replaced, and this one would fail", c.Name, c.Path)})
	}
	return out
}

// codeRestored is the code of the warning that others have removed a capture's rules.
const codeRestored = "rules_restored"

// tellRestored notes in the records of captures that somebody else has removed their rules,
// as is possible where the kernel has no tables with an owner, and ends those whose rules
// are not back.
func (d *Daemon) tellRestored(captures []*capture) {
	restored := d.table.Restored()
	for _, c := range captures {
		why, removed := restored[c.id]
		if !removed {
			continue
		}
		c.mu.Lock()
		r := c.running
		if why == nil && r != nil {
			c.log.Warn("somebody else has removed the capture's rules; they were put back")
			if !c.warnedLocked(codeRestored) {
				c.warnLocked(wire.Warning{Code: codeRestored, Message: "somebody else removed capd's rules (nft flush ruleset?), which this kernel does not prevent: " +
					"they were put back within a second or so, and the packets of that time are in no file and no count"})
			}
		}
		c.mu.Unlock()
		if why != nil && r != nil {
			r.end(stopping{wire.StopError, why})
		}
	}
}

// explain is the plan in words. The groups stand for what the kernel will give.
func (p *plan) explain(cfg *config.Config) (wire.Explain, error) {
	e, err := nft.Explain(p.rules(strings.Repeat("0", 32), cfg).WithGroups(groupsPerClass(cfg)))
	var fe *filter.Error
	if errors.As(err, &fe) {
		return wire.Explain{}, filterError(err)
	}
	if err != nil {
		return wire.Explain{}, fmt.Errorf("explain the rules: %w", err)
	}
	return wire.Explain{Ruleset: e.Ruleset, Kernel: e.Kernel, User: e.User, Hooks: e.Hooks, Reader: e.Reader}, nil
}

// groupsPerClass is how many NFLOG groups a capture uses for each kind of hook.
func groupsPerClass(cfg *config.Config) int {
	if cfg.Ring.Groups > 0 {
		return cfg.Ring.Groups
	}
	return nft.DefaultGroups()
}
