package deliver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"unicode"

	"capd/ctl/wire"
)

// Reason is why a delivery did not happen, whatever the kind of store. Stores say the
// reason, and this file alone decides what follows from it.
type Reason string

// Reasons.
const (
	ReasonResolve     Reason = "resolve"     // the host's name has no address
	ReasonConnect     Reason = "connect"     // no connection
	ReasonCut         Reason = "cut"         // a connection ended early
	ReasonStalled     Reason = "stalled"     // nothing moved for Timeouts.Progress
	ReasonBusy        Reason = "busy"        // the server asks for patience, or has a fault of its own
	ReasonClock       Reason = "clock"       // this clock or the server's is wrong
	ReasonHostKey     Reason = "host_key"    // the server is not known by this key
	ReasonCertificate Reason = "certificate" // the server is not known by this certificate
	ReasonCredentials Reason = "credentials" // the server does not accept key or password
	ReasonSecretFile  Reason = "secret_file" // a key or password file that cannot be used
	ReasonPermission  Reason = "permission"  // not allowed there
	ReasonMissing     Reason = "missing"     // no such bucket or folder
	ReasonRefused     Reason = "refused"     // the server says no to what is asked
	ReasonUnsupported Reason = "unsupported" // the server cannot do what the profile asks
	ReasonNoSpace     Reason = "no_space"    // no room at the destination
	ReasonExists      Reason = "exists"      // the name is there with other contents
	ReasonCorrupt     Reason = "corrupt"     // what arrived is not what was sent
	ReasonLocal       Reason = "local"       // the file here cannot be read or has changed
	ReasonTooLarge    Reason = "too_large"   // more than maxSize
	ReasonProfile     Reason = "profile"     // the profile makes no sense
	ReasonCanceled    Reason = "canceled"    // by us
	ReasonProcess     Reason = "process"     // the delivery process ended
	ReasonUnknown     Reason = "unknown"     // anything else
)

// verdict is what follows from a reason.
type verdict struct {
	code      string
	permanent bool // repeating it unchanged cannot help: a person must do something
	wide      bool // concerns the whole destination, not this one file
}

// judge is the one place that tells what is worth another try.
func judge(r Reason) verdict {
	switch r {
	case ReasonResolve, ReasonConnect, ReasonCut, ReasonStalled, ReasonBusy:
		return verdict{code: wire.CodeDestinationUnreachable, wide: true}
	case ReasonClock:
		// A router without a clock of its own boots in the past and is mended by NTP.
		return verdict{code: wire.CodeDestinationRefused, wide: true}
	case ReasonHostKey, ReasonCertificate, ReasonCredentials, ReasonSecretFile, ReasonMissing, ReasonUnsupported:
		return verdict{code: wire.CodeDestinationRefused, permanent: true, wide: true}
	case ReasonPermission, ReasonRefused:
		return verdict{code: wire.CodeDestinationRefused, permanent: true}
	case ReasonNoSpace:
		return verdict{code: wire.CodeNoSpace, wide: true}
	case ReasonExists:
		return verdict{code: wire.CodeDestinationExists, permanent: true}
	case ReasonCorrupt:
		return verdict{code: wire.CodeDestinationRefused}
	case ReasonLocal, ReasonTooLarge:
		return verdict{code: wire.CodeInternal, permanent: true}
	case ReasonProfile:
		return verdict{code: wire.CodeInvalid, permanent: true, wide: true}
	case ReasonCanceled, ReasonProcess:
		return verdict{code: wire.CodeUnavailable}
	}
	return verdict{code: wire.CodeDestinationUnreachable}
}

// Error is why a delivery or a check failed, for a person and for the queue. It holds no
// secret.
type Error struct {
	Reason    Reason `json:"reason"`
	Code      string `json:"code"`    // a wire.Code… constant
	Message   string `json:"message"` // what failed, in plain words
	Hint      string `json:"hint,omitempty"`
	Permanent bool   `json:"permanent"` // only Retry, or a changed profile, can help
	Wide      bool   `json:"wide"`      // other files to this destination would fail alike

	cause error
}

// Error implements error.
func (e *Error) Error() string { return e.Message }

// Unwrap gives what lies beneath, on the side where it happened; it does not travel.
func (e *Error) Unwrap() error { return e.cause }

// WithHint sets the mend and gives the error.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// Problem is the error as it stands in a capture's record.
func (e *Error) Problem() *wire.Problem {
	return &wire.Problem{Code: e.Code, Message: e.Message, Hint: e.Hint}
}

// Fail makes an Error for a known reason. A cause may be nil; what it says is added to
// the message.
func Fail(r Reason, cause error, format string, args ...any) *Error {
	v := judge(r)
	e := &Error{Reason: r, Code: v.code, Permanent: v.permanent, Wide: v.wide, Message: fmt.Sprintf(format, args...), cause: cause}
	if cause != nil {
		e.Message += ": " + plain(cause)
	}
	return e
}

// ErrStalled is the cause with which a context ends when nothing has moved for too long.
var ErrStalled = errors.New("nothing moved for too long")

// Classify makes an Error of any error of the network or the system. What an Error says
// already stays as it is. ctx is the one the failed call ran with: its cause is the
// reason where the call says no more than that it was canceled.
func Classify(ctx context.Context, err error, format string, args ...any) *Error {
	var known *Error
	if errors.As(err, &known) {
		return known
	}
	if cause := context.Cause(ctx); cause != nil {
		if errors.As(cause, &known) {
			return known
		}
		if errors.Is(cause, ErrStalled) {
			return Fail(ReasonStalled, nil, "%s: nothing moved for too long", fmt.Sprintf(format, args...)).
				WithHint("the link or the server stands still; it is tried again")
		}
		return Fail(ReasonCanceled, cause, format, args...)
	}
	reason, hint := reasonOf(err)
	return Fail(reason, err, format, args...).WithHint("%s", hint)
}

// reasonOf knows the errors that all stores share.
func reasonOf(err error) (Reason, string) {
	var (
		dns       *net.DNSError
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		invalid   x509.CertificateInvalidError
		verify    *tls.CertificateVerificationError
		record    tls.RecordHeaderError
		op        *net.OpError
		timeout   net.Error
	)
	switch {
	case errors.As(err, &dns):
		return ReasonResolve, "check the name and this box's DNS (getent hosts NAME)"
	case errors.As(err, &authority):
		return ReasonCertificate, "name the PEM file of the authority that signed the server's certificate in ca_file"
	case errors.As(err, &host):
		return ReasonCertificate, "write the endpoint with a name that stands in the server's certificate"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return ReasonClock, "renew the server's certificate, or set this box's clock (date -u)"
	case errors.As(err, &verify), errors.As(err, &invalid):
		return ReasonCertificate, "the server's certificate must be one that this box can verify"
	case errors.As(err, &record) && record.Conn != nil: // the first record, see its comment
		return ReasonCertificate, "the server does not speak TLS on this port: check the endpoint's scheme and port"
	case errors.As(err, &record), errors.As(err, &op) && damagedRecord(op):
		return ReasonCorrupt, "bytes were changed on the way; it is sent again"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return ReasonNoSpace, "make room at the destination"
	case errors.Is(err, syscall.ECONNREFUSED):
		return ReasonConnect, "nothing listens there: check address and port, and that the server runs"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return ReasonConnect, "there is no route: check the address, and source_address and bind_device where they are set"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return ReasonConnect, "source_address must be an address of this box"
	case errors.Is(err, syscall.ENODEV):
		return ReasonConnect, "bind_device must be a network device of this box (ip link)"
	case errors.Is(err, syscall.ETIMEDOUT):
		return ReasonConnect, "no answer: check the address, and firewalls on the way"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, net.ErrClosed):
		return ReasonCut, "the connection ended early; it is tried again"
	case errors.As(err, &op) && op.Op == "dial":
		return ReasonConnect, "check address and port, and firewalls on the way"
	case errors.As(err, &timeout) && timeout.Timeout():
		return ReasonStalled, "the link or the server stands still; it is tried again"
	case errors.Is(err, fs.ErrPermission):
		return ReasonPermission, ""
	}
	return ReasonUnknown, ""
}

// damagedRecord says whether either side of a TLS connection found a record not to be what
// was sent. crypto/tls has no type for that, only a text (RFC 8446, section 6.2).
func damagedRecord(op *net.OpError) bool {
	if op.Op != "remote error" && op.Op != "local error" || op.Err == nil {
		return false
	}
	for _, alert := range []string{"bad record MAC", "record overflow", "error decoding message", "unexpected message"} {
		if strings.Contains(op.Err.Error(), alert) {
			return true
		}
	}
	return false
}

// maxText is the most bytes of a foreign text that are repeated.
const maxText = 500

// plain is an error's text without the layers that say nothing to a person.
func plain(err error) string {
	var (
		errno syscall.Errno
		dns   *net.DNSError
		path  *os.PathError
	)
	switch {
	case errors.As(err, &dns):
		return dns.Err
	case errors.As(err, &path):
		return err.Error()
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.As(err, &errno):
		return errno.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection was closed"
	}
	text := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, err.Error())
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	return strings.TrimPrefix(strings.TrimPrefix(text, "tls: "), "ssh: ")
}
