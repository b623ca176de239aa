package api

import (
	"fmt"
	"slices"
	"strings"

	"capd/ctl/wire"
)

// Limits is what captures of a group's members are held to. The zero value holds them to
// nothing but the box's own limits.
type Limits struct {
	Destinations     []string     // profiles that may be named; nil = any, empty = none
	Interfaces       []string     // allowed interfaces, * at the end for a prefix; nil = any and all
	MaxSnaplen       uint32       // bytes; 0 = no bound
	SimpleSnaplen    uint32       // the box's, for a simple capture that names none
	MaxTimeLimit     wire.Seconds // 0 = no bound
	DefaultTimeLimit wire.Seconds // the box's, for a request that names none
	RequireLabels    []string     // keys that a request must carry
	Sealed           []string     // where not nil: packets may only go to these profiles, which seal them
}

// fit holds a request to the limits of the groups that the peer is in: those of one of
// them must take it whole. What the request leaves to the box's defaults is brought
// within the limits; what it asks for beyond them is refused.
func (gr grant) fit(req *wire.StartRequest) *wire.Error {
	if gr.all {
		return nil
	}
	var refused *wire.Error
	for _, role := range gr.held {
		fitted := *req
		e := role.limits.fit(role.group, &fitted)
		if e == nil {
			*req = fitted
			return nil
		}
		if refused == nil {
			refused = e
		} else {
			refused.Message += "; " + e.Message
		}
	}
	if refused == nil { // not reached: without a group judge has refused the call
		refused = forbidden("", "no group of the caller's may start captures", "")
	}
	return refused
}

// reaches says why no group of the peer's may use a destination, or nil.
func (gr grant) reaches(name string) (refused *wire.Error) {
	if gr.all {
		return nil
	}
	for _, role := range gr.held {
		if refused = role.limits.fitDestination(role.group, name); refused == nil {
			return nil
		}
	}
	return refused
}

func (l Limits) fit(group string, r *wire.StartRequest) *wire.Error {
	for _, key := range l.RequireLabels {
		if r.Labels[key] == "" {
			return forbidden(join("labels", key), fmt.Sprintf("%s: captures of the group %s carry this label", join("labels", key), group), fmt.Sprintf("add it: --label %s=VALUE", key))
		}
	}
	if e := l.fitDestination(group, r.Destination); e != nil {
		return e
	}
	if e := l.fitInterfaces(group, r.Interfaces); e != nil {
		return e
	}
	if l.MaxSnaplen != 0 {
		switch {
		case r.Snaplen == nil && r.Type == wire.TypeSimple && l.MaxSnaplen >= l.SimpleSnaplen:
		case r.Snaplen == nil:
			r.Snaplen = &l.MaxSnaplen
		case *r.Snaplen == 0 || *r.Snaplen > l.MaxSnaplen:
			return forbidden("snaplen", fmt.Sprintf("snaplen: %d is more than the group %s may keep of a packet, which is %d bytes", *r.Snaplen, group, l.MaxSnaplen),
				fmt.Sprintf("ask for %d or less, or leave it out (0 means whole packets)", l.MaxSnaplen))
		}
	}
	if l.MaxTimeLimit != 0 {
		switch {
		case r.TimeLimit == nil:
			limit := min(l.DefaultTimeLimit, l.MaxTimeLimit)
			r.TimeLimit = &limit
		case *r.TimeLimit > l.MaxTimeLimit:
			return forbidden("time_limit", fmt.Sprintf("time_limit: %s is longer than captures of the group %s may run, which is %s", *r.TimeLimit, group, l.MaxTimeLimit), "ask for less, or leave it out")
		}
	}
	return nil
}

// MaySealTo are the destinations that seal, of those that the group may name.
func (l Limits) MaySealTo() []string {
	if l.Destinations == nil {
		return l.Sealed
	}
	return slices.DeleteFunc(slices.Clone(l.Sealed), func(s string) bool { return !slices.Contains(l.Destinations, s) })
}

// fitDestination judges where packets go; "" = they stay here, for their owner to fetch.
func (l Limits) fitDestination(group, name string) *wire.Error {
	allowed := l.Destinations
	if l.Sealed != nil {
		allowed = l.MaySealTo()
	}
	hint := "the group may use none: [access.group." + group + "] destinations, and encrypt_to in their profiles, decide that"
	if len(allowed) > 0 {
		hint = "it may use " + strings.Join(allowed, ", ")
	}
	switch {
	case name == "" && l.Sealed != nil:
		return forbidden("destination", fmt.Sprintf("destination: captures of the group %s are sealed, so they name a destination that seals", group), hint)
	case name != "" && l.Destinations != nil && !slices.Contains(l.Destinations, name):
		return forbidden("destination", fmt.Sprintf("destination: the group %s may not deliver to %s", group, shown(name)), hint)
	case name != "" && l.Sealed != nil && !slices.Contains(l.Sealed, name):
		return forbidden("destination", fmt.Sprintf("destination: captures of the group %s are sealed, and %s does not seal", group, shown(name)), hint)
	}
	return nil
}

func (l Limits) fitInterfaces(group string, names []string) *wire.Error {
	if l.Interfaces == nil {
		return nil
	}
	hint := "the group may use none: [access.group." + group + "] interfaces decides that"
	if len(l.Interfaces) > 0 {
		hint = "it may use " + strings.Join(l.Interfaces, ", ")
	}
	if len(names) == 0 {
		return forbidden("interfaces", fmt.Sprintf("interfaces: captures of the group %s name their interfaces", group), hint)
	}
	for i, name := range names {
		if !slices.ContainsFunc(l.Interfaces, func(allowed string) bool { return covers(allowed, name) }) {
			field := fmt.Sprintf("interfaces[%d]", i)
			return forbidden(field, fmt.Sprintf("%s: the group %s may not capture at %s", field, group, shown(name)), hint)
		}
	}
	return nil
}

// covers says whether every interface that name fits is one that allowed fits. Both may
// end in *.
func covers(allowed, name string) bool {
	if prefix, ok := strings.CutSuffix(allowed, "*"); ok {
		return strings.HasPrefix(strings.TrimSuffix(name, "*"), prefix)
	}
	return allowed == name
}
