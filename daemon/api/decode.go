package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"

	"capd/ctl/wire"
	"capd/nearest"
)

// decodeJSON reads a body into the struct that dst points to. It is stricter than
// encoding/json: names are matched letter by letter, each may stand once, and none may
// be unknown; errors name the field, the value and the mend. null counts as not given,
// and so does an empty body as {}.
func decodeJSON(body []byte, dst any) *wire.Error {
	body = bytes.Trim(body, " \t\r\n") // what JSON calls white space (RFC 8259 section 2), and no more
	if len(body) == 0 {
		return nil
	}
	if !utf8.Valid(body) {
		return malformed("", "the body is not UTF-8", "")
	}
	if err := json.Unmarshal(body, new(json.RawMessage)); err != nil {
		text := "the body is not JSON: " + err.Error()
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			read := body[:min(max(int(syntax.Offset)-1, 0), len(body))]
			line := bytes.Count(read, []byte("\n")) + 1
			column := len(read) - bytes.LastIndexByte(read, '\n')
			text = fmt.Sprintf("the body is not JSON at line %d, column %d: %s", line, column, syntax)
		}
		return malformed("", text, "")
	}
	if body[0] != '{' {
		return malformed("", "the body is not a JSON object", `write {"field": value, ...}`)
	}
	return decodeStruct(body, reflect.ValueOf(dst).Elem(), "")
}

// malformed is the 400 of a body that is not of the form asked for.
func malformed(field, message, hint string) *wire.Error {
	return &wire.Error{Status: http.StatusBadRequest, Code: wire.CodeBadRequest, Message: message, Field: field, Hint: hint}
}

// eachMember goes through the members of a JSON object, which is valid, and refuses one
// that stands there twice.
func eachMember(raw []byte, path string, each func(name string, value json.RawMessage) *wire.Error) *wire.Error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if _, err := dec.Token(); err != nil {
		return malformed(path, err.Error(), "")
	}
	seen := map[string]bool{}
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return malformed(path, err.Error(), "")
		}
		name, _ := token.(string)
		if seen[name] {
			field := join(path, name)
			return malformed(field, fmt.Sprintf("field %s is given twice", shown(field)), "leave one of them out")
		}
		seen[name] = true
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return malformed(join(path, name), err.Error(), "")
		}
		if e := each(name, value); e != nil {
			return e
		}
	}
	return nil
}

func decodeStruct(raw []byte, v reflect.Value, path string) *wire.Error {
	fields := map[string]int{}
	names := make([]string, 0, v.NumField())
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		fields[name] = i
		names = append(names, name)
	}
	return eachMember(raw, path, func(name string, value json.RawMessage) *wire.Error {
		i, ok := fields[name]
		if !ok {
			return unknownField(join(path, name), name, names)
		}
		if string(value) == "null" {
			return nil
		}
		return decodeValue(value, v.Field(i), join(path, name))
	})
}

// decodeValue reads one value that is not null, or an element, into v.
func decodeValue(raw json.RawMessage, v reflect.Value, path string) *wire.Error {
	if u, ok := v.Addr().Interface().(json.Unmarshaler); ok {
		return decodeUnit(raw, u, path)
	}
	wrong := func(want, hint string) *wire.Error {
		return invalid(path, fmt.Sprintf("%s: %s is not %s", path, excerpt(raw), want), hint)
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return decodeValue(raw, v.Elem(), path)
	case reflect.Struct:
		if raw[0] != '{' {
			return wrong("an object", `write {"field": value, ...}`)
		}
		return decodeStruct(raw, v, path)
	case reflect.Map:
		if raw[0] != '{' {
			return wrong("an object", `write {"key": "value", ...}`)
		}
		v.Set(reflect.MakeMap(v.Type()))
		return eachMember(raw, path, func(name string, value json.RawMessage) *wire.Error {
			element := reflect.New(v.Type().Elem()).Elem()
			if e := decodeValue(value, element, join(path, name)); e != nil {
				return e
			}
			v.SetMapIndex(reflect.ValueOf(name), element)
			return nil
		})
	case reflect.Slice:
		var elements []json.RawMessage
		if raw[0] != '[' || json.Unmarshal(raw, &elements) != nil {
			return wrong("a list", fmt.Sprintf("write [%s]", excerpt(raw)))
		}
		v.Set(reflect.MakeSlice(v.Type(), len(elements), len(elements)))
		for i, element := range elements {
			if e := decodeValue(element, v.Index(i), fmt.Sprintf("%s[%d]", path, i)); e != nil {
				return e
			}
		}
		return nil
	case reflect.String:
		var s string
		if raw[0] != '"' || json.Unmarshal(raw, &s) != nil {
			return wrong("a string", "write it in quotes")
		}
		v.SetString(s)
		return nil
	case reflect.Bool:
		switch string(raw) {
		case "true", "false":
			v.SetBool(raw[0] == 't')
			return nil
		}
		return wrong("true or false", "write true or false, without quotes")
	case reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, ok := wholeNumber(raw)
		if !ok || v.OverflowUint(n) {
			most := uint64(math.MaxUint64) >> (64 - v.Type().Bits())
			if raw[0] == '"' {
				return wrong("a number", "write it without quotes")
			}
			return wrong("a number that fits", numberHint(path, most))
		}
		v.SetUint(n)
		return nil
	}
	return malformed(path, fmt.Sprintf("%s cannot be read", path), "")
}

// decodeUnit reads a value that knows its own form (wire.Size, Seconds, Protocol). Its
// error has the mend behind a colon.
func decodeUnit(raw json.RawMessage, u json.Unmarshaler, path string) *wire.Error {
	err := u.UnmarshalJSON(raw)
	if err == nil {
		return nil
	}
	if raw[0] == '{' || raw[0] == '[' || raw[0] == 't' || raw[0] == 'f' || raw[0] == 'n' {
		return invalid(path, fmt.Sprintf("%s: %s is neither a number nor a string", path, excerpt(raw)), "write a number or a string")
	}
	message, hint := err.Error(), ""
	if at := strings.LastIndex(message, ": write "); at >= 0 {
		message, hint = message[:at], message[at+2:]
	}
	if len(message) > 160 {
		message = excerpt(raw) + " makes no sense"
	}
	return invalid(path, path+": "+message, hint)
}

// wholeNumber reads a JSON number that is whole and not negative, however it is written
// (10000, 1e4, 300.0).
func wholeNumber(raw []byte) (uint64, bool) {
	if n, err := strconv.ParseUint(string(raw), 10, 64); err == nil {
		return n, true
	}
	f, err := strconv.ParseFloat(string(raw), 64)
	if raw[0] == '"' || err != nil || f < 0 || f > 1<<53 || f != math.Trunc(f) {
		return 0, false
	}
	return uint64(f), true
}

// excerpt shows a JSON value, shortened where it is long.
func excerpt(raw []byte) string {
	s := string(raw)
	if len(s) > 64 {
		s = strings.ToValidUTF8(s[:60], "") + " ..."
	}
	return s
}

func join(path, name string) string {
	if len(name) > 64 {
		name = strings.ToValidUTF8(name[:60], "") + " ..."
	}
	if path == "" {
		return name
	}
	return path + "." + name
}

// unknownField is the 422 of a field that no request has; field is its dotted path and
// name its last part.
func unknownField(field, name string, valid []string) *wire.Error {
	return &wire.Error{Status: http.StatusUnprocessableEntity, Code: wire.CodeUnknownField, Message: "unknown field " + shown(field), Field: field, Hint: nearest.Hint(name, valid)}
}
