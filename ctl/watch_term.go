package ctl

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Control sequences (ECMA-48; xterm's "Control Sequences" for the private ones).
const (
	enterScreen = "\x1b[?1049h\x1b[?25l" // the alternate screen, no cursor
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	home        = "\x1b[H"
	restOfLine  = "\x1b[K"
	restBelow   = "\x1b[J"
)

// full shows captures on the whole terminal until the user leaves.
func (w *watcher) full(ctx context.Context) error {
	a := w.app
	out, ok := a.stdout.(*os.File)
	if !ok {
		return failf("the screen is no terminal")
	}
	keyboard, err := openKeyboard(a.stdin)
	if err != nil {
		return failf("the keyboard: %v", err).withHint("capctl watch needs a terminal; with | cat it prints lines")
	}
	defer keyboard.close()
	ctx, cancel := context.WithCancel(ctx)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel()
	keys := make(chan string)
	tasks.Go(func() { keyboard.read(ctx, keys) })
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGWINCH, syscall.SIGCONT)
	defer signal.Stop(signals)

	if _, err := io.WriteString(out, enterScreen); err != nil {
		return err
	}
	defer func() { _, _ = io.WriteString(out, leaveScreen) }()
	stopped := make(chan string, 4)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	shown := ""
	for {
		if text := w.draw(out); text != shown {
			shown = text
			if _, err := io.WriteString(out, text); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case got := <-w.answers:
			got.of.take(got)
		case <-tick.C:
		case text := <-stopped:
			w.view.said = text
		case s := <-signals:
			if s == syscall.SIGCONT { // whoever had the terminal meanwhile has changed it
				keyboard.raw()
				_, _ = io.WriteString(out, enterScreen)
			}
			shown = "" // the terminal may have lost what it showed
		case key, ok := <-keys:
			if !ok {
				return nil // the terminal is gone
			}
			if key == "ctrl-z" {
				suspend(out, keyboard)
				shown = ""
				continue
			}
			if w.key(key) {
				return nil
			}
			if c := w.view.asking; c != nil && key == "y" {
				w.view.asking, w.view.said = nil, "stopping "+nameOf(c)
				tasks.Go(func() {
					select {
					case stopped <- a.stopWatched(ctx, c):
					case <-ctx.Done():
					}
				})
			}
		}
	}
}

// stopWatched stops a capture, and says how that went.
func (a *app) stopWatched(ctx context.Context, c *watched) string {
	ctx, cancel := a.soon(ctx)
	defer cancel()
	if _, err := c.station.capd.Stop(ctx, c.ID); err != nil {
		_, message, _ := verdict(err)
		return "not stopped: " + message
	}
	return "stopped " + nameOf(c)
}

// suspend stops the whole job until fg, as the terminal would at Ctrl-Z, but not before the
// shell has got its terminal as it was. Where no shell could let it go on, as under ssh -t
// HOST capctl watch, the kernel does not stop it (setpgid(2), orphaned process groups).
func suspend(out *os.File, keyboard *keyboard) {
	_, _ = io.WriteString(out, leaveScreen)
	keyboard.restore()
	_ = syscall.Kill(0, syscall.SIGTSTP)
	time.Sleep(suspendGrace)
	keyboard.raw()
	_, _ = io.WriteString(out, enterScreen)
}

// suspendGrace is for another thread to take the signal that stops all.
const suspendGrace = 100 * time.Millisecond

// draw gives the whole screen as it is to be written.
func (w *watcher) draw(out *os.File) string {
	s := w.app.screenOf(out)
	height := 24
	if size, err := unix.IoctlGetWinsize(int(out.Fd()), unix.TIOCGWINSZ); err == nil && size.Row > 0 {
		height = int(size.Row)
		if size.Col > 0 {
			s.width = int(size.Col)
		}
	}
	lines := w.frame(s, height, w.app.now())
	var b strings.Builder
	b.WriteString(home)
	for i, line := range lines {
		if i > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString(line)
		if columnsOf(stripped(line)) < s.width { // in the last column the cursor stands on what it wrote
			b.WriteString(restOfLine)
		}
	}
	return b.String() + restBelowIf(len(lines) < height)
}

func restBelowIf(more bool) string {
	if more {
		return restBelow
	}
	return ""
}

// key does what a key says and reports whether to leave. The confirmation of a stop is
// the caller's.
func (w *watcher) key(key string) (leave bool) {
	v := &w.view
	v.said = ""
	if v.asking != nil {
		if key != "y" {
			v.asking = nil
		}
		return key == "q"
	}
	current, index := w.current()
	rows := w.rows()
	step := 0
	switch key {
	case "q":
		if v.details || v.help {
			v.details, v.help, v.scroll = false, false, 0
			return false
		}
		return true
	case "ctrl-c":
		return true
	case "enter", "esc":
		if v.details || v.help || key == "esc" {
			v.details, v.help = false, false
		} else {
			v.details = current != nil
		}
		v.scroll = 0
	case "?", "h":
		v.help, v.scroll = !v.help, 0
	case "j", "down":
		step = 1
	case "k", "up":
		step = -1
	case "space", "pgdn":
		step = 10
	case "b", "pgup":
		step = -10
	case "g":
		step = -1 << 20
	case "G":
		step = 1 << 20
	case "s":
		switch {
		case current == nil:
		case !unstopped(current.Capture):
			v.said = nameOf(current) + " has stopped already"
		default:
			v.asking = current
		}
	}
	switch {
	case step == 0:
	case v.details || v.help:
		v.scroll = max(0, v.scroll+step)
	case len(rows) > 0:
		v.selected = rows[max(0, min(len(rows)-1, index+step))].key()
	}
	return false
}

// keyboard is a terminal that gives each key at once.
type keyboard struct {
	f      *os.File
	own    bool // opened here
	before *unix.Termios
	wake   [2]int // a pipe that ends a wait
}

// openKeyboard takes stdin where that is a terminal, else the controlling one.
func openKeyboard(stdin io.Reader) (*keyboard, error) {
	k := &keyboard{}
	if f, ok := stdin.(*os.File); ok {
		if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
			k.f = f
		}
	}
	if k.f == nil {
		f, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		k.f, k.own = f, true
	}
	var err error
	if k.before, err = unix.IoctlGetTermios(int(k.f.Fd()), unix.TCGETS); err != nil {
		return nil, fmt.Errorf("tcgetattr: %w", err)
	}
	if err := unix.Pipe2(k.wake[:], unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	k.raw()
	return k, nil
}

// raw turns off lines and echo (termios(3)). Ctrl-C stays a signal; Ctrl-Z comes as a key.
func (k *keyboard) raw() {
	t := *k.before
	t.Lflag &^= unix.ICANON | unix.ECHO
	t.Cc[unix.VMIN], t.Cc[unix.VTIME], t.Cc[unix.VSUSP] = 1, 0, 0
	_ = unix.IoctlSetTermios(int(k.f.Fd()), unix.TCSETSW, &t) // a terminal that is gone ends the reading
}

func (k *keyboard) restore() { _ = unix.IoctlSetTermios(int(k.f.Fd()), unix.TCSETSW, k.before) }

func (k *keyboard) close() {
	k.restore()
	for _, fd := range k.wake {
		_ = unix.Close(fd)
	}
	if k.own {
		k.f.Close()
	}
}

// read hands on keys until ctx ends or the terminal is gone, and closes keys then.
func (k *keyboard) read(ctx context.Context, keys chan<- string) {
	defer close(keys)
	stop := context.AfterFunc(ctx, func() { _, _ = unix.Write(k.wake[1], []byte{0}) })
	defer stop()
	buf := make([]byte, 64)
	for {
		fds := []unix.PollFd{{Fd: int32(k.f.Fd()), Events: unix.POLLIN}, {Fd: int32(k.wake[0]), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err == unix.EINTR {
			continue
		} else if err != nil || fds[1].Revents != 0 {
			return
		}
		n, err := unix.Read(int(k.f.Fd()), buf)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		for _, key := range keysOf(buf[:n]) {
			select {
			case keys <- key:
			case <-ctx.Done():
				return
			}
		}
	}
}

// keysOf names the keys in what a terminal sent at once.
func keysOf(b []byte) []string {
	named := []struct{ bytes, name string }{
		{"\x1b[A", "up"}, {"\x1bOA", "up"}, {"\x1b[B", "down"}, {"\x1bOB", "down"},
		{"\x1b[5~", "pgup"}, {"\x1b[6~", "pgdn"}, {"\x1b[H", "g"}, {"\x1b[F", "G"},
		{"\r", "enter"}, {"\n", "enter"}, {" ", "space"}, {"\x03", "ctrl-c"}, {"\x1a", "ctrl-z"},
	}
	var keys []string
	text := string(b)
next:
	for text != "" {
		for _, k := range named {
			if rest, ok := strings.CutPrefix(text, k.bytes); ok {
				keys, text = append(keys, k.name), rest
				continue next
			}
		}
		if text[0] == 0x1b {
			if len(text) == 1 {
				return append(keys, "esc")
			}
			return keys // a sequence that means nothing here
		}
		keys, text = append(keys, text[:1]), text[1:]
	}
	return keys
}
