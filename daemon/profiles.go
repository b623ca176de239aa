package daemon

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"capd/ctl/wire"
	"capd/daemon/config"
	"capd/daemon/deliver"
	"capd/daemon/seal"
	"capd/daemon/spool"
)

// profileOf is a configured destination as the delivering process needs it. It holds
// the paths of secrets only.
func profileOf(c config.Destination) deliver.Profile {
	return deliver.Profile{
		Name: c.Name, Type: c.Type,
		Address: c.Address, User: c.User, PrivateKey: c.PrivateKey, PasswordFile: c.PasswordFile, KnownHosts: c.KnownHosts, HostKey: c.HostKey,
		Endpoint: c.Endpoint, Region: c.Region, Bucket: c.Bucket, PathStyle: c.PathStyle, CAFile: c.CAFile,
		AccessKeyID: c.AccessKeyID, SecretAccessKeyFile: c.SecretAccessKeyFile, Credentials: c.Credentials,
		SSE: c.SSE, ObjectLockDays: c.ObjectLockDays,
		Path: c.Path, Verify: c.Verify, Probe: c.Probe, Concurrency: c.Concurrency, Bandwidth: int64(c.Bandwidth),
		SourceAddress: c.SourceAddress, BindDevice: c.BindDevice,
	}.WithDefaults()
}

// CheckConfig finds what the configuration asks of other rooms and cannot have: a path
// template that makes no sense, or something that this version does not do. What it
// cannot do it refuses: a profile that asks for sealed files must never send plain ones.
func CheckConfig(cfg *config.Config) error {
	var errs []error
	refuse := func(file string, line int, key, format string, args ...any) {
		errs = append(errs, &config.Error{File: file, Line: line, Key: key, Message: fmt.Sprintf(format, args...)})
	}
	for _, name := range destinationNames(cfg) {
		c := cfg.Destinations[name]
		if err := profileOf(c).Validate(); err != nil {
			refuse(c.File, c.Line, "", "%v", err)
		}
		if _, err := sealingOf(c); err != nil {
			refuse(c.File, c.Line, "encrypt_to", "destination %s: %v", name, err)
		}
	}
	if least := wire.Size(cfg.Limits.MaxCaptures * leastRing); cfg.Ring.Size > 0 && cfg.Ring.Size < least {
		refuse("capd.toml", 0, "ring.size", "%s is too little for limits.max_captures = %d: write at least %s, or fewer captures", cfg.Ring.Size, cfg.Limits.MaxCaptures, mebibytes(least))
	}
	if least := wire.Size(cfg.Limits.MaxCaptures * leastRecv); cfg.Ring.ReceiveBuffer > 0 && cfg.Ring.ReceiveBuffer < least {
		refuse("capd.toml", 0, "ring.receive_buffer", "%s is too little for limits.max_captures = %d: write at least %s, or fewer captures", cfg.Ring.ReceiveBuffer, cfg.Limits.MaxCaptures, mebibytes(least))
	}
	return errors.Join(errs...)
}

// sealingOf is what a profile asks to be done with segments before they touch the disk.
func sealingOf(c config.Destination) (*seal.Sealing, error) {
	return seal.New(c.Compression == config.CompressionZstd, c.EncryptTo)
}

// segments names a capture's files and encodes them as their destination asks.
func segments(s *seal.Sealing, format string) func(int) (string, spool.Encode) {
	suffix := s.Suffix()
	var encode spool.Encode
	if suffix != "" {
		encode = func(dst io.Writer) (spool.Encoder, error) { return s.Begin(dst) }
	}
	return func(n int) (string, spool.Encode) { return fmt.Sprintf("%04d.%s%s", n, format, suffix), encode }
}

// mebibytes writes a size as a configuration would, rounded up.
func mebibytes(n wire.Size) string { return fmt.Sprintf("%dMiB", (n+1<<20-1)>>20) }

func destinationNames(cfg *config.Config) []string {
	names := make([]string, 0, len(cfg.Destinations))
	for name := range cfg.Destinations {
		names = append(names, name)
	}
	slices.SortFunc(names, strings.Compare)
	return names
}

// Destinations lists the profiles (api.Daemon).
func (d *Daemon) Destinations() []wire.Destination {
	cfg := d.config()
	out := []wire.Destination{}
	for _, name := range destinationNames(cfg) {
		p := profileOf(cfg.Destinations[name])
		out = append(out, wire.Destination{Name: name, Type: p.Type, URL: p.URL(), Region: p.Region, Verify: p.Verify, Probe: p.Probe})
	}
	return out
}

// profile gives a destination by name, or the 404 that a path's name gets.
func (d *Daemon) profile(name string) (deliver.Profile, error) {
	c, ok := d.config().Destinations[name]
	if !ok {
		e := &wire.Error{Status: http.StatusNotFound, Code: wire.CodeNoSuchDestination,
			Message: fmt.Sprintf("there is no destination %q on this box", name), Hint: "see capctl destination list"}
		if file, err := d.load(); err == nil && file.Destinations[name].Name != "" {
			e.Hint = "its profile is new on the disk: " + reload
		}
		return deliver.Profile{}, e
	}
	return profileOf(c), nil
}
