package deliver

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
)

// Kinds of destination, and the values of a profile's keys.
const (
	TypeSFTP = "sftp"
	TypeS3   = "s3"

	VerifyReadback = "readback"
	VerifyChecksum = "checksum"

	ProbeFull  = "full"  // write, read back, delete
	ProbeWrite = "write" // write only: for drop boxes and locked buckets
	ProbeNone  = "none"  // up to authentication

	CredentialsEnv         = "env"
	CredentialsFile        = "file"
	CredentialsInstance    = "instance"
	CredentialsWebIdentity = "web-identity"
)

// Profile is one destination as it is needed for a delivery. It holds the paths of
// secrets, never a secret, so that it may travel and be logged. Where a file is named,
// credential:NAME means a systemd credential of the delivery process (Locate).
type Profile struct {
	Name string `json:"name"`
	Type string `json:"type"` // TypeSFTP or TypeS3

	// Only for sftp.
	Address      string `json:"address,omitempty"` // host:port
	User         string `json:"user,omitempty"`
	PrivateKey   string `json:"private_key,omitempty"`   // path of a key file; or
	PasswordFile string `json:"password_file,omitempty"` // path of a file holding the password
	KnownHosts   string `json:"known_hosts,omitempty"`   // path of a known_hosts file; or
	HostKey      string `json:"host_key,omitempty"`      // "ssh-ed25519 AAAA…", or "SHA256:…"

	// Only for s3.
	Endpoint            string `json:"endpoint,omitempty"` // http(s)://host[:port]
	Region              string `json:"region,omitempty"`
	Bucket              string `json:"bucket,omitempty"`
	PathStyle           *bool  `json:"path_style,omitempty"` // nil = virtual host at amazonaws.com, path style elsewhere
	CAFile              string `json:"ca_file,omitempty"`    // path of PEM certificates; "" = the system's
	AccessKeyID         string `json:"access_key_id,omitempty"`
	SecretAccessKeyFile string `json:"secret_access_key_file,omitempty"`
	Credentials         string `json:"credentials,omitempty"` // where keys come from otherwise: a Credentials… constant
	SSE                 string `json:"sse,omitempty"`         // "", "AES256", "aws:kms" or "aws:kms:KEY"
	ObjectLockDays      int    `json:"object_lock_days,omitempty"`

	// Either kind. Empty Path, Verify and Probe, and a Concurrency of 0, mean the default.
	Path          string     `json:"path,omitempty"` // template, see Expand
	Verify        string     `json:"verify,omitempty"`
	Probe         string     `json:"probe,omitempty"`
	Concurrency   int        `json:"concurrency,omitempty"` // files under way at once, 1 to 16; default 2
	Bandwidth     int64      `json:"bandwidth,omitempty"`   // bytes per second each way; 0 = no bound
	SourceAddress netip.Addr `json:"source_address,omitzero"`
	BindDevice    string     `json:"bind_device,omitempty"` // a network device, for management VRFs
}

// DefaultConcurrency is how many files go to one destination at once.
const DefaultConcurrency = 2

// WithDefaults fills in what is empty.
func (p Profile) WithDefaults() Profile {
	if p.Path == "" {
		p.Path = defaultTemplate
	}
	if p.Probe == "" {
		p.Probe = ProbeFull
	}
	if p.Concurrency == 0 {
		p.Concurrency = DefaultConcurrency
	}
	if p.Verify == "" {
		p.Verify = VerifyReadback
		if p.Type == TypeS3 {
			p.Verify = VerifyChecksum
		}
	}
	if p.Type == TypeSFTP {
		if _, _, err := net.SplitHostPort(p.Address); err != nil && p.Address != "" {
			p.Address = net.JoinHostPort(strings.Trim(p.Address, "[]"), "22")
		}
	}
	if p.Type == TypeS3 {
		if p.Endpoint == "" && p.Region != "" {
			p.Endpoint = "https://s3." + p.Region + ".amazonaws.com"
		}
		if p.Region == "" {
			p.Region = "us-east-1" // what servers without regions sign with
		}
	}
	return p
}

// URL says where the profile leads, with the path's template as it is.
func (p Profile) URL() string {
	if p.Type == TypeS3 {
		return "s3://" + p.Bucket + "/" + strings.TrimPrefix(p.Path, "/")
	}
	return "sftp://" + p.User + "@" + p.Address + "/" + strings.TrimPrefix(p.Path, "/")
}

// VirtualHost says whether the bucket's name stands in the host's name.
func (p Profile) VirtualHost() bool {
	if p.PathStyle != nil {
		return !*p.PathStyle
	}
	u, err := url.Parse(p.Endpoint)
	return err == nil && (strings.HasSuffix(u.Hostname(), ".amazonaws.com") || strings.HasSuffix(u.Hostname(), ".amazonaws.com.cn"))
}

// Validate says what is wrong with a profile, naming key and value: a *ProfileError. It
// looks at no file and at no network.
func (p Profile) Validate() error {
	p = p.WithDefaults()
	for _, check := range []func() error{p.validateEither, p.validateKind} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// ProfileError is a key of a profile that makes no sense.
type ProfileError struct {
	Profile, Key, Value, Message string
}

// Error implements error.
func (e *ProfileError) Error() string {
	if e.Value == "" {
		return fmt.Sprintf("destination %s: %s %s", e.Profile, e.Key, e.Message)
	}
	return fmt.Sprintf("destination %s: %s = %q %s", e.Profile, e.Key, e.Value, e.Message)
}

func (p Profile) bad(key string, value any, format string, args ...any) error {
	return &ProfileError{Profile: p.Name, Key: key, Value: fmt.Sprint(value), Message: fmt.Sprintf(format, args...)}
}

func (p Profile) validateEither() error {
	if p.Name == "" {
		return p.bad("name", "", "is missing")
	}
	if err := validateTemplate(p.Path); err != nil {
		return p.bad("path", p.Path, "makes no sense: %v", err)
	}
	if p.Verify != VerifyReadback && p.Verify != VerifyChecksum {
		return p.bad("verify", p.Verify, "is neither readback nor checksum")
	}
	if p.Probe != ProbeFull && p.Probe != ProbeWrite && p.Probe != ProbeNone {
		return p.bad("probe", p.Probe, "is none of full, write, none")
	}
	if p.Concurrency < 1 || p.Concurrency > 16 {
		return p.bad("concurrency", p.Concurrency, "is not within 1 to 16")
	}
	if p.Bandwidth < 0 {
		return p.bad("bandwidth", p.Bandwidth, "is negative")
	}
	if len(p.BindDevice) > 15 || strings.ContainsAny(p.BindDevice, "/ ") {
		return p.bad("bind_device", p.BindDevice, "is not a device's name")
	}
	return nil
}

func (p Profile) validateKind() error {
	switch p.Type {
	case TypeSFTP:
		return p.validateSFTP()
	case TypeS3:
		return p.validateS3()
	case "":
		return p.bad("type", "", "is missing: sftp or s3")
	}
	return p.bad("type", p.Type, "is neither sftp nor s3")
}

// files checks keys that name files.
func (p Profile) files(keys map[string]string) error {
	for key, file := range keys {
		if file != "" && !validFile(file) {
			return p.bad(key, file, "%s", fileMessage)
		}
	}
	return nil
}

func (p Profile) validateSFTP() error {
	host, port, err := net.SplitHostPort(p.Address)
	if err != nil || host == "" || port == "" {
		return p.bad("address", p.Address, "is not host:port")
	}
	if p.User == "" {
		return p.bad("user", "", "is missing")
	}
	if (p.PrivateKey == "") == (p.PasswordFile == "") {
		return p.bad("private_key or password_file", "", "is needed, exactly one of them")
	}
	if (p.KnownHosts == "") == (p.HostKey == "") {
		return p.bad("known_hosts or host_key", "", "is needed, exactly one of them: the server's key is always verified")
	}
	if p.HostKey != "" && !strings.HasPrefix(p.HostKey, "SHA256:") && len(strings.Fields(p.HostKey)) < 2 {
		return p.bad("host_key", p.HostKey, `is neither "ssh-ed25519 AAAA…" nor "SHA256:…"`)
	}
	return p.files(map[string]string{"private_key": p.PrivateKey, "password_file": p.PasswordFile, "known_hosts": p.KnownHosts})
}

func (p Profile) validateS3() error {
	u, err := url.Parse(p.Endpoint)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.User != nil {
		return p.bad("endpoint", p.Endpoint, "is not http(s)://host[:port]")
	}
	if p.Bucket == "" {
		return p.bad("bucket", "", "is missing")
	}
	if strings.HasPrefix(p.Path, "/") {
		return p.bad("path", p.Path, "begins with a slash, keys in a bucket do not")
	}
	switch p.Credentials {
	case "":
		if p.AccessKeyID == "" || p.SecretAccessKeyFile == "" {
			return p.bad("access_key_id and secret_access_key_file", "", "are needed, or credentials")
		}
	case CredentialsEnv, CredentialsFile, CredentialsInstance, CredentialsWebIdentity:
		if p.AccessKeyID != "" || p.SecretAccessKeyFile != "" {
			return p.bad("credentials", p.Credentials, "cannot stand beside access_key_id")
		}
	default:
		return p.bad("credentials", p.Credentials, "is none of env, file, instance, web-identity")
	}
	if key, kms := strings.CutPrefix(p.SSE, "aws:kms:"); p.SSE != "" && p.SSE != "AES256" && p.SSE != "aws:kms" && (!kms || key == "") {
		return p.bad("sse", p.SSE, "is none of AES256, aws:kms, aws:kms:KEY")
	}
	if p.ObjectLockDays < 0 || p.ObjectLockDays > 36500 {
		return p.bad("object_lock_days", p.ObjectLockDays, "is not within 0 to 36500")
	}
	return p.files(map[string]string{"secret_access_key_file": p.SecretAccessKeyFile, "ca_file": p.CAFile})
}
