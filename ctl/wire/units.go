package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes, 0 to 2^63-1. In JSON it is read from a number or from a
// string such as "10mb" (b, kb, mb, gb: powers of 1000; KiB, MiB, GiB: powers of
// 1024; any case) and written as a number.
type Size int64

// sizeUnits holds the suffixes in the order in which they are tried.
var sizeUnits = []struct {
	suffix string
	factor int64
}{
	{"kib", 1 << 10}, {"mib", 1 << 20}, {"gib", 1 << 30},
	{"kb", 1e3}, {"mb", 1e6}, {"gb", 1e9}, {"b", 1},
}

// ParseSize reads a size as people write it: "10mb", "64 MiB", "4096".
func ParseSize(s string) (Size, error) {
	text, factor := strings.ToLower(strings.TrimSpace(s)), int64(1)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(text, u.suffix); ok {
			text, factor = strings.TrimSpace(rest), u.factor
			break
		}
	}
	if n, err := strconv.ParseInt(text, 10, 64); err == nil && n >= 0 {
		if n > math.MaxInt64/factor {
			return 0, fmt.Errorf("size %q is too large", s)
		}
		return Size(n * factor), nil
	}
	// A fraction such as 1.5gb; plain digits were settled exactly above.
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || strings.Trim(text, "0123456789.") != "" || f*float64(factor) >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is not a size: write bytes as a number, or with b, kb, mb, gb, KiB, MiB or GiB (10mb)", s)
	}
	return Size(f * float64(factor)), nil
}

// String gives the shortest exact form: "10mb", "64MiB", "4096b".
func (s Size) String() string {
	for _, u := range []struct {
		name   string
		factor int64
	}{{"gb", 1e9}, {"GiB", 1 << 30}, {"mb", 1e6}, {"MiB", 1 << 20}, {"kb", 1e3}, {"KiB", 1 << 10}} {
		if s > 0 && int64(s)%u.factor == 0 {
			return strconv.FormatInt(int64(s)/u.factor, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10) + "b"
}

// About writes bytes for people, in three digits and powers of 1000: 6.76 MB. Less than 0
// is written as 0.
func About[N ~int | ~int64 | ~uint64](bytes N) string {
	const units = "kMGTPE"
	n := uint64(max(bytes, 0))
	if n < 1000 {
		return strconv.FormatUint(n, 10) + " B"
	}
	f, unit := float64(n), -1
	for f >= 999.5 && unit < len(units)-1 {
		f /= 1000
		unit++
	}
	digits := 2
	switch {
	case f >= 99.95:
		digits = 0
	case f >= 9.995:
		digits = 1
	}
	return strconv.FormatFloat(f, 'f', digits, 64) + " " + units[unit:unit+1] + "B"
}

// UnmarshalText reads what ParseSize reads (TOML strings, flags).
func (s *Size) UnmarshalText(text []byte) error {
	v, err := ParseSize(string(text))
	if err == nil {
		*s = v
	}
	return err
}

// UnmarshalJSON accepts a whole number or a string.
func (s *Size) UnmarshalJSON(b []byte) error {
	text, err := numberOrString(b, "size")
	if err != nil {
		return err
	}
	return s.UnmarshalText([]byte(text))
}

// Seconds is a span of time in whole or fractional seconds. In JSON it is read from a
// number of seconds or from a string in Go's form ("5m", "1h30m") and written as a
// number of seconds.
type Seconds time.Duration

// ParseSeconds reads "300", "90s", "5m" or "1h30m". Negative spans are refused.
func ParseSeconds(s string) (Seconds, error) {
	text := strings.TrimSpace(s)
	if f, err := strconv.ParseFloat(text, 64); err == nil && strings.Trim(text, "0123456789.") == "" {
		if f > math.MaxInt64/1e9 {
			return 0, fmt.Errorf("duration %q is too long", s)
		}
		return Seconds(math.Round(f * 1e9)), nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a duration: write seconds as a number, or 90s, 5m, 1h30m", s)
	}
	return Seconds(d), nil
}

// Duration gives the span as Go counts it.
func (s Seconds) Duration() time.Duration { return time.Duration(s) }

// String gives Go's form, without trailing zero units: "5m", "1h30m".
func (s Seconds) String() string {
	text := time.Duration(s).String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// UnmarshalText reads what ParseSeconds reads.
func (s *Seconds) UnmarshalText(text []byte) error {
	v, err := ParseSeconds(string(text))
	if err == nil {
		*s = v
	}
	return err
}

// UnmarshalJSON accepts a number of seconds or a string.
func (s *Seconds) UnmarshalJSON(b []byte) error {
	text, err := numberOrString(b, "duration")
	if err != nil {
		return err
	}
	return s.UnmarshalText([]byte(text))
}

// MarshalJSON writes seconds as a number, without a fraction where there is none.
func (s Seconds) MarshalJSON() ([]byte, error) {
	return strconv.AppendFloat(nil, time.Duration(s).Seconds(), 'f', -1, 64), nil
}

// Port is a TCP, UDP or SCTP port, 0 to 65535; 0 means any.
type Port uint16

// Protocol is an IP protocol as a number ("6") or a name ("tcp"). In JSON it is read
// from either and written as it was read; empty or 0 means any. Whether the name is
// known is judged where the filter is compiled.
type Protocol string

// UnmarshalJSON accepts a whole number or a string.
func (p *Protocol) UnmarshalJSON(b []byte) error {
	text, err := numberOrString(b, "protocol")
	if err != nil {
		return err
	}
	*p = Protocol(text)
	if text == "0" {
		*p = ""
	}
	return nil
}

// MarshalJSON writes a number where the protocol is one, as the model API does.
func (p Protocol) MarshalJSON() ([]byte, error) {
	if p == "" {
		return []byte("0"), nil
	}
	if n, err := strconv.ParseUint(string(p), 10, 16); err == nil {
		return strconv.AppendUint(nil, n, 10), nil
	}
	return json.Marshal(string(p))
}

// numberOrString returns the digits of a JSON number or the contents of a JSON string.
func numberOrString(b []byte, what string) (string, error) {
	b = bytes.TrimSpace(b)
	if len(b) > 0 && b[0] == '"' {
		var text string
		err := json.Unmarshal(b, &text)
		return text, err
	}
	if len(b) == 0 || (b[0] != '-' && (b[0] < '0' || b[0] > '9')) {
		return "", fmt.Errorf("%s is not a %s: give a number or a string", b, what)
	}
	return string(b), nil
}
