package config

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"capd/ctl/wire"
)

const exampleFile = "../../packaging/capd.toml.example"

// cmpAddr lets cmp look into netip.Addr.
var cmpAddr = cmp.Comparer(func(a, b Destination) bool { return reflect.DeepEqual(a, b) })

func readExample(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(exampleFile)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestExampleIsTheDefault(t *testing.T) {
	text := readExample(t)
	for name, text := range map[string]string{
		"as it is":    text,
		"uncommented": regexp.MustCompile(`(?m)^#([a-z_]+ = |\[)`).ReplaceAllString(text, "$1"),
	} {
		c, err := Parse(exampleFile, strings.NewReader(text))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if name == "uncommented" {
			if len(c.Destinations) != 2 || len(c.Access.Groups) != 1 {
				t.Fatalf("the example has %d destinations and %d groups", len(c.Destinations), len(c.Access.Groups))
			}
			for _, d := range c.Destinations {
				want := Destination{Path: DefaultPathTemplate, Compression: CompressionNone, Concurrency: 2, Probe: ProbeFull, Verify: map[string]string{TypeSFTP: VerifyReadback, TypeS3: VerifyChecksum}[d.Type]}
				got := Destination{Path: d.Path, Compression: d.Compression, Concurrency: d.Concurrency, Probe: d.Probe, Verify: d.Verify, Bandwidth: d.Bandwidth, ObjectLockDays: d.ObjectLockDays}
				if diff := cmp.Diff(want, got, cmpAddr); diff != "" {
					t.Errorf("%s: not the defaults:\n%s", d.Name, diff)
				}
			}
			clear(c.Destinations)
			clear(c.Access.Groups)
		}
		if diff := cmp.Diff(Default(), c, cmpAddr); diff != "" {
			t.Errorf("%s: not the defaults:\n%s", name, diff)
		}
	}
}

// TestExampleIsComplete looks for every key of the schema in the example.
func TestExampleIsComplete(t *testing.T) {
	text := readExample(t)
	var walk func(reflect.Type, string)
	walk = func(rt reflect.Type, path string) {
		switch rt.Kind() {
		case reflect.Struct:
			for name, ft := range tomlNames(rt) {
				walk(ft, strings.TrimPrefix(path+"."+name, "."))
			}
		case reflect.Map:
			walk(rt.Elem(), path+".NAME")
		default:
			key := path[strings.LastIndexByte(path, '.')+1:]
			if !regexp.MustCompile(`(?m)^# ?` + key + ` = `).MatchString(text) {
				t.Errorf("the example lacks %s", path)
			}
		}
	}
	walk(reflect.TypeFor[rawConfig](), "")
}

func TestParse(t *testing.T) {
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJoXSa3zrgDzaWsq5tQRYnWCdhNSCi3sVZY2kfjbkFVy"
	c, err := Parse("capd.toml", strings.NewReader(`
[daemon]
host = "edge-1"
log_level = "debug"
metrics_listen = "127.0.0.1:9469"
[access]
view_group = ""
group.noc = { destinations = [], max_time_limit = 90.5, require_sealed = true }
[limits]
max_time_limit = "1m"
spool_size = "12.5 %, at most 2 GiB"
min_free_space = 1000
retention = "1d12h"
max_packet_rate = 0
[ring]
size = "64MiB"
groups = 2
[destination.soc]
type = "sftp"
address = "[2001:db8::1]"
user = "capd"
password_file = "/etc/capd//pw"
host_key = "`+key+`"
source_address = "192.0.2.1"
encrypt_to = ["`+key+`"]
path = "/srv/{label.ticket}/{name}-{file}"
[destination.aws]
type = "s3"
region = "eu-central-1"
bucket = "b-1"
credentials = "instance"
path_style = false
`))
	if err != nil {
		t.Fatal(err)
	}
	for _, check := range []struct {
		what      string
		got, want any
	}{
		{"log level", c.Daemon.LogLevel, slog.LevelDebug},
		{"metrics_listen", c.Daemon.MetricsListen, "127.0.0.1:9469"},
		{"view group", c.Access.ViewGroup, ""},
		{"no destinations", c.Access.Groups["noc"].Destinations, []string{}},
		{"any interface", c.Access.Groups["noc"].Interfaces, []string(nil)},
		{"group's time", c.Access.Groups["noc"].MaxTimeLimit, wire.Seconds(90.5e9)},
		{"default follows the maximum", c.Limits.DefaultTimeLimit, wire.Seconds(60e9)},
		{"spool size", c.Limits.SpoolSize, Share{Percent: 12.5, Cap: 2 << 30}},
		{"free", c.Limits.MinFreeSpace, Share{Bytes: 1000}},
		{"retention", c.Limits.Retention, wire.Seconds(36 * 3600e9)},
		{"ring", c.Ring, Ring{Size: 64 << 20, Groups: 2}},
		{"address", c.Destinations["soc"].Address, "[2001:db8::1]:22"},
		{"password file", c.Destinations["soc"].PasswordFile, "/etc/capd/pw"},
		{"source", c.Destinations["soc"].SourceAddress.String(), "192.0.2.1"},
		{"sealed", c.Destinations["soc"].Sealed(), true},
		{"line", c.Destinations["soc"].Line, 18},
		{"url", c.Destinations["soc"].URL(), "sftp://capd@[2001:db8::1]:22/srv/{label.ticket}/{name}-{file}"},
		{"endpoint", c.Destinations["aws"].Endpoint, "https://s3.eu-central-1.amazonaws.com"},
		{"path style", *c.Destinations["aws"].PathStyle, false},
		{"s3 url", c.Destinations["aws"].URL(), "s3://b-1/{date}/{host}/{id}/{file}"},
		{"spool dir", c.SpoolDir(), "/var/lib/capd/spool"},
	} {
		if !reflect.DeepEqual(check.got, check.want) {
			t.Errorf("%s: %#v, want %#v", check.what, check.got, check.want)
		}
	}
}

// write makes a configuration folder of files.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const profile = `type = "sftp"
address = "h"
user = "u"
private_key = "/k"
known_hosts = "/n"
`

func TestLoad(t *testing.T) {
	dir := write(t, map[string]string{
		"capd.toml":                      "[access.group.noc]\ndestinations = ['soc']\n[destination.one]\n" + profile,
		"destinations.d/soc.toml":        profile,
		"destinations.d/soc.toml~":       "not read",
		"destinations.d/.soc.toml":       "not read",
		"destinations.d/soc.toml.rpmnew": "not read",
		"destinations.d/README.md":       "not read",
		"destinations.d/lab.conf":        "not read, and told of",
		"destinations.d/x":               "not read, and told of",
	})
	c, err := Load(filepath.Join(dir, "capd.toml"))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Destinations) != 2 || c.Destinations["soc"].Address != "h:22" || c.Destinations["soc"].Name != "soc" {
		t.Errorf("destinations: %+v", c.Destinations)
	}
	if want := []string{filepath.Join(dir, "capd.toml"), filepath.Join(dir, "destinations.d/soc.toml")}; !reflect.DeepEqual(c.Files, want) {
		t.Errorf("files %v, want %v", c.Files, want)
	}
	if want := []string{filepath.Join(dir, "destinations.d/lab.conf"), filepath.Join(dir, "destinations.d/x")}; !reflect.DeepEqual(c.Ignored, want) {
		t.Errorf("ignored %v, want %v", c.Ignored, want)
	}
}

func TestLoadMistakes(t *testing.T) {
	dir := write(t, map[string]string{
		"capd.toml":                "[access.group.noc]\ndestinations = ['sco']\n[destination.soc]\n" + profile,
		"destinations.d/soc.toml":  profile,
		"destinations.d/two.toml":  "adddress = 'h'\ntype = 'sftp'\n" + strings.ReplaceAll(profile, "type = \"sftp\"\n", ""),
		"destinations.d/x y.toml":  profile,
		"destinations.d/zero.toml": "",
	})
	_, err := Load(filepath.Join(dir, "capd.toml"))
	if err == nil {
		t.Fatal("taken")
	}
	want := `capd.toml:2: access.group.noc.destinations: no destination is called "sco" (did you mean "soc"?)
destinations.d/soc.toml: destination "soc" is defined here and in capd.toml:3 (remove or rename one of the two)
destinations.d/two.toml:1: adddress: unknown key (did you mean "address"?)
destinations.d/x y.toml: "x y" is not a destination's name (1 to 64 of a-z, A-Z, 0-9, dot, dash and underscore, beginning with a letter or digit)
destinations.d/zero.toml: type is missing (sftp or s3)`
	if got := strings.ReplaceAll(err.Error(), dir+"/", ""); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestLoadMissing(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "capd.toml")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that was named and is missing: %v", err)
	}
	c, err := load(filepath.Join(t.TempDir(), "capd.toml"), true) // as at DefaultPath
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), c); diff != "" {
		t.Errorf("no file at all is not the default:\n%s", diff)
	}
}

func TestEnvironment(t *testing.T) {
	env := func(vars map[string]string) func(string) string { return func(k string) string { return vars[k] } }
	c := Default()
	if err := c.ApplyEnv(env(map[string]string{"CAPD_SOCKET": "/x/s", "CAPD_STATE_DIR": "/x", "CAPD_LOG_LEVEL": "warn", "CAPD_HOST": "h", "CAPD_METRICS_LISTEN": "127.0.0.1:9470"})); err != nil {
		t.Fatal(err)
	}
	if c.Daemon.Socket != "/x/s" || c.SpoolDir() != "/x/spool" || c.Daemon.LogLevel != slog.LevelWarn || c.Daemon.Host != "h" || c.Daemon.MetricsListen != "127.0.0.1:9470" {
		t.Errorf("%+v", c.Daemon)
	}
	err := Default().ApplyEnv(env(map[string]string{"CAPD_SOCKET": "run", "CAPD_LOG_LEVEL": "loud"}))
	if want := "CAPD_SOCKET: \"run\" is not an absolute path (write a path that begins with \"/\")\nCAPD_LOG_LEVEL: \"loud\" is not a log level (debug, info, warn or error)"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	for _, p := range []struct{ flag, env, want string }{{"", "", DefaultPath}, {"", "/e", "/e"}, {"/f", "/e", "/f"}} {
		if got := Path(p.flag, env(map[string]string{"CAPD_CONFIG": p.env})); got != p.want {
			t.Errorf("Path(%q) with %q: %q", p.flag, p.env, got)
		}
	}
}

func TestShare(t *testing.T) {
	for _, c := range []struct {
		share Share
		total wire.Size
		want  wire.Size
		text  string
	}{
		{Share{Percent: 10, Cap: 10e9}, 50e9, 5e9, "10%, at most 10gb"},
		{Share{Percent: 10, Cap: 10e9}, 500e9, 10e9, "10%, at most 10gb"},
		{Share{Percent: 5}, 500e9, 25e9, "5%"},
		{Share{Bytes: 4096}, 500e9, 4096, "4KiB"},
		{Share{}, 500e9, 0, "0b"},
	} {
		if got := c.share.Of(c.total); got != c.want {
			t.Errorf("%v of %d is %d, want %d", c.share, c.total, got, c.want)
		}
		if c.share.String() != c.text {
			t.Errorf("%+v is written %s, want %s", c.share, c.share, c.text)
		}
		var back Share
		if m := share(&back)(c.text); m != nil || back != c.share {
			t.Errorf("%s is read as %+v, %v", c.text, back, m)
		}
	}
}

func TestSystemdCredentialsStandWhereFilesDo(t *testing.T) {
	c, err := Parse("capd.toml", strings.NewReader("[destination.soc]\ntype = 'sftp'\naddress = 'h'\nuser = 'u'\nprivate_key = 'credential:soc-key'\nknown_hosts = 'credential:soc-hosts'\n"))
	if err != nil {
		t.Fatal(err)
	}
	if d := c.Destinations["soc"]; d.PrivateKey != "credential:soc-key" || d.KnownHosts != "credential:soc-hosts" {
		t.Errorf("got %+v", d)
	}
}
