package config

import (
	"fmt"
	"strings"

	"capd/ctl/wire"

	"github.com/BurntSushi/toml"
)

// rawDestination is a profile as it is written, of either kind.
type rawDestination struct {
	Type *toml.Primitive `toml:"type"`

	Address      *toml.Primitive `toml:"address"`
	User         *toml.Primitive `toml:"user"`
	PrivateKey   *toml.Primitive `toml:"private_key"`
	PasswordFile *toml.Primitive `toml:"password_file"`
	KnownHosts   *toml.Primitive `toml:"known_hosts"`
	HostKey      *toml.Primitive `toml:"host_key"`

	Endpoint            *toml.Primitive `toml:"endpoint"`
	Region              *toml.Primitive `toml:"region"`
	Bucket              *toml.Primitive `toml:"bucket"`
	PathStyle           *toml.Primitive `toml:"path_style"`
	CAFile              *toml.Primitive `toml:"ca_file"`
	AccessKeyID         *toml.Primitive `toml:"access_key_id"`
	SecretAccessKeyFile *toml.Primitive `toml:"secret_access_key_file"`
	Credentials         *toml.Primitive `toml:"credentials"`
	SSE                 *toml.Primitive `toml:"sse"`
	ObjectLockDays      *toml.Primitive `toml:"object_lock_days"`

	Path          *toml.Primitive `toml:"path"`
	Verify        *toml.Primitive `toml:"verify"`
	Probe         *toml.Primitive `toml:"probe"`
	Compression   *toml.Primitive `toml:"compression"`
	EncryptTo     *toml.Primitive `toml:"encrypt_to"`
	SegmentSize   *toml.Primitive `toml:"segment_size"`
	Concurrency   *toml.Primitive `toml:"concurrency"`
	Bandwidth     *toml.Primitive `toml:"bandwidth"`
	SourceAddress *toml.Primitive `toml:"source_address"`
	BindDevice    *toml.Primitive `toml:"bind_device"`
}

// profileReader goes through one profile.
type profileReader struct {
	*reader
	table toml.Key // of the profile; nil = the file's top level
	d     *Destination
}

// destination checks one profile. What it returns is whole only where no mistake was
// found.
func (r *reader) destination(name string, table toml.Key, raw rawDestination) Destination {
	d := Destination{Name: name, File: r.file, Path: DefaultPathTemplate, Probe: ProbeFull, Compression: CompressionNone, Concurrency: 2}
	p := profileReader{r, table, &d}
	if table != nil {
		d.Line = r.lineOf(table)
	}

	if raw.Type == nil {
		p.missing("type", "sftp or s3")
		return d
	}
	before := len(r.errs)
	r.get(raw.Type, oneOf(&d.Type, TypeSFTP, TypeS3))
	if len(r.errs) > before {
		return d
	}

	r.get(raw.Path, pathTemplate(&d))
	r.get(raw.Probe, oneOf(&d.Probe, ProbeFull, ProbeWrite, ProbeNone))
	r.get(raw.Compression, oneOf(&d.Compression, CompressionNone, CompressionZstd))
	r.get(raw.EncryptTo, list(&d.EncryptTo, recipient))
	r.get(raw.SegmentSize, sizeBetween(&d.SegmentSize, wire.MinSegmentSize, wire.MaxSegmentSize))
	r.get(raw.Concurrency, integer(&d.Concurrency, 1, 16))
	r.get(raw.Bandwidth, sizeBetween(&d.Bandwidth, 0, 1<<62))
	r.get(raw.SourceAddress, address(&d.SourceAddress))
	r.get(raw.BindDevice, device(&d.BindDevice))

	onlySFTP := []*toml.Primitive{raw.Address, raw.User, raw.PrivateKey, raw.PasswordFile, raw.KnownHosts, raw.HostKey}
	onlyS3 := []*toml.Primitive{raw.Endpoint, raw.Region, raw.Bucket, raw.PathStyle, raw.CAFile, raw.AccessKeyID,
		raw.SecretAccessKeyFile, raw.Credentials, raw.SSE, raw.ObjectLockDays}
	if d.Type == TypeSFTP {
		d.Verify = VerifyReadback
		p.sftp(raw)
		p.foreign(onlyS3, TypeS3)
	} else {
		d.Verify = VerifyChecksum
		p.s3(raw)
		p.foreign(onlySFTP, TypeSFTP)
	}
	r.get(raw.Verify, oneOf(&d.Verify, VerifyReadback, VerifyChecksum))
	return d
}

// missing notes a key that must be there and is not.
func (p profileReader) missing(key, hint string) {
	p.errs = append(p.errs, &Error{File: p.file, Line: p.d.Line, Key: p.table.String(), Message: key + " is missing", Hint: hint})
}

// foreign refuses keys that only the other kind of profile has.
func (p profileReader) foreign(values []*toml.Primitive, kind string) {
	for _, v := range values {
		if v != nil {
			p.fail(v, &mistake{fmt.Sprintf("only for type = %q", kind), fmt.Sprintf("leave it out; this profile is of type %q", p.d.Type)})
		}
	}
}

// either checks that exactly one of two ways is given.
func (p profileReader) either(a, b *toml.Primitive, names, hint string) {
	switch {
	case a == nil && b == nil:
		p.missing(names, hint)
	case a != nil && b != nil:
		p.fail(b, &mistake{"only one of " + names + " can be in force", "leave one of them out"})
	}
}

func (p profileReader) sftp(raw rawDestination) {
	d := p.d
	p.get(raw.Address, sshAddress(&d.Address))
	p.get(raw.User, text(&d.User, "a user's name", "the name that the server knows", func(s string) bool { return !strings.ContainsAny(s, " :/@") }))
	p.get(raw.PrivateKey, secretPath(&d.PrivateKey))
	p.get(raw.PasswordFile, secretPath(&d.PasswordFile))
	p.get(raw.KnownHosts, filePath(&d.KnownHosts))
	p.get(raw.HostKey, hostKey(&d.HostKey))
	if raw.Address == nil {
		p.missing("address", `the server's host or host:port, such as "files.example.net:22"`)
	}
	if raw.User == nil {
		p.missing("user", "the name to log in with")
	}
	p.either(raw.PrivateKey, raw.PasswordFile, "private_key or password_file", "the path of a key, or of a file that holds the password")
	p.either(raw.KnownHosts, raw.HostKey, "known_hosts or host_key", "the server's key is always verified: ssh-keyscan shows it, compare it with the server's own")
}

func (p profileReader) s3(raw rawDestination) {
	d := p.d
	p.get(raw.Endpoint, endpoint(&d.Endpoint))
	p.get(raw.Region, text(&d.Region, "a region", `write a name such as "eu-central-1"`, wire.ValidName))
	p.get(raw.Bucket, text(&d.Bucket, "a bucket's name", "3 to 63 of a-z, 0-9, dot and dash", validBucket))
	if raw.PathStyle != nil {
		d.PathStyle = new(bool)
		p.get(raw.PathStyle, boolean(d.PathStyle))
	}
	p.get(raw.CAFile, filePath(&d.CAFile))
	p.get(raw.AccessKeyID, text(&d.AccessKeyID, "an access key's id", "the id alone; the secret stands in secret_access_key_file", func(s string) bool { return !strings.ContainsAny(s, " /,") }))
	p.get(raw.SecretAccessKeyFile, secretPath(&d.SecretAccessKeyFile))
	p.get(raw.Credentials, oneOf(&d.Credentials, CredentialsEnv, CredentialsFile, CredentialsInstance, CredentialsWebIdentity))
	p.get(raw.SSE, text(&d.SSE, "a server-side encryption", "write AES256, aws:kms or aws:kms:KEY", func(s string) bool {
		key, kms := strings.CutPrefix(s, "aws:kms:")
		return s == "AES256" || s == "aws:kms" || kms && key != ""
	}))
	p.get(raw.ObjectLockDays, integer(&d.ObjectLockDays, 0, 36500))

	if raw.Bucket == nil {
		p.missing("bucket", "the bucket's name")
	}
	switch {
	case raw.Endpoint == nil && raw.Region == nil:
		p.missing("endpoint", `the server, such as "https://s3.example.net"; for AWS itself region is enough`)
	case raw.Endpoint == nil:
		d.Endpoint = "https://s3." + d.Region + ".amazonaws.com"
	case raw.Region == nil:
		d.Region = "us-east-1" // what servers without regions sign with
	}
	if raw.CAFile != nil && strings.HasPrefix(d.Endpoint, "http://") {
		p.fail(raw.CAFile, &mistake{"the endpoint is not https", "write https:// in endpoint, or leave ca_file out"})
	}
	p.either(raw.AccessKeyID, raw.Credentials, "access_key_id or credentials", "an access key with its secret_access_key_file, or env, file, instance or web-identity")
	switch {
	case raw.AccessKeyID != nil && raw.SecretAccessKeyFile == nil:
		p.missing("secret_access_key_file", "the path of a file that holds the secret of access_key_id")
	case raw.AccessKeyID == nil && raw.SecretAccessKeyFile != nil:
		p.fail(raw.SecretAccessKeyFile, &mistake{"there is no access_key_id that it belongs to", "add access_key_id, or leave it out"})
	}
}

// validBucket follows the naming rules that S3 servers share.
func validBucket(s string) bool {
	return len(s) >= 3 && len(s) <= 63 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789.-") == "" &&
		!strings.Contains(s, "..") && strings.Trim(s[:1]+s[len(s)-1:], ".-") == s[:1]+s[len(s)-1:]
}

// pathTemplate takes the place of a file at the destination.
func pathTemplate(d *Destination) setter {
	return func(v any) *mistake {
		const names = "{host} {id} {name} {file} {date} {time} {label.KEY}"
		s, ok := v.(string)
		if !ok || s == "" || !printable(s) {
			return wrongType(v, "a path template", "write a path with "+names)
		}
		plain := s // the template with its placeholders taken out
		for {
			open := strings.IndexAny(plain, "{}")
			if open < 0 {
				break
			}
			end := strings.IndexByte(plain[open:], '}')
			if plain[open] == '}' || end < 0 {
				return &mistake{quote(s) + " has a brace without its partner", "placeholders are " + names}
			}
			name := plain[open+1 : open+end]
			key, isLabel := strings.CutPrefix(name, "label.")
			if isLabel && !wire.ValidName(key) || !isLabel && !strings.Contains(names, "{"+name+"}") {
				return &mistake{fmt.Sprintf("%s has the unknown placeholder %q", quote(s), "{"+name+"}"), "placeholders are " + names}
			}
			plain = plain[:open] + "x" + plain[open+end+1:]
		}
		for _, folder := range strings.Split(strings.TrimPrefix(plain, "/"), "/") {
			if folder == "" || folder == "." || folder == ".." {
				return &mistake{quote(s) + " has an empty, . or .. folder", "write a plain path that ends in {file}"}
			}
		}
		if last := s[strings.LastIndexByte(s, '/')+1:]; !strings.Contains(last, "{file}") {
			return &mistake{quote(s) + " does not hold {file} after its last slash", "without it the files of a capture would overwrite each other"}
		}
		if d.Type == TypeS3 && strings.HasPrefix(s, "/") {
			return &mistake{quote(s) + " begins with a slash", "keys in a bucket do not: leave it out"}
		}
		d.Path = s
		return nil
	}
}
