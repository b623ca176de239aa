package deliver

import (
	"fmt"
	"path"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// defaultTemplate is where a file lands unless its profile says otherwise.
const defaultTemplate = "{date}/{host}/{id}/{file}"

// placeholders is what a template may hold, for error texts.
const placeholders = "{host} {id} {name} {file} {date} {time} {label.KEY}"

// maxValue is the most bytes of a path that one value takes: a file's name may have 255
// on most systems, and temporary names are longer than final ones.
const maxValue = 180

// Vars are the values of a template's placeholders.
type Vars struct {
	Host   string            `json:"host"`
	ID     string            `json:"id"`   // the capture's
	Name   string            `json:"name"` // the capture's, may be empty
	File   string            `json:"file"`
	Time   time.Time         `json:"time"` // when the capture began: all its files get the same {date} and {time}, in UTC
	Labels map[string]string `json:"labels,omitempty"`
}

// Expand fills a template in. A value stays one name: slashes, backslashes, control
// characters, bytes that are not UTF-8 and leading dots become underscores, and so does
// an empty value. The template itself may begin with a slash.
func Expand(template string, v Vars) (string, error) {
	if err := validateTemplate(template); err != nil {
		return "", err
	}
	var out strings.Builder
	for template != "" {
		literal, rest, found := strings.Cut(template, "{")
		out.WriteString(literal)
		if !found {
			break
		}
		name, after, _ := strings.Cut(rest, "}")
		out.WriteString(safe(v.value(name)))
		template = after
	}
	return out.String(), nil
}

func (v Vars) value(name string) string {
	switch name {
	case "host":
		return v.Host
	case "id":
		return v.ID
	case "name":
		return v.Name
	case "file":
		return v.File
	case "date":
		return v.Time.UTC().Format("2006-01-02")
	case "time":
		return v.Time.UTC().Format("150405")
	}
	return v.Labels[strings.TrimPrefix(name, "label.")]
}

// safe makes one harmless name of a value.
func safe(value string) string {
	var out strings.Builder
	leading := true
	for _, r := range value {
		if out.Len()+utf8.RuneLen(r) > maxValue {
			break
		}
		if r == '/' || r == '\\' || r == utf8.RuneError || unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || leading && r == '.' {
			r = '_'
		} else {
			leading = false
		}
		out.WriteRune(r)
	}
	if out.Len() == 0 {
		return "_"
	}
	return out.String()
}

// validateTemplate says what is wrong with a path template: a placeholder that does not
// exist, a folder named "..", a last name without {file}.
func validateTemplate(template string) error {
	if template == "" {
		return fmt.Errorf("the path is empty")
	}
	plain := ""
	for rest := template; rest != ""; {
		literal, after, found := strings.Cut(rest, "{")
		if strings.Contains(literal, "}") {
			return fmt.Errorf("a brace without its partner")
		}
		plain += literal
		if !found {
			break
		}
		name, tail, closed := strings.Cut(after, "}")
		if !closed {
			return fmt.Errorf("a brace without its partner")
		}
		if !knownPlaceholder(name) {
			return fmt.Errorf("unknown placeholder {%s}: there are %s", name, placeholders)
		}
		plain, rest = plain+"x", tail
	}
	for _, r := range plain {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return fmt.Errorf("a control character")
		}
	}
	for _, folder := range strings.Split(strings.TrimPrefix(plain, "/"), "/") {
		if folder == "" || folder == "." || folder == ".." {
			return fmt.Errorf("an empty, . or .. folder")
		}
	}
	if !strings.Contains(path.Base(template), "{file}") {
		return fmt.Errorf("no {file} after the last slash: the files of a capture would meet under one name")
	}
	return nil
}

func knownPlaceholder(name string) bool {
	switch name {
	case "host", "id", "name", "file", "date", "time":
		return true
	}
	key, label := strings.CutPrefix(name, "label.")
	return label && key != "" && !strings.ContainsAny(key, "/{")
}

// FixedFolder gives the folders of a template before its first placeholder: "" or with a
// slash at the end. Probes are written there.
func FixedFolder(template string) string {
	fixed, _, _ := strings.Cut(template, "{")
	return fixed[:strings.LastIndexByte(fixed, '/')+1]
}
