package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"capd/ctl/wire"
	"capd/daemon/deliver"
)

// checkCache remembers for a while which destinations have answered well, so that captures
// started in a row do not probe them each time. The zero value is ready.
type checkCache struct {
	mu   sync.Mutex
	good map[string]time.Time
}

const checkLasts = time.Minute

// fresh tells whether a destination has answered well lately.
func (c *checkCache) fresh(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, ok := c.good[name]
	return ok && time.Since(at) < checkLasts
}

// note keeps how a check has ended, or that a delivery has failed: what was good is so no
// more.
func (c *checkCache) note(name string, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !ok {
		delete(c.good, name)
		return
	}
	if c.good == nil {
		c.good = map[string]time.Time{}
	}
	c.good[name] = time.Now()
}

// forget is called when the profiles may have changed.
func (c *checkCache) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.good = nil
}

// CheckDestination goes through every step of a delivery (api.Daemon). Before them it says
// where the profile on the disk is another one.
func (d *Daemon) CheckDestination(ctx context.Context, name string) (wire.Check, error) {
	check, err := d.check(ctx, name)
	if err == nil {
		check.Steps = append(d.staleProfile(name), check.Steps...)
	}
	return check, err
}

func (d *Daemon) check(ctx context.Context, name string) (wire.Check, error) {
	if _, err := d.profile(name); err != nil {
		return wire.Check{}, err
	}
	check, err := d.client.Check(ctx, name)
	if err != nil {
		var de *deliver.Error
		if errors.As(err, &de) {
			return wire.Check{Steps: []wire.CheckStep{{Step: "delivery process", Detail: de.Message, Hint: de.Hint}}}, nil
		}
		return wire.Check{}, fmt.Errorf("check destination: %w", err)
	}
	d.checks.note(name, check.OK)
	return check, nil
}

// preflight refuses a capture whose destination does not work.
func (d *Daemon) preflight(ctx context.Context, name string) error {
	if d.checks.fresh(name) {
		return nil
	}
	check, err := d.check(ctx, name)
	if err != nil || check.OK {
		return err
	}
	e := &wire.Error{Status: http.StatusUnprocessableEntity, Code: wire.CodeDestinationUnreachable, Field: "destination",
		Message: fmt.Sprintf("destination %s does not work", name), Hint: "see capctl destination check " + name + "; --no-check starts all the same"}
	for _, s := range check.Steps {
		if s.OK {
			continue
		}
		e.Message = fmt.Sprintf("destination %s: %s: %s", name, s.Step, s.Detail)
		if s.Hint != "" {
			e.Hint = s.Hint + "; --no-check starts all the same"
		}
		if s.Step != deliver.StepResolve && s.Step != deliver.StepConnect {
			e.Code = wire.CodeDestinationRefused
		}
	}
	return e
}
