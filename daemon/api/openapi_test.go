package api

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"capd/ctl/wire"
)

type schema struct {
	Ref                   string            `json:"$ref"`
	AllOf                 []schema          `json:"allOf"`
	Properties            map[string]schema `json:"properties"`
	Required              []string          `json:"required"`
	Enum                  []string          `json:"enum"`
	AdditionalProperties  json.RawMessage   `json:"additionalProperties"`
	UnevaluatedProperties json.RawMessage   `json:"unevaluatedProperties"`
}

type description struct {
	OpenAPI    string                                `json:"openapi"`
	Paths      map[string]map[string]json.RawMessage `json:"paths"`
	Components struct {
		Schemas map[string]schema `json:"schemas"`
	} `json:"components"`
}

func described(t *testing.T) description {
	t.Helper()
	s := serve(t, &fakeDaemon{}, Access{})
	resp, text := s.do("GET", wire.PathOpenAPI, "")
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/json" {
		t.Fatalf("%d %s", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	var d description
	if err := json.Unmarshal([]byte(text), &d); err != nil {
		t.Fatal(err)
	}
	if d.OpenAPI != "3.1.0" {
		t.Errorf("it says it is OpenAPI %s", d.OpenAPI)
	}
	return d
}

// TestDescribedRoutes holds that every call is described, and nothing else is.
func TestDescribedRoutes(t *testing.T) {
	d := described(t)
	var have, told []string
	for _, rt := range New(&fakeDaemon{}, Access{}, (&journal{}).logger()).captureRoutes() {
		have = append(have, rt.method+" /"+strings.Join(rt.pattern, "/"))
	}
	for path, item := range d.Paths {
		for method, operation := range item {
			if method == "parameters" {
				continue
			}
			told = append(told, strings.ToUpper(method)+" "+path)
			var o struct {
				OperationID string                     `json:"operationId"`
				Responses   map[string]json.RawMessage `json:"responses"`
			}
			if err := json.Unmarshal(operation, &o); err != nil || o.OperationID == "" || o.Responses["default"] == nil || len(o.Responses) < 2 {
				t.Errorf("%s %s: %v %+v", method, path, err, o)
			}
		}
	}
	slices.Sort(have)
	slices.Sort(told)
	if !slices.Equal(have, told) {
		t.Errorf("the calls are\n%s\ndescribed are\n%s", strings.Join(have, "\n"), strings.Join(told, "\n"))
	}
}

// properties gives what a schema says about an object, through its references.
func (d description) properties(s schema) (names, required []string) {
	if name, ok := strings.CutPrefix(s.Ref, "#/components/schemas/"); ok {
		return d.properties(d.Components.Schemas[name])
	}
	names, required = slices.Collect(maps.Keys(s.Properties)), slices.Clone(s.Required)
	for _, part := range s.AllOf {
		n, r := d.properties(part)
		names, required = append(names, n...), append(required, r...)
	}
	slices.Sort(names)
	slices.Sort(required)
	return names, required
}

// fieldsOf gives the JSON names of a struct's fields, and those that always stand there.
func fieldsOf(t reflect.Type) (names, always []string) {
	for i := range t.NumField() {
		f := t.Field(i)
		tag, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && tag == "":
			n, a := fieldsOf(f.Type)
			names, always = append(names, n...), append(always, a...)
		case tag != "-":
			names = append(names, tag)
			if !strings.Contains(options, "omitempty") {
				always = append(always, tag)
			}
		}
	}
	slices.Sort(names)
	slices.Sort(always)
	return names, always
}

// TestDescribedObjects holds each wire object against its schema: the same fields, the
// same ones always there, no others allowed.
func TestDescribedObjects(t *testing.T) {
	d := described(t)
	objects := []any{wire.StartRequest{}, wire.FilterV1{}, wire.Flow{}, wire.Capture{}, wire.Action{}, wire.Requester{}, wire.Packets{}, wire.LostBy{}, wire.Bytes{},
		wire.Removed{}, wire.File{}, wire.Warning{}, wire.Problem{}, wire.CaptureList{}, wire.Destination{}, wire.DestinationList{}, wire.Check{}, wire.CheckStep{},
		wire.Explain{}, wire.Event{}, wire.Doctor{}, wire.Finding{}, wire.Status{}, wire.ClockState{}, wire.ErrorBody{}, wire.Error{}}
	seen := map[string]bool{"Time": true, "Size": true, "Duration": true, "Port": true, "RequestFields": true} // no objects; a part of two
	for _, object := range objects {
		of := reflect.TypeOf(object)
		name := of.Name()
		if name == "StartRequest" {
			name = "Request"
		}
		seen[name] = true
		s, ok := d.Components.Schemas[name]
		if !ok {
			t.Errorf("%s is not described", name)
			continue
		}
		fields, always := fieldsOf(of)
		names, required := d.properties(s)
		if !slices.Equal(fields, names) || !slices.Equal(always, required) {
			t.Errorf("%s has the fields\n%v, always %v; described are\n%v, required %v", name, fields, always, names, required)
		}
		if closed := string(s.AdditionalProperties) + string(s.UnevaluatedProperties); closed != "false" {
			t.Errorf("%s may have more fields than are described", name)
		}
	}
	for name := range d.Components.Schemas {
		if !seen[name] {
			t.Errorf("%s is described and is no object", name)
		}
	}
	status := d.Components.Schemas["Status"]
	for field, object := range map[string]any{"captures": wire.StatusCaptures{}, "undelivered": wire.StatusUndelivered{}, "limits": wire.StatusLimits{}, "spool": wire.StatusSpool{}} {
		fields, _ := fieldsOf(reflect.TypeOf(object))
		if names, _ := d.properties(status.Properties[field]); !slices.Equal(fields, names) {
			t.Errorf("Status.%s has the fields %v, described are %v", field, fields, names)
		}
	}
}

// TestDescribedValues holds that a request takes the values that are described, and
// refuses others.
func TestDescribedValues(t *testing.T) {
	d := described(t)
	fields := d.Components.Schemas["RequestFields"].Properties
	tried := 0
	for name, s := range fields {
		for _, value := range append(s.Enum, "nonsense") {
			if len(s.Enum) == 0 {
				continue
			}
			tried++
			var r wire.StartRequest
			if err := json.Unmarshal([]byte(`{"`+name+`": "`+value+`"}`), &r); err != nil {
				t.Fatal(err)
			}
			if e := validateRequest(&r); (e != nil) != (value == "nonsense") {
				t.Errorf("%s %q: %+v", name, value, e)
			}
		}
	}
	if tried < 15 {
		t.Errorf("only %d values are described", tried)
	}
}
