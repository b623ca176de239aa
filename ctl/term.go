package ctl

import (
	"io"
	"os"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// screen is where output goes, as far as its look depends on it.
type screen struct {
	terminal bool
	width    int  // columns to fit; 0 = no end of them
	live     bool // a terminal on which a line can be written again
	colour   bool
	unicode  bool
}

// screenOf looks at one of the process's outputs. The width is COLUMNS where that is
// set, else the terminal's; what is no terminal has none.
func (a *app) screenOf(w io.Writer) screen {
	probe := a.screen
	if probe == nil {
		probe = terminalColumns
	}
	var s screen
	s.width, s.terminal = probe(w)
	if s.terminal && s.width <= 0 {
		s.width = 80 // a serial console does not know
	}
	if n, err := strconv.Atoi(a.getenv("COLUMNS")); err == nil && n > 0 {
		s.width = n
	}
	s.live = s.terminal && a.getenv("TERM") != "dumb"
	s.colour = s.live && !a.noColor && a.getenv("NO_COLOR") == ""
	s.unicode = a.unicodeLocale()
	return s
}

// terminalColumns asks the kernel (ioctl_tty(2), TIOCGWINSZ).
func terminalColumns(w io.Writer) (columns int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile {
		return 0, false
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, false
	}
	return int(size.Col), true
}

// unicodeLocale follows locale(7): the first of these that is set decides.
func (a *app) unicodeLocale() bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := strings.ToLower(a.getenv(name)); v != "" {
			return strings.Contains(v, "utf-8") || strings.Contains(v, "utf8")
		}
	}
	return false
}

// style is a colour or weight, as the number of an SGR sequence (ECMA-48, 8.3.117).
type style string

const (
	plain  style = ""
	bold   style = "1"
	dim    style = "2"
	red    style = "31"
	green  style = "32"
	yellow style = "33"
)

// paint gives text in a style where the screen has colours.
func (s screen) paint(st style, text string) string {
	if !s.colour || st == plain || text == "" {
		return text
	}
	return "\x1b[" + string(st) + "m" + text + "\x1b[0m"
}

// glyph chooses between a sign and its stand-in in ASCII.
func (s screen) glyph(sign, ascii string) string {
	if s.unicode {
		return sign
	}
	return ascii
}

// clean makes text that came from elsewhere harmless to a terminal: what does not print
// is written as Go would in a string, so that no name or message can move the cursor.
func clean(text string) string {
	printable := true
	for _, r := range text {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			printable = false
			break
		}
	}
	if printable {
		return text
	}
	var b strings.Builder
	for i, r := range text {
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(text[i:], "\ufffd"):
			b.WriteString(`\x` + strconv.FormatUint(uint64(text[i])|0x100, 16)[1:])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			quoted := strconv.QuoteRuneToASCII(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
	}
	return b.String()
}

// oneLine folds text of several lines into one, and cleans it.
func oneLine(text string) string {
	lines := strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' })
	for i, line := range lines {
		lines[i] = clean(strings.TrimSpace(strings.ReplaceAll(line, "\t", " ")))
	}
	return strings.Join(lines, " ")
}

// cleanLines cleans each line of a text and keeps its lines and tabs.
func cleanLines(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		parts := strings.Split(line, "\t")
		for j, part := range parts {
			parts[j] = clean(part)
		}
		lines[i] = strings.Join(parts, "\t")
	}
	return strings.Join(lines, "\n")
}

// columnsOf counts the terminal columns of cleaned text: none for combining marks, two
// for the wide blocks of East Asia and for emoji (Unicode TR 11, by block).
func columnsOf(text string) int {
	n := 0
	for _, r := range text {
		switch {
		case r < 0x300:
			n++
		case unicode.In(r, unicode.Mn, unicode.Me):
		case r >= 0x1100 && r <= 0x115f, r >= 0x2e80 && r <= 0xa4cf, r >= 0xac00 && r <= 0xd7a3,
			r >= 0xf900 && r <= 0xfaff, r >= 0xfe30 && r <= 0xfe6f, r >= 0xff00 && r <= 0xff60,
			r >= 0xffe0 && r <= 0xffe6, r >= 0x1f300 && r <= 0x1faff, r >= 0x20000 && r <= 0x3fffd:
			n += 2
		default:
			n++
		}
	}
	return n
}

// cut shortens text to a number of columns, with a sign that it was longer.
func (s screen) cut(text string, columns int) string {
	if columnsOf(text) <= columns {
		return text
	}
	end := s.glyph("…", "~")
	width := columnsOf(end)
	for i, r := range text {
		w := columnsOf(string(r))
		if width+w > columns {
			return text[:i] + end
		}
		width += w
	}
	return text
}

// stripped is text without its styles.
func stripped(text string) string {
	var b strings.Builder
	for {
		before, after, ok := strings.Cut(text, "\x1b[")
		b.WriteString(before)
		if !ok {
			return b.String()
		}
		_, text, _ = strings.Cut(after, "m")
	}
}

// wrapStyled breaks a line that may have one style into lines of a width; each keeps it.
func wrapStyled(line string, width int) []string {
	if columnsOf(stripped(line)) <= width || width <= 0 {
		return []string{line}
	}
	var lines []string
	var b strings.Builder
	current, n := "", 0 // the style in force
	for text := line; text != ""; {
		if strings.HasPrefix(text, "\x1b[") {
			end := strings.IndexByte(text, 'm') + 1
			if current = text[:end]; current == "\x1b[0m" {
				current = ""
			}
			b.WriteString(text[:end])
			text = text[end:]
			continue
		}
		r, size := utf8.DecodeRuneInString(text)
		if w := columnsOf(string(r)); n+w > width {
			if current != "" {
				b.WriteString("\x1b[0m")
			}
			lines = append(lines, b.String())
			b.Reset()
			b.WriteString(current)
			n = 0
		}
		b.WriteString(text[:size])
		n += columnsOf(string(r))
		text = text[size:]
	}
	return append(lines, b.String())
}
