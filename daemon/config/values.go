package config

import (
	"encoding/base64"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"capd/ctl/wire"
)

// A setter takes a TOML value (string, int64, float64, bool, time.Time, []any or
// map[string]any), checks it and stores it.
type setter func(any) *mistake

// mistake is what is wrong with a value, and its mend.
type mistake struct{ message, hint string }

// wrongType is the mistake of a value that is not of the type a key takes.
func wrongType(v any, want, hint string) *mistake {
	return &mistake{quote(v) + " is not " + want, hint}
}

// printable refuses control characters and text that is not UTF-8.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return unicode.IsControl(c) || c == unicode.ReplacementChar })
}

// text takes a string that is not empty and that check, where there is one, accepts.
func text(dst *string, want, hint string, check func(string) bool) setter {
	return func(v any) *mistake {
		s, ok := v.(string)
		if !ok || s == "" || !printable(s) || (check != nil && !check(s)) {
			return wrongType(v, want, hint)
		}
		*dst = s
		return nil
	}
}

func absPath(dst *string) setter {
	return func(v any) *mistake {
		set := text(dst, "an absolute path", `write a path that begins with "/"`, filepath.IsAbs)
		if m := set(v); m != nil {
			return m
		}
		*dst = filepath.Clean(*dst)
		return nil
	}
}

// credential takes credential:NAME, a systemd credential of the process that delivers
// (systemd.exec(5), LoadCredential=). It tells whether v is one.
func credential(dst *string, v any) bool {
	s, _ := v.(string)
	name, ok := strings.CutPrefix(s, "credential:")
	if !ok || name == "" || name == "." || name == ".." || strings.Contains(name, "/") || !printable(name) {
		return false
	}
	*dst = s
	return true
}

// filePath is absPath for a file of a profile, which may also be a systemd credential.
func filePath(dst *string) setter {
	return func(v any) *mistake {
		if credential(dst, v) {
			return nil
		}
		return absPath(dst)(v)
	}
}

// secretPath is filePath for a file that holds a secret. Its error does not repeat the
// value: it may be the secret itself.
func secretPath(dst *string) setter {
	return func(v any) *mistake {
		if filePath(dst)(v) != nil {
			return &mistake{"this is not an absolute path", `write the path of the file that holds it ("/etc/capd/..."), or "credential:NAME"`}
		}
		return nil
	}
}

// socketPath is absPath within what a sockaddr_un takes (unix(7): 108 bytes with the
// closing NUL).
func socketPath(dst *string) setter {
	return func(v any) *mistake {
		if s, ok := v.(string); ok && len(s) > 107 {
			return &mistake{fmt.Sprintf("%s is %d bytes long", quote(v), len(s)), "a socket's path has at most 107"}
		}
		return absPath(dst)(v)
	}
}

func hostLabel(dst *string) setter {
	return text(dst, "a host's name", wire.NameHint, wire.ValidName)
}

// group takes a group's name, or "" for nobody.
func group(dst *string) setter {
	return func(v any) *mistake {
		if v == "" {
			*dst = ""
			return nil
		}
		return text(dst, "a group's name", `a name of /etc/group, or "" for nobody`, func(s string) bool {
			return len(s) <= 256 && !strings.ContainsAny(s, " :,/")
		})(v)
	}
}

func logLevel(dst *slog.Level) setter {
	return func(v any) *mistake {
		levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
		s, _ := v.(string)
		level, ok := levels[s]
		if !ok {
			return wrongType(v, "a log level", "debug, info, warn or error")
		}
		*dst = level
		return nil
	}
}

// offOr takes "off" or "" as nothing.
func offOr(dst *string, set func(*string) setter) setter {
	return func(v any) *mistake {
		if v == "off" || v == "" {
			*dst = ""
			return nil
		}
		return set(dst)(v)
	}
}

// autoOr takes "auto" as zero.
func autoOr[T any](dst *T, set setter) setter {
	return func(v any) *mistake {
		if v == "auto" {
			var zero T
			*dst = zero
			return nil
		}
		m := set(v)
		if m != nil {
			m.hint += `, or "auto"`
		}
		return m
	}
}

// hostPort splits host:port, with the port given instead where there is none (0: it
// must be there). The host may be empty.
func hostPort(s string, port int) (string, bool) {
	host, p, err := net.SplitHostPort(s)
	if err != nil {
		if port == 0 || strings.HasSuffix(s, ":") {
			return "", false
		}
		host, p = strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"), strconv.Itoa(port)
		if strings.Contains(host, ":") {
			if _, err := netip.ParseAddr(host); err != nil {
				return "", false
			}
		}
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil || n == 0 || strings.ContainsAny(host, " /@[]") {
		return "", false
	}
	return net.JoinHostPort(host, strconv.FormatUint(n, 10)), true
}

func listenAddress(dst *string) setter {
	return func(v any) *mistake {
		s, _ := v.(string)
		addr, ok := hostPort(s, 0)
		if !ok || !printable(s) {
			return wrongType(v, "an address to listen at", `write host:port, such as "127.0.0.1:9469", or "off"`)
		}
		*dst = addr
		return nil
	}
}

// sshAddress takes host or host:port, port 22 unless given.
func sshAddress(dst *string) setter {
	return func(v any) *mistake {
		s, _ := v.(string)
		addr, ok := hostPort(s, 22)
		if !ok || strings.HasPrefix(addr, ":") || !printable(s) {
			return wrongType(v, "a server's address", `write host or host:port, such as "files.example.net:22"`)
		}
		*dst = addr
		return nil
	}
}

func oneOf(dst *string, values ...string) setter {
	return func(v any) *mistake {
		s, _ := v.(string)
		if !slices.Contains(values, s) {
			return wrongType(v, "one of the values", "write "+strings.Join(values[:len(values)-1], ", ")+" or "+values[len(values)-1])
		}
		*dst = s
		return nil
	}
}

func boolean(dst *bool) setter {
	return func(v any) *mistake {
		b, ok := v.(bool)
		if !ok {
			return wrongType(v, "true or false", "write true or false, without quotes")
		}
		*dst = b
		return nil
	}
}

func integer[T int | uint32 | uint64](dst *T, least, most int64) setter {
	return func(v any) *mistake {
		hint := fmt.Sprintf("write a whole number from %d to %d", least, most)
		n, ok := v.(int64)
		if !ok {
			return wrongType(v, "a whole number", hint)
		}
		if n < least || n > most {
			return &mistake{fmt.Sprintf("%d is out of range", n), hint}
		}
		*dst = T(n)
		return nil
	}
}

const sizeHint = "write bytes as a number, or with b, kb, mb, gb, KiB, MiB or GiB (10mb)"

func parseSize(v any) (wire.Size, bool) {
	switch v := v.(type) {
	case int64:
		return wire.Size(v), v >= 0
	case string:
		n, err := wire.ParseSize(v)
		return n, err == nil
	}
	return 0, false
}

func sizeBetween(dst *wire.Size, least, most wire.Size) setter {
	return func(v any) *mistake {
		n, ok := parseSize(v)
		if !ok {
			return wrongType(v, "a size", sizeHint)
		}
		if n < least || n > most {
			return &mistake{fmt.Sprintf("%s is out of range", quote(v)), fmt.Sprintf("write %s to %s", least, most)}
		}
		*dst = n
		return nil
	}
}

// duration takes seconds as a number, or Go's form with days before it ("7d", "1d12h").
func duration(dst *wire.Seconds, least wire.Seconds) setter {
	return func(v any) *mistake {
		n, ok := parseDuration(v)
		if !ok {
			return wrongType(v, "a duration", "write seconds as a number, or 90s, 5m, 1h30m, 7d")
		}
		if n < least {
			return &mistake{fmt.Sprintf("%s is too short", quote(v)), fmt.Sprintf("at least %s", least)}
		}
		*dst = n
		return nil
	}
}

func parseDuration(v any) (wire.Seconds, bool) {
	const day = 24 * 3600 * int64(1e9)
	switch v := v.(type) {
	case int64:
		return wire.Seconds(v) * 1e9, v >= 0 && v <= math.MaxInt64/int64(1e9)
	case float64:
		return wire.Seconds(v * 1e9), v >= 0 && v < math.MaxInt64/1e9
	case string:
		s, days := strings.TrimSpace(v), int64(0)
		if before, after, ok := strings.Cut(s, "d"); ok {
			n, err := strconv.ParseUint(before, 10, 16)
			if err != nil {
				return 0, false
			}
			if s, days = after, int64(n); s == "" {
				s = "0"
			} else if strings.Trim(s, "0123456789.") == "" {
				return 0, false // "7d5": of what?
			}
		}
		rest, err := wire.ParseSeconds(s)
		if err != nil || int64(rest) > math.MaxInt64-days*day {
			return 0, false
		}
		return rest + wire.Seconds(days*day), true
	}
	return 0, false
}

// share takes "10%", "10%, at most 10gb" or a size.
func share(dst *Share) setter {
	return func(v any) *mistake {
		const hint = `write a percentage of the file system ("10%"), one with a cap ("10%, at most 10gb"), or a size ("20gb")`
		s, _ := v.(string)
		percent, rest, ok := strings.Cut(s, "%")
		if !ok {
			n, ok := parseSize(v)
			if !ok {
				return wrongType(v, "a share of a file system", hint)
			}
			*dst = Share{Bytes: n}
			return nil
		}
		p, err := strconv.ParseFloat(strings.TrimSpace(percent), 64)
		if err != nil || math.IsNaN(p) {
			return wrongType(v, "a share of a file system", hint)
		}
		if p < 0 || p > 100 {
			return &mistake{fmt.Sprintf("%s is out of range", quote(v)), "write 0% to 100%"}
		}
		out := Share{Percent: p}
		if rest = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(rest), ",")); rest != "" {
			bound, ok := strings.CutPrefix(rest, "at most ")
			if out.Cap, err = wire.ParseSize(bound); !ok || err != nil || out.Cap == 0 {
				return wrongType(v, "a share of a file system", hint)
			}
		}
		if p == 0 {
			out = Share{}
		}
		*dst = out
		return nil
	}
}

// list takes a list of strings, each of which check accepts, none twice. The list that
// it stores is never nil.
func list(dst *[]string, check func(string) *mistake) setter {
	return func(v any) *mistake {
		items, ok := v.([]any)
		if !ok {
			return wrongType(v, "a list", `write ["one", "two"]`)
		}
		out := make([]string, 0, len(items))
		for _, item := range items {
			s, ok := item.(string)
			if !ok {
				return wrongType(item, "a string", `write ["one", "two"]`)
			}
			if m := check(s); m != nil {
				return m
			}
			if slices.Contains(out, s) {
				return &mistake{fmt.Sprintf("%s stands here twice", quote(s)), "leave one out"}
			}
			out = append(out, s)
		}
		*dst = out
		return nil
	}
}

func labelKey(s string) *mistake {
	if !wire.ValidName(s) {
		return &mistake{quote(s) + " is not a label's key", wire.NameHint}
	}
	return nil
}

// interfacePattern takes an interface's name (net/core/dev.c, dev_valid_name), with *
// at the end for a prefix.
func interfacePattern(s string) *mistake {
	name := strings.TrimSuffix(s, "*")
	if s == "" || len(name) > 15 || name == "." || name == ".." || !printable(s) || strings.ContainsAny(name, "/: *") {
		return &mistake{quote(s) + " is not an interface", "1 to 15 characters without space, slash or colon; * at the end for a prefix"}
	}
	return nil
}

func device(dst *string) setter {
	return text(dst, "a network device", "1 to 15 characters without space, slash or colon", func(s string) bool {
		return !strings.Contains(s, "*") && interfacePattern(s) == nil
	})
}

func address(dst *netip.Addr) setter {
	return func(v any) *mistake {
		s, _ := v.(string)
		a, err := netip.ParseAddr(s)
		if err != nil {
			return wrongType(v, "an IP address", "write one IPv4 or IPv6 address")
		}
		*dst = a
		return nil
	}
}

// endpoint takes an S3 server: a URL without a path, or host[:port], which means https.
func endpoint(dst *string) setter {
	return func(v any) *mistake {
		m := wrongType(v, "an S3 endpoint", `write "https://host" or "https://host:port", without a path`)
		s, ok := v.(string)
		if !ok || !printable(s) {
			return m
		}
		if !strings.Contains(s, "://") {
			s = "https://" + s
		}
		u, err := url.Parse(s)
		if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Hostname() == "" || u.User != nil ||
			strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" || strings.ContainsAny(u.Host, " ") {
			return m
		}
		if p := u.Port(); p != "" {
			if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
				return m
			}
		}
		*dst = u.Scheme + "://" + u.Host
		return nil
	}
}

// hostKey takes a server's public key as known_hosts writes it, or its fingerprint as
// ssh-keygen -l prints it.
func hostKey(dst *string) setter {
	return text(dst, "a server's public key", `write "ssh-ed25519 AAAA..." (ssh-keyscan prints it) or "SHA256:..." (ssh-keygen -lf prints it)`, func(s string) bool {
		if sum, ok := strings.CutPrefix(s, "SHA256:"); ok {
			raw, err := base64.RawStdEncoding.DecodeString(sum)
			return err == nil && len(raw) == 32
		}
		return publicKey(s, "ssh-", "ecdsa-sha2-", "sk-")
	})
}

// publicKey says whether s looks like "ALGORITHM BASE64 [COMMENT]".
func publicKey(s string, algorithms ...string) bool {
	fields := strings.Fields(s)
	if len(fields) < 2 {
		return false
	}
	raw, err := base64.StdEncoding.DecodeString(fields[1])
	return err == nil && len(raw) > 4 && slices.ContainsFunc(algorithms, func(a string) bool { return strings.HasPrefix(fields[0], a) })
}

// recipient takes a public key that files can be sealed to.
func recipient(s string) *mistake {
	if strings.HasPrefix(s, "age1") && len(s) > 50 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789") == "" || publicKey(s, "ssh-ed25519", "ssh-rsa") {
		return nil
	}
	if strings.HasPrefix(s, "AGE-SECRET-KEY-") {
		return &mistake{"this is a secret key, which must not be on this box", `write its public key, "age1..."; and make a new pair`}
	}
	return &mistake{quote(s) + " is not a public key", `write "age1..." or "ssh-ed25519 AAAA..."`}
}
