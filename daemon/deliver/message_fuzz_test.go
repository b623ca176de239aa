package deliver

import (
	"context"
	"log/slog"
	"testing"
)

// messages are seeds: one of each kind, and some that make no sense.
var messages = []string{
	`{"kind":"put","id":1,"profile":{"name":"x","type":"sftp"},"put":{"path":"a","tag":"b","size":3}}`,
	`{"kind":"check","id":2,"profile":{"name":"x","type":"ftp"}}`,
	`{"kind":"challenge","id":3,"profile":{"name":"x","type":"s3"},"file":{"do":"read","path":"a"}}`,
	`{"kind":"cancel","id":2}`,
	`{"kind":"answer","id":1,"result":{"url":"sftp://h/a","bytes":3},"error":null}`,
	`{"kind":"answer","id":1,"error":{"reason":"cut","code":"x","message":"y","permanent":true}}`,
	`{"kind":"progress","id":1,"bytes":-1}`,
	`{"kind":"flow","id":1,"flow":{"destination":"x","local":"10.0.0.1:1","remote":"[::1%lo]:22"}}`,
	`{"kind":"flow","id":1}`,
	`{"kind":"flow_answer","id":9}`,
	`{"kind":"flow_closed","id":18446744073709551615}`,
	`{"kind":"","id":-1}`, `[]`, `null`, `{`, "\x00",
}

// spoken gives a socket from whose other end some messages have come, and then its end.
func spoken(t *testing.T, data ...[]byte) *socket {
	t.Helper()
	here, file, err := newSocketPair()
	if err != nil {
		t.Fatal(err)
	}
	there, err := newSocket(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range data {
		if _, err := there.conn.Write(d); err != nil {
			t.Fatal(err)
		}
	}
	if err := there.conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { here.conn.Close(); there.conn.Close() })
	return here
}

// Whatever the other side says, the delivery process answers or ends, and does not break.
func FuzzServe(f *testing.F) {
	for i, m := range messages {
		f.Add([]byte(m), []byte(messages[(i+1)%len(messages)]))
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		if len(first) == 0 || len(second) == 0 || len(first)+len(second) > maxMessage {
			return // an empty datagram reads as the end
		}
		_ = serve(context.Background(), spoken(t, first, second), ServeOptions{Logger: slog.New(slog.DiscardHandler)})
	})
}

// Whatever a delivery process says, which talks to the network and may be somebody else's
// by now, capd is not broken by it, and leaves no flow behind.
func FuzzClient(f *testing.F) {
	for i, m := range messages {
		f.Add([]byte(m), []byte(messages[(i+1)%len(messages)]))
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		if len(first) == 0 || len(second) == 0 || len(first)+len(second) > maxMessage {
			return
		}
		open := make(chan int, 4)
		c := &Client{o: Options{Flow: func(context.Context, string, Flow) (func(), error) {
			open <- 1
			return func() { open <- -1 }, nil
		}}}
		l := &link{socket: spoken(t, first, second), calls: map[uint64]*call{}}
		answers := l.register(1, func(int64) {})
		_ = c.read(context.Background(), l)
		close(open)
		left := 0
		for n := range open {
			left += n
		}
		if left != 0 || len(answers) > 1 {
			t.Errorf("%d flows are left, %d answers came", left, len(answers))
		}
	})
}
