package daemon

import (
	"slices"

	"capd/ctl/wire"
	"capd/daemon/api"
	"capd/daemon/config"
	"capd/nft"
)

// accessOf is the configuration's [access] as the control interface needs it.
func accessOf(cfg *config.Config) api.Access {
	out := api.Access{ControlGroup: cfg.Access.ControlGroup, ViewGroup: cfg.Access.ViewGroup, Groups: map[string]api.Limits{}}
	sealing := []string{} // never nil: a group that must seal may then go nowhere
	for _, name := range destinationNames(cfg) {
		if len(cfg.Destinations[name].EncryptTo) > 0 {
			sealing = append(sealing, name)
		}
	}
	for name, g := range cfg.Access.Groups {
		limits := api.Limits{
			Destinations: g.Destinations, Interfaces: g.Interfaces, MaxSnaplen: g.MaxSnaplen, SimpleSnaplen: nft.SimpleSnaplen,
			MaxTimeLimit: g.MaxTimeLimit, DefaultTimeLimit: cfg.Limits.DefaultTimeLimit, RequireLabels: g.RequireLabels,
		}
		if g.RequireSealed {
			limits.Sealed = sealing
		}
		out.Groups[name] = limits
	}
	return out
}

// keptActions is how many actions a capture's record keeps: its start and the latest.
const keptActions = 100

// Record notes in a capture's record what somebody did to it (api.Daemon).
func (d *Daemon) Record(id string, a wire.Action) {
	d.mu.Lock()
	c := d.captures[id]
	d.mu.Unlock()
	if c == nil {
		return
	}
	c.mu.Lock()
	rec := &c.record.Capture
	rec.Actions = append(slices.Clone(rec.Actions), a) // others may hold the old one
	if len(rec.Actions) > keptActions {
		rec.Actions = slices.Delete(rec.Actions, 1, 2)
	}
	c.mu.Unlock()
	c.saveOrLog()
}
