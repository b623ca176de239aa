package main

import (
	"flag"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"

	"capd/testbed"
)

var update = flag.Bool("update", false, "write capd.toml.5 anew")

const example = "../capd.toml.example"

// The manual is the one that the example gives, but for its date.
func TestConfigurationPageIsCurrent(t *testing.T) {
	text, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	want := page(string(text))
	if *update {
		if err := os.WriteFile("capd.toml.5", []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile("capd.toml.5")
	if err != nil {
		t.Fatal(err)
	}
	_, gotBody, _ := strings.Cut(string(got), "\n")
	_, wantBody, _ := strings.Cut(want, "\n")
	if gotBody != wantBody {
		t.Errorf("capd.toml.5 is not what capd.toml.example gives: go generate ./packaging/man")
	}
	// Each key is a term of its own.
	uncommented := regexp.MustCompile(`(?m)^# ?([a-z_]+ = |\[)`).ReplaceAllString(string(text), "$1")
	var tables map[string]any
	if _, err := toml.Decode(uncommented, &tables); err != nil {
		t.Fatal(err)
	}
	keys := 0
	var walk func(map[string]any)
	walk = func(table map[string]any) {
		for key, value := range table {
			if inner, ok := value.(map[string]any); ok {
				walk(inner)
				continue
			}
			keys++
			if !strings.Contains(string(got), "\n\\fB"+key+" = ") {
				t.Errorf("the page lacks %s (%v)", key, reflect.TypeOf(value))
			}
		}
	}
	walk(tables)
	if keys < 50 {
		t.Errorf("only %d keys were found", keys)
	}
}

// mandoc and groff find nothing wrong with any page, those that capctl writes included.
func TestPagesAreClean(t *testing.T) {
	testbed.NeedCommand(t, "mandoc", "man")
	dir := t.TempDir()
	if out, err := exec.Command("go", "run", "capd/cmd/capctl", "man", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, name := range []string{"capd.8", "capd.toml.5"} {
		text, err := fs.ReadFile(os.DirFS("."), name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	pages, err := filepath.Glob(filepath.Join(dir, "*.[158]"))
	if err != nil || len(pages) < 15 {
		t.Fatalf("%d pages: %v", len(pages), err)
	}
	names := map[string]bool{}
	for _, path := range pages {
		names[filepath.Base(path)] = true
		if out, err := exec.Command("mandoc", "-Tlint", "-Wwarning", path).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("mandoc: %v: %s", err, out)
		}
		man := exec.Command("man", "--warnings", "-l", path)
		man.Env = append(os.Environ(), "MANWIDTH=80", "LC_ALL=C.UTF-8", "PAGER=cat")
		var complaints strings.Builder
		man.Stderr = &complaints
		shown, err := man.Output()
		if err != nil || complaints.Len() > 0 {
			t.Errorf("man %s: %v: %s", filepath.Base(path), err, &complaints)
		}
		if !strings.Contains(string(shown), "SEE ALSO") || !strings.Contains(string(shown), "NAME") {
			t.Errorf("%s: %s", filepath.Base(path), shown)
		}
	}
	// What a page points to is there.
	reference := regexp.MustCompile(`(?m)^\.BR (\S+) \(([0-9])\)`)
	for _, path := range pages {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range reference.FindAllStringSubmatch(string(text), -1) {
			if name := strings.ReplaceAll(m[1], `\-`, "-"); strings.HasPrefix(name, "cap") && !names[name+"."+m[2]] {
				t.Errorf("%s points to %s(%s), which is not there", filepath.Base(path), name, m[2])
			}
		}
	}
}
