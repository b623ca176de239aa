package daemon

import (
	"fmt"
	"slices"
	"strings"

	"capd/ctl/wire"
	"capd/nft"
)

// codeInterfaceGone is the code of the warning that an interface of a capture left while it
// ran.
const codeInterfaceGone = "interface_gone"

// absence is what is known of an interface that left a running capture.
type absence struct {
	last    nft.Change // how it left last
	times   int
	warning wire.Warning // as it stands in the record
}

// watchInterfaces tells captures of interfaces that they name and that went or came back.
func (d *Daemon) watchInterfaces() {
	if d.table.LinksChanged() {
		if err := d.links.refresh(); err != nil {
			d.log.Warn("the names of interfaces may be old ones", "err", err)
		}
	}
	for _, change := range d.table.Changes() {
		d.mu.Lock()
		c := d.captures[change.ID]
		d.mu.Unlock()
		if c != nil {
			c.noteInterface(change)
		}
	}
}

// noteInterface warns of an interface that has left, and says in the same warning when it
// came back: a record has one for each name, however often it comes and goes.
func (c *capture) noteInterface(change nft.Change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.absent == nil {
		c.absent = map[string]absence{}
	}
	a := c.absent[change.Interface]
	at := change.At.UTC().Format(wire.TimeFormat)
	var text strings.Builder
	if change.Left != "" {
		a.last = change
		a.times++
		c.log.Warn("an interface of the capture is gone", "interface", change.Interface, "how", change.Left)
		fmt.Fprintf(&text, "interface %s %s at %s: nothing is captured there until one has this name again", change.Interface, change.Left, at)
		if change.To != "" {
			fmt.Fprintf(&text, "; to go on at the renamed one, start a capture with -i %s", change.To)
		}
	} else {
		c.log.Warn("an interface of the capture is back", "interface", change.Interface)
		fmt.Fprintf(&text, "interface %s %s at %s and was back at %s: what passed there in between is in no file and no count",
			change.Interface, a.last.Left, a.last.At.UTC().Format(wire.TimeFormat), at)
	}
	if a.times > 1 {
		fmt.Fprintf(&text, " (the last of %d times)", a.times)
	}
	old := a.warning
	a.warning = wire.Warning{Code: codeInterfaceGone, Message: text.String()}
	c.absent[change.Interface] = a
	c.record.Capture.Warnings = slices.DeleteFunc(slices.Clone(c.record.Capture.Warnings), func(w wire.Warning) bool { return w == old })
	c.warnLocked(a.warning)
}
