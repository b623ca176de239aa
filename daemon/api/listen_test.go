package api

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"
)

// listening serves a fake daemon on a socket; served tells when it has ended. Ending it is
// the caller's.
func listening(t *testing.T, socket string) (l net.Listener, server *Server, served chan error) {
	t.Helper()
	l, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	j := &journal{}
	server = NewServer(New(fakeWithFiles(t), Access{}, j.logger()), j.logger())
	served = make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	return l, server, served
}

// Who is connected when the server shuts down is answered, also if the request comes only
// then; who sends nothing does not hold it up for longer than it is told to wait.
func TestShutdownAnswersWhoIsConnected(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, server, served := listening(t, socket)
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(time.Minute))
		return c
	}
	late, gone, silent := dial(), dial(), dial()
	for deadline := time.Now().Add(time.Minute); server.unheard.Load() < 3; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of 3 connections are known", server.unheard.Load())
		}
	}
	l.Close()
	<-served
	ctx, cancel := context.WithCancel(context.Background())
	down := make(chan error, 1)
	go func() { down <- server.Shutdown(ctx) }()
	gone.Close()
	time.Sleep(20 * time.Millisecond) // long enough for Shutdown to begin, in nearly all runs
	if _, err := io.WriteString(late, "GET /v1/status HTTP/1.1\r\nHost: capd\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(late), nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", resp, err)
	}
	resp.Body.Close()
	select {
	case err := <-down:
		t.Fatalf("it did not wait for the silent one: %v", err)
	default:
	}
	cancel()
	<-down
	server.Close()
	if _, err := silent.Read(make([]byte, 1)); err == nil {
		t.Error("the silent one is answered")
	}
	if n := server.unheard.Load(); n != 0 {
		t.Errorf("%d connections are still waited for", n)
	}
}
