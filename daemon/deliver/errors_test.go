package deliver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"capd/ctl/wire"
)

func TestClassifyTellsWhatIsWorthAnotherTry(t *testing.T) {
	dial := func(err error) error { return &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", err)} }
	for _, test := range []struct {
		err       error
		reason    Reason
		code      string
		permanent bool
	}{
		{&net.DNSError{Err: "no such host", Name: "x"}, ReasonResolve, wire.CodeDestinationUnreachable, false},
		{dial(syscall.ECONNREFUSED), ReasonConnect, wire.CodeDestinationUnreachable, false},
		{dial(syscall.ENETUNREACH), ReasonConnect, wire.CodeDestinationUnreachable, false},
		{dial(syscall.EADDRNOTAVAIL), ReasonConnect, wire.CodeDestinationUnreachable, false},
		{fmt.Errorf("bind_device: %w", syscall.ENODEV), ReasonConnect, wire.CodeDestinationUnreachable, false},
		{syscall.ECONNRESET, ReasonCut, wire.CodeDestinationUnreachable, false},
		{fmt.Errorf("read: %w", io.ErrUnexpectedEOF), ReasonCut, wire.CodeDestinationUnreachable, false},
		{os.ErrDeadlineExceeded, ReasonStalled, wire.CodeDestinationUnreachable, false},
		{x509.UnknownAuthorityError{}, ReasonCertificate, wire.CodeDestinationRefused, true},
		{x509.CertificateInvalidError{Reason: x509.Expired}, ReasonClock, wire.CodeDestinationRefused, false},
		{tls.RecordHeaderError{Conn: &net.TCPConn{}}, ReasonCertificate, wire.CodeDestinationRefused, true},
		{tls.RecordHeaderError{Msg: "oversized record"}, ReasonCorrupt, wire.CodeDestinationRefused, false},
		{&net.OpError{Op: "remote error", Err: errors.New("tls: bad record MAC")}, ReasonCorrupt, wire.CodeDestinationRefused, false},
		{&net.OpError{Op: "remote error", Err: errors.New("tls: handshake failure")}, ReasonUnknown, wire.CodeDestinationUnreachable, false},
		{syscall.ENOSPC, ReasonNoSpace, wire.CodeNoSpace, false},
		{os.ErrPermission, ReasonPermission, wire.CodeDestinationRefused, true},
		{errors.New("something else"), ReasonUnknown, wire.CodeDestinationUnreachable, false},
		{fmt.Errorf("wrapped: %w", Fail(ReasonExists, nil, "there")), ReasonExists, wire.CodeDestinationExists, true},
	} {
		got := Classify(t.Context(), test.err, "write %s", "x")
		if got.Reason != test.reason || got.Code != test.code || got.Permanent != test.permanent || got.Message == "" {
			t.Errorf("%v: got %+v", test.err, got)
		}
	}
}

func TestClassifyPrefersTheContextsCause(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := Classify(ctx, io.EOF, "x"); got.Reason != ReasonCanceled {
		t.Errorf("got %+v", got)
	}
	ctx, cancelCause := context.WithCancelCause(t.Context())
	cancelCause(Fail(ReasonProcess, nil, "gone"))
	if got := Classify(ctx, io.EOF, "x"); got.Reason != ReasonProcess {
		t.Errorf("got %+v", got)
	}
}

func TestErrorsTravelWhole(t *testing.T) {
	e := Fail(ReasonHostKey, nil, "not known").WithHint("add it")
	data, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	var back Error
	if err := json.Unmarshal(data, &back); err != nil || back != *e {
		t.Errorf("got %+v, %v, want %+v", back, err, *e)
	}
	long := Fail(ReasonUnknown, errors.New(strings.Repeat("<html>", 100_000)), "the server says")
	if len(long.Message) > maxText+100 {
		t.Errorf("a server's page of %d bytes became the message", len(long.Message))
	}
}
