package remote

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"capd/ctl/client"
)

// greeting is what capctl dial-stdio --greet says first, before it passes bytes on: so
// that what a login script prints is not taken for capd's answers, and the near side
// learns by which connection it came. SSH_CONNECTION's value follows it on the line.
const greeting = "capd-dial-stdio 1"

// maxNoise bounds what may stand before the greeting, in bytes.
const maxNoise = 64 << 10

// closeWait is how long ssh may take to end by itself.
const closeWait = 2 * time.Second

// Greet writes the greeting of the far side.
func Greet(w io.Writer, sshConnection string) error {
	_, err := fmt.Fprintln(w, strings.TrimSpace(greeting+" "+sshConnection))
	return err
}

// Dialer makes connections to the capd of one box.
type Dialer struct {
	Host    Host
	Command []string // ssh and its options; nil = ssh
	Args    []string // of capctl there, before dial-stdio: --socket PATH

	mu         sync.Mutex
	spare      *conn  // made to learn about the connection, and not used yet
	connection string // SSH_CONNECTION as the box sees it
}

// Dial starts an ssh. Its errors are *client.UnreachableError.
func (d *Dialer) Dial(ctx context.Context) (net.Conn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.spare; c != nil {
		d.spare = nil
		return c, nil
	}
	c, err := d.dial(ctx)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Connection gives the TCP connection by which ssh reached the box, in the form of
// SSH_CONNECTION there; "" where it is not known. It connects if that has not been done.
func (d *Dialer) Connection(ctx context.Context) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.connection == "" && d.spare == nil {
		c, err := d.dial(ctx)
		if err != nil {
			return "" // told by the call that follows
		}
		d.spare = c
	}
	return d.connection
}

// Close ends a connection that was not used.
func (d *Dialer) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.spare != nil {
		d.spare.Close()
		d.spare = nil
	}
}

// args are ssh's: no terminal there, and the command with each word quoted for the shell.
func (d *Dialer) args() []string {
	args := []string{"-T"}
	if d.Host.Port != 0 {
		args = append(args, "-p", strconv.Itoa(int(d.Host.Port)))
	}
	if d.Host.User != "" {
		args = append(args, "-l", d.Host.User)
	}
	words := []string{"capctl"}
	for _, a := range d.Args {
		words = append(words, "'"+strings.ReplaceAll(a, "'", `'\''`)+"'")
	}
	return append(args, "--", d.Host.Name, strings.Join(append(words, "dial-stdio", "--greet"), " "))
}

func (d *Dialer) dial(ctx context.Context) (*conn, error) {
	command := d.Command
	if len(command) == 0 {
		command = []string{"ssh"}
	}
	if _, err := exec.LookPath(command[0]); err != nil { // the shell below would end as one that finds no capctl there does
		e := &client.UnreachableError{Err: err, What: "there is no program " + command[0] + " here to reach " + d.Host.Name + " with"}
		e.Hint = "install an SSH client here, or name one in CAPCTL_SSH"
		return nil, e
	}
	// A Ctrl-C at the terminal goes to ssh too, and would cut the connection by which the
	// capture is to be stopped. ssh leaves a signal ignored that it finds ignored
	// (clientloop.c), and keeps the terminal for its questions.
	argv := append([]string{"-c", `trap "" INT; exec "$@"`, "sh"}, command...)
	cmd := exec.Command("/bin/sh", append(argv, d.args()...)...)
	theirIn, ourOut, err := os.Pipe()
	if err != nil {
		return nil, d.failed(err, "", -1)
	}
	ourIn, theirOut, err := os.Pipe()
	if err != nil {
		theirIn.Close()
		ourOut.Close()
		return nil, d.failed(err, "", -1)
	}
	c := &conn{cmd: cmd, in: ourIn, out: ourOut, lines: bufio.NewReader(ourIn), host: d.Host, ended: make(chan struct{})}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirIn, theirOut, &c.complaints
	cmd.WaitDelay = closeWait
	err = cmd.Start()
	theirIn.Close()
	theirOut.Close()
	if err != nil {
		ourIn.Close()
		ourOut.Close()
		return nil, d.failed(err, "", -1)
	}
	go func() { // joined by Close
		c.err = cmd.Wait()
		close(c.ended)
	}()
	unblock := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	said, err := c.awaitGreeting()
	if !unblock() || err != nil {
		ourOut.Close()
		if errors.Is(err, errNoise) {
			cmd.Process.Kill()
		}
		<-c.ended
		ourIn.Close()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, d.failed(err, c.complaints.String(), cmd.ProcessState.ExitCode())
	}
	d.connection = said
	return c, nil
}

var errNoise = errors.New("what answers is no capctl dial-stdio")

// awaitGreeting reads up to the greeting and gives what it says.
func (c *conn) awaitGreeting() (string, error) {
	for n := 0; n < maxNoise; {
		line, err := c.lines.ReadSlice('\n')
		n += len(line)
		if rest, ok := bytes.CutPrefix(line, []byte(greeting)); ok && err == nil {
			return strings.TrimSpace(string(rest)), nil
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return "", err
		}
	}
	return "", errNoise
}

// failed says why there is no connection, from ssh's exit code (255 is its own, ssh(1))
// and what was said on stderr.
func (d *Dialer) failed(err error, complaints string, exit int) error {
	e := &client.UnreachableError{Err: err, What: err.Error()}
	lines := strings.Split(strings.TrimSpace(complaints), "\n")
	for _, line := range lines {
		if text, ok := strings.CutPrefix(line, "capctl: "); ok {
			e.What = text
		}
		if text, ok := strings.CutPrefix(line, "hint: "); ok {
			e.Hint = text
		}
	}
	last := lines[len(lines)-1]
	switch {
	case exit == 127:
		e.What = "there is no capctl on " + d.Host.Name
		e.Hint = "install capd there; capctl has to be where ssh " + d.Host.String() + " finds programs"
	case exit == 255:
		e.What = "ssh: " + strings.TrimPrefix(last, "ssh: ")
		e.Hint = "does this work: ssh " + d.Host.String() + " true"
	case exit == 2:
		e.What = "capctl on " + d.Host.Name + " knows no dial-stdio --greet"
		e.Hint = "it is of an older version: ssh " + d.Host.String() + " capctl version"
	case e.What == err.Error() && last != "":
		e.What = last
	}
	if e.Hint == "" {
		e.Hint = "does this work: ssh " + d.Host.String() + " capctl list"
	}
	return e
}

// conn is a connection through an ssh process.
type conn struct {
	cmd        *exec.Cmd
	in, out    *os.File
	lines      *bufio.Reader // over in
	host       Host
	complaints tail
	ended      chan struct{}
	err        error
	once       sync.Once
}

var _ net.Conn = (*conn)(nil)

func (c *conn) Read(p []byte) (int, error)  { return c.lines.Read(p) }
func (c *conn) Write(p []byte) (int, error) { return c.out.Write(p) }

// Close ends the connection and waits for ssh, at most closeWait.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.out.Close()
		_ = c.in.SetReadDeadline(time.Now()) // ends a Read; a pipe that takes no deadline ends with ssh
		select {
		case <-c.ended:
		case <-time.After(closeWait):
			c.cmd.Process.Kill()
			<-c.ended
		}
		c.in.Close()
	})
	return nil
}

func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.in.SetReadDeadline(t), c.out.SetWriteDeadline(t))
}
func (c *conn) SetReadDeadline(t time.Time) error  { return c.in.SetReadDeadline(t) }
func (c *conn) SetWriteDeadline(t time.Time) error { return c.out.SetWriteDeadline(t) }
func (c *conn) LocalAddr() net.Addr                { return address("capctl") }
func (c *conn) RemoteAddr() net.Addr               { return address(c.host.String()) }

type address string

func (a address) Network() string { return "ssh" }
func (a address) String() string  { return string(a) }

// tail keeps the last few kilobytes that were written.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailSize = 4 << 10

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - tailSize; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
