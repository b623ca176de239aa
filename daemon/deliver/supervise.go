package deliver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// Restart backoff of the delivery process.
const (
	restartMin   = 100 * time.Millisecond
	restartMax   = 30 * time.Second
	restartReset = time.Minute // a process that lived this long starts the backoff anew
)

// supervise runs one delivery process after another until ctx ends.
func (c *Client) supervise(ctx context.Context) {
	// The kernel sends Pdeathsig when the thread that forked ends, not the process
	// (prctl(2)): so this goroutine keeps its thread for as long as there are children.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pause := restartMin
	for ctx.Err() == nil {
		begun := time.Now()
		err := c.runProcess(ctx)
		if ctx.Err() != nil {
			break
		}
		if time.Since(begun) > restartReset {
			pause = restartMin
		}
		c.log.Error("the delivery process is not there; another try follows", "err", err, "in", pause)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, restartMax)
	}
	c.setLink(nil, errors.New("capd is stopping"))
}

// peer is one delivery process, however it came to be.
type peer struct {
	pid    int
	socket *socket
	kill   func()       // ends it, or at least the connection, without delay
	wait   func() error // for its end, after the connection is over
}

// launch gets a delivery process: the one behind Options.Socket, else a child.
func (c *Client) launch() (*peer, error) {
	if c.o.Socket != "" {
		return connect(c.o.Socket)
	}
	parent, child, err := newSocketPair()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(c.o.Command[0], c.o.Command[1:]...)
	cmd.ExtraFiles = []*os.File{child} // becomes ChildDescriptor
	cmd.Stderr = c.o.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = cmd.Start()
	child.Close()
	if err != nil {
		parent.conn.Close()
		return nil, fmt.Errorf("start the delivery process: %w", err)
	}
	return &peer{pid: cmd.Process.Pid, socket: parent, kill: func() { cmd.Process.Kill() }, wait: cmd.Wait}, nil
}

// connect reaches a delivery process that has a unit of its own. No failure of it stands
// in a capture's way: it is tried again like any end of the process.
func connect(path string) (*peer, error) {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("reach the delivery process (systemctl status capd-deliver): %w", err)
	}
	who, err := peerOf(conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &peer{pid: int(who.Pid), socket: &socket{conn}, kill: func() { conn.Close() }, wait: func() error { return nil }}, nil
}

// runProcess gets one process, serves it until it ends, and waits for it.
func (c *Client) runProcess(ctx context.Context) error {
	p, err := c.launch()
	if err != nil {
		c.setLink(nil, err)
		return err
	}
	defer p.socket.conn.Close()
	l := &link{pid: p.pid, socket: p.socket, calls: map[uint64]*call{}}
	c.setLink(l, nil)
	ended := make(chan struct{})
	var stopping sync.WaitGroup
	stopping.Go(func() {
		select {
		case <-ended:
			return
		case <-ctx.Done():
		}
		// No more requests: the process ends those it has, and exits or hangs up.
		if err := p.socket.conn.CloseWrite(); err != nil {
			p.kill()
		}
		select {
		case <-ended:
		case <-time.After(closeWait):
			p.kill()
		}
	})

	readErr := c.read(ctx, l)
	if readErr != nil {
		p.kill() // it does not speak as agreed, or is gone already
	}
	waitErr := p.wait()
	close(ended)
	stopping.Wait()
	err = errors.Join(readErr, waitErr)
	if err == nil {
		err = errors.New("it exited")
	}
	c.setLink(nil, err)
	l.fail(err)
	return err
}

// read takes the process's messages until it closes its end, which is no error.
func (c *Client) read(ctx context.Context, l *link) error {
	flows := &flowTable{ask: c.o.Flow, socket: l.socket, open: map[uint64]*openFlow{}}
	defer flows.close()
	buf := make([]byte, maxMessage)
	for {
		m, f, err := l.socket.receive(buf)
		if f != nil {
			f.Close()
			return errors.New("the delivery process sent a descriptor")
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			return fmt.Errorf("read from the delivery process: %w", err)
		}
		switch m.Kind {
		case kindAnswer, kindProgress:
			l.answer(m)
		case kindFlow:
			if m.Flow == nil {
				return badMessage(m)
			}
			flows.begin(ctx, m.ID, *m.Flow)
		case kindFlowClosed:
			flows.end(m.ID)
		default:
			return badMessage(m)
		}
	}
}

// maxFlows bounds the connections of one process: it may have gone wrong.
const maxFlows = 4096

// flowTable holds the connections that a process has announced.
type flowTable struct {
	ask    func(context.Context, string, Flow) (func(), error)
	socket *socket
	wg     sync.WaitGroup

	mu   sync.Mutex
	open map[uint64]*openFlow
}

// openFlow is one connection. Its end may come before the answer to its beginning.
type openFlow struct {
	cancel  context.CancelFunc
	release func() // nil while Flow has not answered
	ended   bool
}

// begin asks for the connection on a goroutine of its own and answers the process.
func (t *flowTable) begin(ctx context.Context, id uint64, f messageFlow) {
	if t.ask == nil {
		t.socket.tell(message{Kind: kindFlowAnswer, ID: id})
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	entry := &openFlow{cancel: cancel}
	t.mu.Lock()
	full := len(t.open) >= maxFlows || t.open[id] != nil
	if !full {
		t.open[id] = entry
	}
	t.mu.Unlock()
	if full {
		cancel()
		t.socket.tell(message{Kind: kindFlowAnswer, ID: id, Err: Fail(ReasonProcess, nil, "the delivery process has %d connections already", maxFlows)})
		return
	}
	t.wg.Go(func() {
		defer cancel()
		answer := message{Kind: kindFlowAnswer, ID: id}
		release, err := t.ask(ctx, f.Destination, f.Flow)
		if err != nil {
			answer.Err = Fail(ReasonUnknown, err, "the connection to %s is not allowed", f.Remote)
		}
		t.mu.Lock()
		ended := entry.ended
		entry.release = release
		t.mu.Unlock()
		if ended && release != nil {
			release()
		}
		t.socket.tell(answer)
	})
}

// end releases one connection.
func (t *flowTable) end(id uint64) {
	t.mu.Lock()
	entry := t.open[id]
	delete(t.open, id)
	var release func()
	if entry != nil {
		entry.ended, release = true, entry.release
	}
	t.mu.Unlock()
	if entry == nil {
		return
	}
	entry.cancel()
	if release != nil {
		release()
	}
}

// close releases every connection of a process that is gone.
func (t *flowTable) close() {
	t.mu.Lock()
	ids := make([]uint64, 0, len(t.open))
	for id := range t.open {
		ids = append(ids, id)
	}
	t.mu.Unlock()
	for _, id := range ids {
		t.end(id)
	}
	t.wg.Wait()
}
