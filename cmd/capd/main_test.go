package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"capd/testbed"
)

func TestMain(m *testing.M) { os.Exit(testbed.Alone(m)) }

func TestCommandLine(t *testing.T) {
	dir := t.TempDir()
	bad := dir + "/bad.toml"
	if err := os.WriteFile(bad, []byte("[limits]\nmax_capturs = 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := dir + "/good.toml"
	if err := os.WriteFile(good, []byte("[limits]\nmax_captures = 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	small := dir + "/small.toml"
	if err := os.WriteFile(small, []byte("[ring]\nsize = '16MiB'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args   string
		code   int
		stdout string
		stderr []string
	}{
		{"--version", 0, "capd devel\n", nil},
		{"--help", 0, usage, nil},
		{"--check-config --config " + good, 0, "the configuration is good\n", nil},
		{"--check-config --config " + bad, 78, "", []string{"bad.toml:2", "max_capturs", "max_captures"}},
		{"--check-config --config " + small, 78, "", []string{"ring.size: 16MiB is too little for limits.max_captures = 16: write at least 18MiB, or fewer captures"}},
		{"--config " + bad, 78, "", []string{"bad.toml:2"}},
		{"--config " + dir + "/none.toml", 78, "", []string{"none.toml"}},
		{"start", 2, "", []string{`unexpected argument "start"`, "see capd --help"}},
		{"deliver now", 2, "", []string{`unexpected argument "now"`, "capd deliver --help"}},
		{"deliver --listen /run/x --peer-user capd --peer-uid 7", 2, "", []string{"--peer-user capd and --peer-uid 7: give one of them"}},
		{"deliver --listen /run/x --peer-uid -7", 2, "", []string{"--peer-uid -7 is no user id"}},
		{"deliver --peer-uid 7", 2, "", []string{"need --listen SOCKET"}},
		{"deliver --nonsense", 2, "", []string{"-nonsense"}},
		{"deliver --help", 0, deliverUsage, nil},
		{"--verbose", 2, "", []string{"-verbose", "see capd --help"}},
	} {
		t.Run(c.args, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if code := run(strings.Fields(c.args), &stdout, &stderr); code != c.code {
				t.Errorf("exit code %d, want %d: %s", code, c.code, &stderr)
			}
			if stdout.String() != c.stdout {
				t.Errorf("stdout %q, want %q", &stdout, c.stdout)
			}
			for _, want := range c.stderr {
				if !strings.Contains(stderr.String(), want) {
					t.Errorf("stderr lacks %q: %s", want, &stderr)
				}
			}
		})
	}
}
