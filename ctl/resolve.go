package ctl

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"

	"capd/nft/filter"
)

// lookup gives the addresses of a host; net.Resolver has one.
type lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)

// resolve replaces the names of hosts in an expression by all their addresses, IPv4 and
// IPv6, as they are known on this machine now, and tells what it found: capd itself never
// looks a name up.
func (a *app) resolve(ctx context.Context, expression string) (string, error) {
	lookup := a.lookup
	if lookup == nil {
		lookup = net.DefaultResolver.LookupNetIP
	}
	ctx, cancel := a.soon(ctx)
	defer cancel()
	text, err := filter.Resolve(expression, func(name string) ([]netip.Addr, error) {
		found, err := lookup(ctx, "ip", name)
		if err != nil {
			var of *net.DNSError
			if errors.As(err, &of) && of.IsNotFound {
				return nil, errors.New("there is no such host")
			}
			return nil, err
		}
		for i := range found {
			found[i] = found[i].Unmap().WithZone("")
		}
		slices.SortFunc(found, netip.Addr.Compare)
		found = slices.Compact(found)
		texts := make([]string, len(found))
		for i, addr := range found {
			texts[i] = addr.String()
		}
		if !a.quiet {
			a.note("%s is %s", clean(name), strings.Join(texts, ", "))
		}
		return found, nil
	})
	if err == nil {
		return text, nil
	}
	problem := a.pointAt(expression, filterProblem(err))
	var network *net.DNSError
	var own *exitError
	if errors.As(err, &network) && errors.As(problem, &own) {
		own.exit = exitFailed // nothing is wrong with what was typed
		own.hint = "try again, or write the address"
	}
	return "", problem
}
