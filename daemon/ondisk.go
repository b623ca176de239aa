package daemon

import (
	"fmt"
	"reflect"

	"capd/ctl/wire"
	"capd/daemon/config"
)

// What the configuration's files say now can be another thing than what capd has read:
// whoever edits one and looks whether it works is told so. The errors of such a file are
// not passed on: they quote it, and it may hold anything.

// reload is the mend of files that were changed.
const reload = "systemctl reload capd"

// staleProfile is the first step of a destination's check where its profile on the disk is
// not the one in force; else nil.
func (d *Daemon) staleProfile(name string) []wire.CheckStep {
	step := func(detail, hint string) []wire.CheckStep {
		return []wire.CheckStep{{Step: "profile", OK: true, Detail: detail, Hint: hint}}
	}
	file, err := d.load()
	if err != nil {
		return step("the configuration on the disk has mistakes: what is checked is what capd read before", "capd --check-config tells which; then "+reload)
	}
	is, there := file.Destinations[name]
	switch {
	case !there:
		return step("it is not in the configuration on the disk any more: what is checked is what capd read before", reload+" takes that up")
	case !sameProfile(is, d.config().Destinations[name]):
		return step("it was changed on the disk since capd read it: what is checked is as it was before", reload+", then check again")
	}
	return nil
}

// sameProfile compares two readings of a profile, wherever it stands.
func sameProfile(a, b config.Destination) bool {
	a.File, a.Line, b.File, b.Line = "", 0, "", 0
	return reflect.DeepEqual(a, b)
}

// configuration tells whether capd works by what the files say.
func (e *examination) configuration(d *Daemon) {
	const id = "configuration"
	read := d.read.Load()
	for _, file := range read.Ignored {
		e.find(wire.LevelWarning, id, "if it is a profile: mv "+file+" to a name that ends in .toml, then "+reload, "%s", ignored(file))
	}
	file, err := d.load()
	switch {
	case err != nil:
		e.find(wire.LevelWarning, id, "capd --check-config tells which", "the configuration on the disk has mistakes: capd works by what it read before, and would not start again")
	case !sameConfig(file, read):
		e.find(wire.LevelWarning, id, reload, "the configuration was changed on the disk since capd read it")
	default:
		e.find(wire.LevelOK, id, "", "capd works by what the configuration on the disk says")
	}
}

// sameConfig compares two readings, wherever in the files a thing stands.
func sameConfig(a, b *config.Config) bool {
	if len(a.Destinations) != len(b.Destinations) {
		return false
	}
	for name, is := range a.Destinations {
		if was, there := b.Destinations[name]; !there || !sameProfile(is, was) {
			return false
		}
	}
	x, y := *a, *b
	x.Destinations, y.Destinations = nil, nil
	return reflect.DeepEqual(x, y)
}

// ignored says that a file beside the profiles is none.
func ignored(file string) string {
	return fmt.Sprintf("%s is not read: a profile is a file NAME.toml", file)
}

// logIgnored warns of what was perhaps meant to be a profile.
func (d *Daemon) logIgnored(cfg *config.Config) {
	for _, file := range cfg.Ignored {
		d.log.Warn(ignored(file))
	}
}
