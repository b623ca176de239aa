package config

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"capd/ctl/wire"
	"capd/nearest"
)

// The raw structs are the schema: a key that is no field here is refused, and a nil
// pointer is a key that is not set. The values stay undecoded until a setter of
// values.go takes them, because an undecoded value still knows its key and its line.
type rawConfig struct {
	Daemon      rawDaemon                 `toml:"daemon"`
	Access      rawAccess                 `toml:"access"`
	Limits      rawLimits                 `toml:"limits"`
	Spool       rawSpool                  `toml:"spool"`
	Ring        rawRing                   `toml:"ring"`
	Destination map[string]rawDestination `toml:"destination"`
}

type rawDaemon struct {
	Socket        *toml.Primitive `toml:"socket"`
	StateDir      *toml.Primitive `toml:"state_dir"`
	Host          *toml.Primitive `toml:"host"`
	LogLevel      *toml.Primitive `toml:"log_level"`
	MetricsFile   *toml.Primitive `toml:"metrics_file"`
	MetricsListen *toml.Primitive `toml:"metrics_listen"`
}

type rawAccess struct {
	ControlGroup *toml.Primitive     `toml:"control_group"`
	ViewGroup    *toml.Primitive     `toml:"view_group"`
	Group        map[string]rawGroup `toml:"group"`
}

type rawGroup struct {
	Destinations  *toml.Primitive `toml:"destinations"`
	Interfaces    *toml.Primitive `toml:"interfaces"`
	MaxSnaplen    *toml.Primitive `toml:"max_snaplen"`
	MaxTimeLimit  *toml.Primitive `toml:"max_time_limit"`
	RequireLabels *toml.Primitive `toml:"require_labels"`
	RequireSealed *toml.Primitive `toml:"require_sealed"`
}

type rawLimits struct {
	MaxCaptures      *toml.Primitive `toml:"max_captures"`
	DefaultTimeLimit *toml.Primitive `toml:"default_time_limit"`
	MaxTimeLimit     *toml.Primitive `toml:"max_time_limit"`
	DefaultByteLimit *toml.Primitive `toml:"default_byte_limit"`
	MaxByteLimit     *toml.Primitive `toml:"max_byte_limit"`
	MaxPacketRate    *toml.Primitive `toml:"max_packet_rate"`
	SpoolSize        *toml.Primitive `toml:"spool_size"`
	MinFreeSpace     *toml.Primitive `toml:"min_free_space"`
	Retention        *toml.Primitive `toml:"retention"`
	DropUndelivered  *toml.Primitive `toml:"drop_undelivered"`
}

type rawSpool struct {
	Kind *toml.Primitive `toml:"kind"`
	Dir  *toml.Primitive `toml:"dir"`
}

type rawRing struct {
	Size          *toml.Primitive `toml:"size"`
	ReceiveBuffer *toml.Primitive `toml:"receive_buffer"`
	Groups        *toml.Primitive `toml:"groups"`
}

// reader goes through one file and gathers every mistake in it.
type reader struct {
	file string
	text string
	md   toml.MetaData             // of root, and good for whatever is decoded from the same text
	root map[string]toml.Primitive // the file's top level
	errs []error

	// groupRefs are the destinations that [access.group.NAME] names.
	groupRefs []groupRef
}

type groupRef struct {
	at          *toml.Primitive
	destination string
}

func newReader(file, text string) *reader { return &reader{file: file, text: text} }

// mistakes gives what was found, in the order of lines.
func (r *reader) mistakes() []error {
	line := func(err error) int {
		var e *Error
		if errors.As(err, &e) {
			return e.Line
		}
		return 0
	}
	slices.SortStableFunc(r.errs, func(a, b error) int { return cmp.Compare(line(a), line(b)) })
	return r.errs
}

// decode reads the file into a raw struct. It says false where there is no use in
// looking at values.
func (r *reader) decode(raw any) bool {
	var err error
	if r.md, err = toml.Decode(r.text, &r.root); err != nil {
		e := &Error{File: r.file, Message: err.Error()}
		var syntax toml.ParseError
		if errors.As(err, &syntax) {
			e.Line, e.Key, e.Message = syntax.Position.Line, syntax.LastKey, "not TOML: "+syntax.Message
			if strings.HasPrefix(syntax.Message, "expected value") || strings.HasPrefix(syntax.Message, "expected a top-level item to end") {
				e.Hint = `text, also a size or a duration, stands in quotes: "7d"`
			}
		}
		r.errs = append(r.errs, e)
		return false
	}
	sound := true
	refused := map[string]bool{}
	for _, key := range r.md.Keys() {
		sound = r.checkKey(reflect.TypeOf(raw).Elem(), key, refused) && sound
	}
	if !sound {
		return false
	}
	if _, err := toml.Decode(r.text, raw); err != nil {
		r.errs = append(r.errs, &Error{File: r.file, Message: err.Error()})
		return false
	}
	return true
}

// checkKey holds one key of the file against the schema t, and puts what it refuses
// into refused, so that it is told once. It says whether the file can be decoded
// nevertheless.
func (r *reader) checkKey(t reflect.Type, key toml.Key, refused map[string]bool) bool {
	refuse := func(k toml.Key, message, hint string) {
		refused[k.String()] = true
		r.errs = append(r.errs, &Error{File: r.file, Line: cmp.Or(r.lineOf(k), r.lineOf(key)), Key: k.String(), Message: message, Hint: hint})
	}
	for i, name := range key {
		at := key[:i+1]
		if refused[at.String()] {
			return true
		}
		switch t.Kind() {
		case reflect.Map:
			if !wire.ValidName(name) {
				refuse(at, fmt.Sprintf("%q is not a name", name), wire.NameHint)
				return true
			}
			t = t.Elem()
		case reflect.Struct:
			known := tomlNames(t)
			next, ok := known[name]
			if !ok {
				what := "key"
				if i < len(key)-1 || r.md.Type(at...) == "Hash" || r.md.Type(at...) == "ArrayHash" {
					what = "table"
				}
				refuse(at, "unknown "+what, nearest.Hint(name, slices.Collect(maps.Keys(known))))
				return true
			}
			t = next
		default:
			return true // inside a value: its setter judges it
		}
	}
	if k := t.Kind(); (k == reflect.Struct || k == reflect.Map) && r.md.Type(key...) != "Hash" {
		refuse(key, "this is a table, not a value", "write ["+key.String()+"] and its keys below")
		return false
	}
	return true
}

// tomlNames gives the keys of a raw struct with their types, pointers resolved; a value
// has the kind of an empty interface.
func tomlNames(t reflect.Type) map[string]reflect.Type {
	names := make(map[string]reflect.Type, t.NumField())
	for f := range t.Fields() {
		ft := f.Type
		if ft == reflect.TypeFor[*toml.Primitive]() {
			ft = reflect.TypeFor[any]()
		}
		names[f.Tag.Get("toml")] = ft
	}
	return names
}

// locator is a value that refuses every TOML value, so that the decoder tells where the
// value stands: positions are in its errors and nowhere else.
type locator struct{}

func (*locator) UnmarshalTOML(any) error { return errLocated }

var errLocated = errors.New("located")

// where gives the key and the line of an undecoded value.
func (r *reader) where(p toml.Primitive) (key string, line int) {
	var at toml.ParseError
	if err := r.md.PrimitiveDecode(p, &locator{}); errors.As(err, &at) {
		return at.LastKey, at.Position.Line
	}
	return "", 0
}

// lineOf gives the line of a key, or 0.
func (r *reader) lineOf(key toml.Key) int {
	table := r.root
	for {
		p, ok := table[key[0]]
		if !ok {
			return 0
		}
		table, key = nil, key[1:]
		if len(key) == 0 || r.md.PrimitiveDecode(p, &table) != nil {
			_, line := r.where(p)
			return line
		}
	}
}

// get hands a value, where it is set, to its setter.
func (r *reader) get(p *toml.Primitive, set setter) {
	if p == nil {
		return
	}
	var value any
	if err := r.md.PrimitiveDecode(*p, &value); err != nil {
		r.fail(p, &mistake{message: err.Error()})
		return
	}
	if m := set(value); m != nil {
		r.fail(p, m)
	}
}

// fail notes a mistake at a value.
func (r *reader) fail(p *toml.Primitive, m *mistake) {
	key, line := r.where(*p)
	r.errs = append(r.errs, &Error{File: r.file, Line: line, Key: key, Message: m.message, Hint: m.hint})
}

// config reads a capd.toml into c, which holds the defaults.
func (r *reader) config(c *Config) {
	var raw rawConfig
	if !r.decode(&raw) {
		return
	}
	d := raw.Daemon
	r.get(d.Socket, socketPath(&c.Daemon.Socket))
	r.get(d.StateDir, absPath(&c.Daemon.StateDir))
	r.get(d.Host, hostLabel(&c.Daemon.Host))
	r.get(d.LogLevel, logLevel(&c.Daemon.LogLevel))
	r.get(d.MetricsFile, offOr(&c.Daemon.MetricsFile, absPath))
	r.get(d.MetricsListen, offOr(&c.Daemon.MetricsListen, listenAddress))

	r.access(c, raw.Access)
	r.limits(c, raw.Limits)

	r.get(raw.Spool.Kind, oneOf(&c.Spool.Kind, SpoolDisk, SpoolMemory))
	r.get(raw.Spool.Dir, absPath(&c.Spool.Dir))
	if c.Spool.Kind == SpoolMemory && raw.Spool.Dir != nil {
		r.fail(raw.Spool.Dir, &mistake{`only for kind = "disk"`, "leave one of the two out"})
	}

	r.get(raw.Ring.Size, autoOr(&c.Ring.Size, sizeBetween(&c.Ring.Size, minRing, 16<<30)))
	r.get(raw.Ring.ReceiveBuffer, autoOr(&c.Ring.ReceiveBuffer, sizeBetween(&c.Ring.ReceiveBuffer, minRing, 16<<30)))
	r.get(raw.Ring.Groups, autoOr(&c.Ring.Groups, integer(&c.Ring.Groups, 1, 16)))

	for _, name := range slices.Sorted(maps.Keys(raw.Destination)) {
		if wire.ValidName(name) {
			c.Destinations[name] = r.destination(name, toml.Key{"destination", name}, raw.Destination[name])
		}
	}
}

// leastSnaplen is the shortest snaplen that a request may name: an Ethernet and an IPv4
// header.
const leastSnaplen = 34

func (r *reader) access(c *Config, raw rawAccess) {
	r.get(raw.ControlGroup, group(&c.Access.ControlGroup))
	r.get(raw.ViewGroup, group(&c.Access.ViewGroup))
	for _, name := range slices.Sorted(maps.Keys(raw.Group)) {
		if !wire.ValidName(name) {
			continue
		}
		g := raw.Group[name]
		var limits GroupLimits
		r.get(g.Destinations, list(&limits.Destinations, func(s string) *mistake {
			if !wire.ValidName(s) {
				return &mistake{fmt.Sprintf("%q is not a destination's name", s), wire.NameHint}
			}
			r.groupRefs = append(r.groupRefs, groupRef{g.Destinations, s})
			return nil
		}))
		r.get(g.Interfaces, list(&limits.Interfaces, interfacePattern))
		r.get(g.MaxSnaplen, integer(&limits.MaxSnaplen, 0, wire.MaxSnaplen))
		if n := limits.MaxSnaplen; n != 0 && n < leastSnaplen {
			r.fail(g.MaxSnaplen, &mistake{fmt.Sprintf("%d is less than any capture keeps of a packet", n), fmt.Sprintf("write %d or more, or 0 for no bound", leastSnaplen)})
		}
		r.get(g.MaxTimeLimit, duration(&limits.MaxTimeLimit, 0))
		r.get(g.RequireLabels, list(&limits.RequireLabels, labelKey))
		r.get(g.RequireSealed, boolean(&limits.RequireSealed))
		c.Access.Groups[name] = limits
	}
}

func (r *reader) limits(c *Config, raw rawLimits) {
	l := &c.Limits
	r.get(raw.MaxCaptures, integer(&l.MaxCaptures, 1, 1024))
	r.get(raw.DefaultTimeLimit, duration(&l.DefaultTimeLimit, 1e9))
	r.get(raw.MaxTimeLimit, duration(&l.MaxTimeLimit, 1e9))
	r.get(raw.DefaultByteLimit, sizeBetween(&l.DefaultByteLimit, wire.MinByteLimit, 1<<62))
	r.get(raw.MaxByteLimit, sizeBetween(&l.MaxByteLimit, wire.MinByteLimit, 1<<62))
	r.get(raw.MaxPacketRate, integer(&l.MaxPacketRate, 0, 1e9))
	r.get(raw.SpoolSize, share(&l.SpoolSize))
	r.get(raw.MinFreeSpace, share(&l.MinFreeSpace))
	r.get(raw.Retention, duration(&l.Retention, 0))
	r.get(raw.DropUndelivered, boolean(&l.DropUndelivered))

	// A default above its maximum is a mistake where a person wrote it, and follows the
	// maximum where nobody did.
	if l.DefaultTimeLimit > l.MaxTimeLimit {
		if raw.DefaultTimeLimit != nil {
			r.fail(raw.DefaultTimeLimit, &mistake{fmt.Sprintf("%s is more than max_time_limit, which is %s", l.DefaultTimeLimit, l.MaxTimeLimit), "lower the one or raise the other"})
		}
		l.DefaultTimeLimit = l.MaxTimeLimit
	}
	if l.DefaultByteLimit > l.MaxByteLimit {
		if raw.DefaultByteLimit != nil {
			r.fail(raw.DefaultByteLimit, &mistake{fmt.Sprintf("%s is more than max_byte_limit, which is %s", l.DefaultByteLimit, l.MaxByteLimit), "lower the one or raise the other"})
		}
		l.DefaultByteLimit = l.MaxByteLimit
	}
	if l.SpoolSize == (Share{}) {
		r.fail(raw.SpoolSize, &mistake{"a spool of 0 bytes holds nothing", `give a size, or set [spool] kind = "memory"`})
	}
	if l.SpoolSize.Percent+l.MinFreeSpace.Percent > 100 {
		at := cmp.Or(raw.SpoolSize, raw.MinFreeSpace)
		r.fail(at, &mistake{fmt.Sprintf("spool_size (%s) and min_free_space (%s) are more than the whole file system", l.SpoolSize, l.MinFreeSpace), "lower one of them"})
	}
}

// groupDestinations refuses destinations that a group names and nobody defines.
func (r *reader) groupDestinations(c *Config) {
	names := slices.Collect(maps.Keys(c.Destinations))
	for _, ref := range r.groupRefs {
		if _, ok := c.Destinations[ref.destination]; !ok {
			hint := "no destinations are defined"
			if len(names) > 0 {
				hint = nearest.Hint(ref.destination, names)
			}
			r.fail(ref.at, &mistake{fmt.Sprintf("no destination is called %q", ref.destination), hint})
		}
	}
}

// profile reads a destinations.d/NAME.toml into c.
func (r *reader) profile(c *Config, name string) {
	if !wire.ValidName(name) {
		r.errs = append(r.errs, &Error{File: r.file, Message: fmt.Sprintf("%q is not a destination's name", name), Hint: wire.NameHint})
		return
	}
	if first, taken := c.Destinations[name]; taken {
		r.errs = append(r.errs, &Error{File: r.file, Message: fmt.Sprintf("destination %q is defined here and in %s", name, first.place()), Hint: "remove or rename one of the two"})
		return
	}
	var raw rawDestination
	if r.decode(&raw) {
		c.Destinations[name] = r.destination(name, nil, raw)
	}
}

// place says where a profile stands.
func (d Destination) place() string {
	if d.Line > 0 {
		return fmt.Sprintf("%s:%d", d.File, d.Line)
	}
	return d.File
}

// quote shows a TOML value in an error text, shortened where it is long.
func quote(v any) string {
	switch v := v.(type) {
	case []any, []map[string]any:
		return "a list"
	case map[string]any:
		return "a table"
	case string:
		if len(v) > 80 {
			v = strings.ToValidUTF8(v[:76], "") + " ..."
		}
		return fmt.Sprintf("%q", v)
	}
	return fmt.Sprint(v)
}
