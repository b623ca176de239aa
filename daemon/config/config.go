// Package config reads capd's configuration: capd.toml, the profiles in destinations.d
// beside it, and the environment. What comes out is valid as a whole; what does not make
// sense is refused with file, line, key, value and mend. Secrets are never part of it:
// the file names the files that hold them.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"capd/ctl/wire"
)

// DefaultPath is the configuration file that capd reads unless told otherwise.
const DefaultPath = "/etc/capd/capd.toml"

// DestinationsDir is the folder beside capd.toml that holds a profile a file.
const DestinationsDir = "destinations.d"

// Config is the whole configuration, checked, with defaults filled in.
type Config struct {
	Files        []string // what was read, in order; empty: the defaults alone
	Ignored      []string // what lies beside the profiles and is none, though perhaps meant to be
	Daemon       Daemon
	Access       Access
	Limits       Limits
	Spool        Spool
	Ring         Ring
	Destinations map[string]Destination // by name; never nil
}

// Daemon is the table [daemon].
type Daemon struct {
	Socket        string // absolute path
	StateDir      string // absolute path
	Host          string // "" = the host's own name
	LogLevel      slog.Level
	MetricsFile   string // absolute path; "" = off
	MetricsListen string // host:port; "" = off
}

// Access is the table [access]: who may do what, by the groups of the peer.
type Access struct {
	ControlGroup string // may do all; "" = nobody but root
	ViewGroup    string // may read what holds no packets; "" = nobody
	Groups       map[string]GroupLimits
}

// GroupLimits is a table [access.group.NAME]: what captures of that group's members are
// held to.
type GroupLimits struct {
	Destinations  []string     // allowed profiles; nil = any, empty = none
	Interfaces    []string     // allowed interfaces, * at the end for a prefix; nil = any, empty = none
	MaxSnaplen    uint32       // bytes; 0 = no bound
	MaxTimeLimit  wire.Seconds // 0 = no bound
	RequireLabels []string     // keys that a request must carry
	RequireSealed bool         // only to destinations with encrypt_to
}

// Limits is the table [limits].
type Limits struct {
	MaxCaptures      int // running at once, 1 to 1024
	DefaultTimeLimit wire.Seconds
	MaxTimeLimit     wire.Seconds
	DefaultByteLimit wire.Size
	MaxByteLimit     wire.Size
	MaxPacketRate    uint64 // packets/s for the whole box; 0 = none
	SpoolSize        Share
	MinFreeSpace     Share
	Retention        wire.Seconds // how long finished captures stay
	DropUndelivered  bool         // retention also ends what is not delivered yet
}

// Share is an amount of a file system: a percentage of its size, at most Cap where that
// is not 0, or (Percent 0) a number of bytes.
type Share struct {
	Percent float64
	Bytes   wire.Size
	Cap     wire.Size
}

// Of gives the share in bytes of a file system of total bytes.
func (s Share) Of(total wire.Size) wire.Size {
	if s.Percent == 0 {
		return s.Bytes
	}
	n := wire.Size(float64(total) / 100 * s.Percent)
	if s.Cap > 0 && n > s.Cap {
		return s.Cap
	}
	return n
}

// String gives the form that the configuration file takes.
func (s Share) String() string {
	switch {
	case s.Percent == 0:
		return s.Bytes.String()
	case s.Cap == 0:
		return fmt.Sprintf("%g%%", s.Percent)
	}
	return fmt.Sprintf("%g%%, at most %s", s.Percent, s.Cap)
}

// Kinds of spool.
const (
	SpoolDisk   = "disk"
	SpoolMemory = "memory"
)

// Spool is the table [spool].
type Spool struct {
	Kind string // SpoolDisk or SpoolMemory
	Dir  string // absolute path; "" = see Config.SpoolDir
}

// SpoolDir is where segments lie: [spool] dir, or state_dir/spool.
func (c *Config) SpoolDir() string {
	if c.Spool.Dir != "" {
		return c.Spool.Dir
	}
	return filepath.Join(c.Daemon.StateDir, "spool")
}

// Ring is the table [ring]. A 0 means that the daemon chooses by the box: size and
// receive buffer together at most 5 % of memory, 64 MiB to 512 MiB; a group for each
// CPU, at most 16.
type Ring struct {
	Size          wire.Size
	ReceiveBuffer wire.Size
	Groups        int // 0 to 16
}

// minRing is the least that Ring's sizes may be, in bytes.
const minRing = 16 << 20

// Kinds of destination and the values of a profile's enumerations.
const (
	TypeSFTP = "sftp"
	TypeS3   = "s3"

	VerifyReadback = "readback"
	VerifyChecksum = "checksum"

	ProbeFull  = "full"
	ProbeWrite = "write"
	ProbeNone  = "none"

	CompressionNone = "none"
	CompressionZstd = "zstd"

	CredentialsEnv         = "env"
	CredentialsFile        = "file"
	CredentialsInstance    = "instance"
	CredentialsWebIdentity = "web-identity"
)

// DefaultPathTemplate is where a file lands at a destination unless its profile says
// otherwise.
const DefaultPathTemplate = "{date}/{host}/{id}/{file}"

// Destination is one delivery profile: a table [destination.NAME], or destinations.d/NAME.toml.
type Destination struct {
	Name string
	File string // where it is defined, for error texts
	Line int
	Type string // TypeSFTP or TypeS3

	// Only for sftp.
	Address      string // host:port
	User         string
	PrivateKey   string // path of the key, or credential:NAME; or
	PasswordFile string // the same of a file holding the password
	KnownHosts   string // the same of a known_hosts file; or
	HostKey      string // "ssh-ed25519 AAAA…", or "SHA256:…" of the server's key

	// Only for s3.
	Endpoint            string // http(s)://host[:port]
	Region              string
	Bucket              string
	PathStyle           *bool  // nil = by the endpoint: virtual host at amazonaws.com, path style elsewhere
	CAFile              string // the same of PEM certificates; "" = the system's
	AccessKeyID         string // not a secret
	SecretAccessKeyFile string // as PrivateKey
	Credentials         string // where keys come from otherwise: env, file, instance, web-identity
	SSE                 string // "", "AES256", "aws:kms" or "aws:kms:KEY"
	ObjectLockDays      int    // 0 = none

	// Either kind.
	Path          string     // template with {host} {id} {name} {file} {date} {time} {label.KEY}
	Verify        string     // VerifyReadback or VerifyChecksum
	Probe         string     // ProbeFull, ProbeWrite or ProbeNone
	Compression   string     // CompressionNone or CompressionZstd
	EncryptTo     []string   // age or SSH public keys; empty = not sealed
	SegmentSize   wire.Size  // 0 = the request's or the daemon's
	Concurrency   int        // files under way at once, 1 to 16
	Bandwidth     wire.Size  // bytes per second; 0 = no bound
	SourceAddress netip.Addr // the zero Addr = the system's choice
	BindDevice    string     // "" = none
}

// Sealed says whether files are encrypted before they leave the box.
func (d Destination) Sealed() bool { return len(d.EncryptTo) > 0 }

// URL says where the profile leads, without a secret or the path's template filled in.
func (d Destination) URL() string {
	if d.Type == TypeS3 {
		return "s3://" + d.Bucket + "/" + strings.TrimPrefix(d.Path, "/")
	}
	return "sftp://" + d.User + "@" + d.Address + "/" + strings.TrimPrefix(d.Path, "/")
}

// Default is the configuration without any file.
func Default() *Config {
	return &Config{
		Daemon: Daemon{
			Socket:   wire.DefaultSocket,
			StateDir: "/var/lib/capd",
			LogLevel: slog.LevelInfo,
		},
		Access: Access{ControlGroup: "capd", ViewGroup: "capd-view", Groups: map[string]GroupLimits{}},
		Limits: Limits{
			MaxCaptures:      16,
			DefaultTimeLimit: 300e9,
			MaxTimeLimit:     24 * 3600e9,
			DefaultByteLimit: 1e9,
			MaxByteLimit:     100e9,
			MaxPacketRate:    100000,
			SpoolSize:        Share{Percent: 10, Cap: 10e9},
			MinFreeSpace:     Share{Percent: 5},
			Retention:        7 * 24 * 3600e9,
		},
		Spool:        Spool{Kind: SpoolDisk},
		Destinations: map[string]Destination{},
	}
}

// Path chooses the configuration file: the flag, else CAPD_CONFIG, else DefaultPath.
func Path(flag string, getenv func(string) string) string {
	for _, path := range []string{flag, getenv("CAPD_CONFIG")} {
		if path != "" {
			return path
		}
	}
	return DefaultPath
}

// Load reads the file at path and destinations.d beside it. Only at DefaultPath may the
// file be missing: then the defaults hold. Every mistake found is in the error, each an
// *Error, file by file and line by line.
func Load(path string) (*Config, error) { return load(path, path == DefaultPath) }

// load is Load of a file that may be missing or has to be there.
func load(path string, mayMiss bool) (*Config, error) {
	text, err := readFile(path)
	missing := errors.Is(err, fs.ErrNotExist) && mayMiss
	if err != nil && !missing {
		return nil, err
	}
	c := Default()
	main := newReader(path, text)
	main.config(c)
	if !missing {
		c.Files = append(c.Files, path)
	}
	dir := filepath.Join(filepath.Dir(path), DestinationsDir)
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	var errs []error
	for _, entry := range entries {
		name, isProfile := strings.CutSuffix(entry.Name(), ".toml")
		file := filepath.Join(dir, entry.Name())
		if strings.HasPrefix(name, ".") {
			continue
		}
		if !isProfile {
			if !entry.IsDir() && !leaving(name) {
				c.Ignored = append(c.Ignored, file)
			}
			continue
		}
		text, err := readFile(file)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		r := newReader(file, text)
		r.profile(c, name)
		errs = append(errs, r.mistakes()...)
		c.Files = append(c.Files, file)
	}
	main.groupDestinations(c)
	if errs = append(main.mistakes(), errs...); len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return c, nil
}

// leaving tells by its name that a file beside the profiles is meant to be none: one that was
// put aside or left over by an editor or a package manager (soc.toml.bak, soc.toml~), a README.
func leaving(name string) bool {
	return strings.Contains(name, ".toml") || strings.HasPrefix(name, "README") || strings.HasSuffix(name, "~")
}

// Parse reads the text of a capd.toml; name is what errors call the file. The
// destinations that [access.group.NAME] names are not looked up: they may stand in
// destinations.d, which only Load sees.
func Parse(name string, r io.Reader) (*Config, error) {
	text, err := readAll(name, r)
	if err != nil {
		return nil, err
	}
	c, main := Default(), newReader(name, text)
	main.config(c)
	if errs := main.mistakes(); len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return c, nil
}

// maxFile bounds a configuration file, in bytes.
const maxFile = 1 << 20

// readFile reads a file of at most maxFile bytes.
func readFile(path string) (string, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrPermission) {
		return "", &Error{File: path, Message: "the user that capd runs as may not read it", Hint: "chmod 644 " + path + ": secrets are in files of their own"}
	}
	if err != nil {
		return "", fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	return readAll(path, f)
}

func readAll(name string, r io.Reader) (string, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return "", fmt.Errorf("read configuration %s: %w", name, err)
	}
	if len(text) > maxFile {
		return "", &Error{File: name, Message: "the file is larger than 1 MiB"}
	}
	return string(text), nil
}

// Error is one mistake in the configuration.
type Error struct {
	File    string // or the name of an environment variable
	Line    int    // from 1; 0 = of the file as a whole
	Key     string // dotted, as TOML writes it; "" = none
	Message string // what is wrong, naming the value
	Hint    string // the mend; "" = none
}

// Error implements error: "capd.toml:3: limits.max_captures: … (mend)".
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
	}
	if e.Key != "" {
		b.WriteString(": " + e.Key)
	}
	b.WriteString(": " + e.Message)
	if e.Hint != "" {
		b.WriteString(" (" + e.Hint + ")")
	}
	return b.String()
}

// ApplyEnv lays the environment over the file: CAPD_SOCKET, CAPD_STATE_DIR, CAPD_HOST,
// CAPD_LOG_LEVEL and CAPD_METRICS_LISTEN, where they are not empty.
func (c *Config) ApplyEnv(getenv func(string) string) error {
	var errs []error
	for _, v := range []struct {
		name string
		set  func(any) *mistake
	}{
		{"CAPD_SOCKET", socketPath(&c.Daemon.Socket)},
		{"CAPD_STATE_DIR", absPath(&c.Daemon.StateDir)},
		{"CAPD_HOST", hostLabel(&c.Daemon.Host)},
		{"CAPD_LOG_LEVEL", logLevel(&c.Daemon.LogLevel)},
		{"CAPD_METRICS_LISTEN", offOr(&c.Daemon.MetricsListen, listenAddress)},
	} {
		if value := getenv(v.name); value != "" {
			if m := v.set(value); m != nil {
				errs = append(errs, &Error{File: v.name, Message: m.message, Hint: m.hint})
			}
		}
	}
	return errors.Join(errs...)
}
