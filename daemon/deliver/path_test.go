package deliver

import (
	"path"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func vars() Vars {
	return Vars{Host: "edge-1", ID: "0f8c0f8c", Name: "voip", File: "0001.pcapng",
		Time: time.Date(2026, 11, 23, 23, 59, 58, 0, time.FixedZone("west", -5*3600)), Labels: map[string]string{"ticket": "NET-1"}}
}

func TestExpandFillsInEveryPlaceholder(t *testing.T) {
	for template, want := range map[string]string{
		defaultTemplate:                      "2026-11-24/edge-1/0f8c0f8c/0001.pcapng",
		"/srv/{name}/{time}-{file}":          "/srv/voip/045958-0001.pcapng",
		"{label.ticket}/{label.none}/{file}": "NET-1/_/0001.pcapng",
		"a b/{host}{host}/x{file}":           "a b/edge-1edge-1/x0001.pcapng",
	} {
		got, err := Expand(template, vars())
		if err != nil || got != want {
			t.Errorf("%s gave %q, %v, want %q", template, got, err, want)
		}
	}
}

func TestExpandKeepsAValueInItsFolder(t *testing.T) {
	for value, want := range map[string]string{
		"":                       "_",
		"..":                     "__",
		".":                      "_",
		".ssh":                   "_ssh",
		"...x":                   "___x",
		"../../etc/passwd":       "______etc_passwd",
		"a/../b":                 "a_.._b",
		`a\b`:                    "a_b",
		"/":                      "_",
		"a\x00b\nc\x7f":          "a_b_c_",
		"a\xffb":                 "a_b",
		"right\u202eleft":        "right_left",
		"ü ok":                   "ü ok",
		strings.Repeat("x", 999): strings.Repeat("x", maxValue),
		strings.Repeat("ü", 999): strings.Repeat("ü", maxValue/2),
	} {
		v := vars()
		v.Host, v.Name, v.Labels = value, value, map[string]string{"k": value}
		for _, template := range []string{"{host}/{file}", "{name}/{file}", "{label.k}/{file}"} {
			got, err := Expand(template, v)
			if err != nil || got != want+"/0001.pcapng" {
				t.Errorf("%s with %q gave %q, %v, want %q", template, value, got, err, want)
			}
		}
	}
}

func TestTemplatesThatMakeNoSense(t *testing.T) {
	for template, want := range map[string]string{
		"":                       "empty",
		"{date}/{host}":          "no {file}",
		"{file}/x":               "no {file}",
		"{hots}/{file}":          "unknown placeholder {hots}",
		"{label.}/{file}":        "unknown placeholder",
		"{label}/{file}":         "unknown placeholder",
		"{host/{file}":           "unknown placeholder",
		"{host}}/{file}":         "brace",
		"x}/{file}":              "brace",
		"{file":                  "brace",
		"../{file}":              "folder",
		"a/./{file}":             "folder",
		"a//{file}":              "folder",
		"a/{file}/":              "folder",
		"a\n/{file}":             "control",
		"{label.a/b}/x/{file}":   "unknown placeholder",
		"{ host }/{file}":        "unknown placeholder",
		"{label.k}/../{file}":    "folder",
		"//{file}":               "folder",
		"a/{name}/..{file}/{id}": "no {file}",
	} {
		err := validateTemplate(template)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q gave %v, want something about %s", template, err, want)
		}
		if _, err := Expand(template, vars()); err == nil {
			t.Errorf("%q was filled in", template)
		}
	}
}

func TestFixedFolder(t *testing.T) {
	for template, want := range map[string]string{
		"{date}/{file}": "", "a/b/{date}/{file}": "a/b/", "/srv/x-{host}/{file}": "/srv/", "{file}": "", "/{file}": "/",
	} {
		if got := FixedFolder(template); got != want {
			t.Errorf("%s gave %q, want %q", template, got, want)
		}
	}
}

func FuzzExpandStaysInside(f *testing.F) {
	f.Add("{date}/{host}/{name}/{label.k}/{file}", "..", "x", "a/b")
	f.Add("a/{name}{host}/{file}", ".", ".", "")
	f.Fuzz(func(t *testing.T, template, host, name, label string) {
		got, err := Expand(template, Vars{Host: host, Name: name, ID: "id", File: "f", Labels: map[string]string{"k": label}})
		if err != nil {
			return
		}
		if strings.Count(got, "/") != strings.Count(template, "/") {
			t.Errorf("%q has other folders than %q", got, template)
		}
		if path.Clean("/x/"+got) != "/x/"+strings.TrimPrefix(got, "/") || !utf8.ValidString(got) {
			t.Errorf("%q leaves its folder", got)
		}
	})
}
