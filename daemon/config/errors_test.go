package config

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

// TestMistakes is the list of what people get wrong and what they are told.
func TestMistakes(t *testing.T) {
	const sftp = "[destination.soc]\n" + profile
	const s3 = "[destination.ev]\ntype = 's3'\nregion = 'r'\nbucket = 'captures'\ncredentials = 'env'\n"
	for _, c := range []struct{ text, want string }{
		// Keys and tables.
		{"[daemon]\nsokcet = '/x'", `capd.toml:2: daemon.sokcet: unknown key (did you mean "socket"?)`},
		{"[daemon]\nSocket = '/x'", `capd.toml:2: daemon.Socket: unknown key (did you mean "socket"?)`},
		{"[deamon]\nsocket = '/x'\nhost = 'x'", `capd.toml:1: deamon: unknown table (did you mean "daemon"?)`},
		{"socket = '/x'", `capd.toml:1: socket: unknown key (valid here: access, daemon, destination, limits, ring, spool)`},
		{"a.b.c = 1", `capd.toml:1: a: unknown table (valid here: access, daemon, destination, limits, ring, spool)`},
		{"daemon = 5", `capd.toml:1: daemon: this is a table, not a value (write [daemon] and its keys below)`},
		{"[[daemon]]\nsocket = '/x'", `capd.toml:1: daemon: this is a table, not a value (write [daemon] and its keys below)`},
		{"[destination]\nsoc = 'sftp'", `capd.toml:2: destination.soc: this is a table, not a value (write [destination.soc] and its keys below)`},
		{"[daemon\n", `capd.toml:2: not TOML: expected '.' or ']' to end table name, but got '\n' instead`},
		{"[daemon]\nhost = 'a'\nhost = 'b'", `capd.toml:3: daemon.host: not TOML: Key 'daemon.host' has already been defined.`},
		{"[daemon]\nhost = edge", `capd.toml:2: daemon.host: not TOML: expected value but found "edge" instead (text, also a size or a duration, stands in quotes: "7d")`},
		{"[limits]\nretention = 7d", `capd.toml:2: limits: not TOML: expected a top-level item to end with a newline, comment, or EOF, but got 'd' instead (text, also a size or a duration, stands in quotes: "7d")`},

		// Values.
		{"[daemon]\nsocket = 'run/capd.sock'", `capd.toml:2: daemon.socket: "run/capd.sock" is not an absolute path (write a path that begins with "/")`},
		{"[daemon]\nsocket = '/" + strings.Repeat("x", 107) + "'", `capd.toml:2: daemon.socket: "/` + strings.Repeat("x", 75) + ` ..." is 108 bytes long (a socket's path has at most 107)`},
		{"[daemon]\nhost = 'my host'", `capd.toml:2: daemon.host: "my host" is not a host's name (1 to 64 of a-z, A-Z, 0-9, dot, dash and underscore, beginning with a letter or digit)`},
		{"[daemon]\nlog_level = 'verbose'", `capd.toml:2: daemon.log_level: "verbose" is not a log level (debug, info, warn or error)`},
		{"[daemon]\nmetrics_listen = 9469", `capd.toml:2: daemon.metrics_listen: 9469 is not an address to listen at (write host:port, such as "127.0.0.1:9469", or "off")`},
		{"[limits]\n\nmax_captures = 'lots'", `capd.toml:3: limits.max_captures: "lots" is not a whole number (write a whole number from 1 to 1024)`},
		{"[limits]\nmax_captures = 0", `capd.toml:2: limits.max_captures: 0 is out of range (write a whole number from 1 to 1024)`},
		{"[limits]\nmax_time_limit = '5 minutes'", `capd.toml:2: limits.max_time_limit: "5 minutes" is not a duration (write seconds as a number, or 90s, 5m, 1h30m, 7d)`},
		{"[limits]\nretention = '7d5'", `capd.toml:2: limits.retention: "7d5" is not a duration (write seconds as a number, or 90s, 5m, 1h30m, 7d)`},
		{"[limits]\nretention = true", `capd.toml:2: limits.retention: true is not a duration (write seconds as a number, or 90s, 5m, 1h30m, 7d)`},
		{"[limits]\nmax_byte_limit = '10 apples'", `capd.toml:2: limits.max_byte_limit: "10 apples" is not a size (write bytes as a number, or with b, kb, mb, gb, KiB, MiB or GiB (10mb))`},
		{"[limits]\nmax_byte_limit = '1kb'", `capd.toml:2: limits.max_byte_limit: "1kb" is out of range (write 4KiB to 4294967296GiB)`}, // as of a request
		{"[limits]\nmax_byte_limit = -1", `capd.toml:2: limits.max_byte_limit: -1 is not a size (write bytes as a number, or with b, kb, mb, gb, KiB, MiB or GiB (10mb))`},
		{"[limits]\nspool_size = '110%'", `capd.toml:2: limits.spool_size: "110%" is out of range (write 0% to 100%)`},
		{"[limits]\nspool_size = '10% at least 5gb'", `capd.toml:2: limits.spool_size: "10% at least 5gb" is not a share of a file system (write a percentage of the file system ("10%"), one with a cap ("10%, at most 10gb"), or a size ("20gb"))`},
		{"[limits]\nspool_size = 0", `capd.toml:2: limits.spool_size: a spool of 0 bytes holds nothing (give a size, or set [spool] kind = "memory")`},
		{"[limits]\nspool_size = {a = 1}", `capd.toml:2: limits.spool_size: a table is not a share of a file system (write a percentage of the file system ("10%"), one with a cap ("10%, at most 10gb"), or a size ("20gb"))`},
		{"[limits]\ndrop_undelivered = 'yes'", `capd.toml:2: limits.drop_undelivered: "yes" is not true or false (write true or false, without quotes)`},
		{"[ring]\ngroups = 17", `capd.toml:2: ring.groups: 17 is out of range (write a whole number from 1 to 16, or "auto")`},
		{"[ring]\nsize = '1kb'", `capd.toml:2: ring.size: "1kb" is out of range (write 16MiB to 16GiB, or "auto")`},
		{"[access]\ncontrol_group = 'a b'", `capd.toml:2: access.control_group: "a b" is not a group's name (a name of /etc/group, or "" for nobody)`},
		{"[access.group.noc]\ninterfaces = 'eth0'", `capd.toml:2: access.group.noc.interfaces: "eth0" is not a list (write ["one", "two"])`},
		{"[access.group.noc]\ninterfaces = ['eth0', 5]", `capd.toml:2: access.group.noc.interfaces: 5 is not a string (write ["one", "two"])`},
		{"[access.group.noc]\nmax_snaplen = 20", `capd.toml:2: access.group.noc.max_snaplen: 20 is less than any capture keeps of a packet (write 34 or more, or 0 for no bound)`},
		{"[access.group.noc]\ninterfaces = ['eth*0']", `capd.toml:2: access.group.noc.interfaces: "eth*0" is not an interface (1 to 15 characters without space, slash or colon; * at the end for a prefix)`},
		{"[access.group.noc]\nrequire_labels = ['a', 'a']", `capd.toml:2: access.group.noc.require_labels: "a" stands here twice (leave one out)`},
		{"[destination.'a b']\ntype = 'sftp'", `capd.toml:1: destination."a b": "a b" is not a name (1 to 64 of a-z, A-Z, 0-9, dot, dash and underscore, beginning with a letter or digit)`},

		// Keys that do not go together.
		{"[limits]\nmax_time_limit = '1m'\ndefault_time_limit = 300", `capd.toml:3: limits.default_time_limit: 5m is more than max_time_limit, which is 1m (lower the one or raise the other)`},
		{"[limits]\ndefault_byte_limit = '200gb'", `capd.toml:2: limits.default_byte_limit: 200gb is more than max_byte_limit, which is 100gb (lower the one or raise the other)`},
		{"[limits]\nspool_size = '60%'\nmin_free_space = '50%'", `capd.toml:2: limits.spool_size: spool_size (60%) and min_free_space (50%) are more than the whole file system (lower one of them)`},
		{"[spool]\nkind = 'memory'\ndir = '/x'", `capd.toml:3: spool.dir: only for kind = "disk" (leave one of the two out)`},

		// Destinations.
		{"[destination.soc]\nuser = 'u'", `capd.toml:1: destination.soc: type is missing (sftp or s3)`},
		{"[destination.soc]\ntype = 'ftp'", `capd.toml:2: destination.soc.type: "ftp" is not one of the values (write sftp or s3)`},
		{sftp + "bucket = 'captures'", `capd.toml:7: destination.soc.bucket: only for type = "s3" (leave it out; this profile is of type "sftp")`},
		{s3 + "user = 'u'", `capd.toml:6: destination.ev.user: only for type = "sftp" (leave it out; this profile is of type "s3")`},
		{sftp + "password_file = '/p'", `capd.toml:7: destination.soc.password_file: only one of private_key or password_file can be in force (leave one of them out)`},
		{sftp + "host_key = 'SHA256:rXbJq7n+BpQwzmLG1eqbEnLnPWfJN8xNNmmIkTrpwVg'", `capd.toml:7: destination.soc.host_key: only one of known_hosts or host_key can be in force (leave one of them out)`},
		{sftp + "verify = 'hope'", `capd.toml:7: destination.soc.verify: "hope" is not one of the values (write readback or checksum)`},
		{sftp + "encrypt_to = ['AGE-SECRET-KEY-1QQQQ']", `capd.toml:7: destination.soc.encrypt_to: this is a secret key, which must not be on this box (write its public key, "age1..."; and make a new pair)`},
		{sftp + "encrypt_to = ['bob']", `capd.toml:7: destination.soc.encrypt_to: "bob" is not a public key (write "age1..." or "ssh-ed25519 AAAA...")`},
		{sftp + "concurrency = 0", `capd.toml:7: destination.soc.concurrency: 0 is out of range (write a whole number from 1 to 16)`},
		{sftp + "source_address = 'eth0'", `capd.toml:7: destination.soc.source_address: "eth0" is not an IP address (write one IPv4 or IPv6 address)`},
		{sftp + "path = '{date}/{id}'", `capd.toml:7: destination.soc.path: "{date}/{id}" does not hold {file} after its last slash (without it the files of a capture would overwrite each other)`},
		{sftp + "path = '../{file}'", `capd.toml:7: destination.soc.path: "../{file}" has an empty, . or .. folder (write a plain path that ends in {file})`},
		{sftp + "path = '{hots}/{file}'", `capd.toml:7: destination.soc.path: "{hots}/{file}" has the unknown placeholder "{hots}" (placeholders are {host} {id} {name} {file} {date} {time} {label.KEY})`},
		{sftp + "path = '{file'", `capd.toml:7: destination.soc.path: "{file" has a brace without its partner (placeholders are {host} {id} {name} {file} {date} {time} {label.KEY})`},
		{s3 + "path = '/{file}'", `capd.toml:6: destination.ev.path: "/{file}" begins with a slash (keys in a bucket do not: leave it out)`},
		{s3 + "endpoint = 'https://h/bucket'", `capd.toml:6: destination.ev.endpoint: "https://h/bucket" is not an S3 endpoint (write "https://host" or "https://host:port", without a path)`},
		{s3 + "endpoint = 'http://h'\nca_file = '/c'", `capd.toml:7: destination.ev.ca_file: the endpoint is not https (write https:// in endpoint, or leave ca_file out)`},
		{s3 + "access_key_id = 'A'\nsecret_access_key_file = '/s'", `capd.toml:5: destination.ev.credentials: only one of access_key_id or credentials can be in force (leave one of them out)`},
		{s3 + "secret_access_key_file = '/s'", `capd.toml:6: destination.ev.secret_access_key_file: there is no access_key_id that it belongs to (add access_key_id, or leave it out)`},
		{"[destination.ev]\ntype = 's3'\nbucket = 'captures'\naccess_key_id = 'A'", `capd.toml:1: destination.ev: endpoint is missing (the server, such as "https://s3.example.net"; for AWS itself region is enough)
capd.toml:1: destination.ev: secret_access_key_file is missing (the path of a file that holds the secret of access_key_id)`},
		{s3 + "bucket = 'UPPER'", `capd.toml:6: destination.ev.bucket: not TOML: Key 'destination.ev.bucket' has already been defined.`},
		{strings.Replace(s3, "captures", "UPPER", 1), `capd.toml:4: destination.ev.bucket: "UPPER" is not a bucket's name (3 to 63 of a-z, 0-9, dot and dash)`},
		{s3 + "sse = 'rot13'", `capd.toml:6: destination.ev.sse: "rot13" is not a server-side encryption (write AES256, aws:kms or aws:kms:KEY)`},
		{strings.Replace(sftp, `"/k"`, `"-----BEGIN OPENSSH PRIVATE KEY-----"`, 1), `capd.toml:5: destination.soc.private_key: this is not an absolute path (write the path of the file that holds it ("/etc/capd/..."), or "credential:NAME")`},
		{sftp + "segment_size = '2gb'", `capd.toml:7: destination.soc.segment_size: "2gb" is out of range (write 64KiB to 1gb)`}, // as of a request
		{strings.Replace(sftp, `"/k"`, `"credential:../k"`, 1), `capd.toml:5: destination.soc.private_key: this is not an absolute path (write the path of the file that holds it ("/etc/capd/..."), or "credential:NAME")`},

		// All mistakes at once, line by line.
		{"[limits]\nretention = 'x'\n[daemon]\nhots = 'a'\nlog_level = 1", `capd.toml:2: limits.retention: "x" is not a duration (write seconds as a number, or 90s, 5m, 1h30m, 7d)
capd.toml:4: daemon.hots: unknown key (did you mean "host"?)
capd.toml:5: daemon.log_level: 1 is not a log level (debug, info, warn or error)`},
	} {
		_, err := Parse("capd.toml", strings.NewReader(c.text))
		if err == nil {
			t.Errorf("%q is taken; want %s", c.text, c.want)
		} else if err.Error() != c.want {
			t.Errorf("%q\n got %s\nwant %s", c.text, err, c.want)
		}
	}
	if _, err := Parse("capd.toml", strings.NewReader(strings.Repeat("#", maxFile+1))); err == nil || err.Error() != "capd.toml: the file is larger than 1 MiB" {
		t.Errorf("a large file: %v", err)
	}
}

// FuzzParse holds that no text makes Parse panic, that every mistake is an *Error with
// the file's name, and that what passes is within bounds.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"", "[daemon]\nsocket = '/x'\n", "[destination.soc]\n" + profile, "a.b = {c = [1, 2.5, 2020-01-01]}", "[[x]]\n[[x.y]]\n", "'' = 1\n[limits]\nspool_size='1%'",
		"[destination.e]\ntype='s3'\nregion='r'\nbucket='bbb'\ncredentials='env'\nencrypt_to=[]\npath='{label.a}/{file}'", "[access]\ngroup.x.interfaces=['a*']",
		"[limits]\nretention='7d'\nmax_time_limit=1e300", "[ring]\nsize='auto'",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse("f", strings.NewReader(text))
		if err == nil {
			l := c.Limits
			if l.DefaultTimeLimit <= 0 || l.DefaultTimeLimit > l.MaxTimeLimit || l.DefaultByteLimit <= 0 || l.DefaultByteLimit > l.MaxByteLimit || l.SpoolSize == (Share{}) || l.Retention < 0 {
				t.Errorf("limits: %+v", l)
			}
			for name, d := range c.Destinations {
				if d.Name != name || d.Type == "" || d.Path == "" || d.Verify == "" {
					t.Errorf("destination: %+v", d)
				}
			}
			again, err := Parse("f", strings.NewReader(text))
			if err != nil || !reflect.DeepEqual(c, again) {
				t.Errorf("read twice: %v", err)
			}
			return
		}
		var errs interface{ Unwrap() []error }
		if !errors.As(err, &errs) {
			t.Fatalf("%T", err)
		}
		for _, err := range errs.Unwrap() {
			var e *Error
			if !errors.As(err, &e) || e.File != "f" || e.Message == "" {
				t.Errorf("%#v", err)
			}
		}
	})
}
