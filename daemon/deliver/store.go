// Package deliver brings finished files to a user's own server and proves that they
// are there.
//
// It has two sides. The parent's side (Client, Queue) lives in capd, which may touch the
// kernel's packet paths and therefore talks to no network. The child's side (Serve, the
// stores in deliver/sftp and deliver/s3, Dialer) lives in `capd deliver`, a process
// without privileges, the only one that opens an internet socket. Between them travel
// small JSON messages and open file descriptors over one Unix socket.
package deliver

import (
	"context"
	"io"
	"log/slog"
	"time"

	"capd/ctl/wire"
)

// Store is a place that files are delivered to. Its methods may be called from several
// goroutines at once, except Close.
//
// What every Store promises (storetest checks it against real servers):
//
//   - Put returns nil only when all bytes are at the destination under their final name
//     and have been proven: by reading them back, or by a checksum that the server
//     itself compared. Nothing is taken on trust from a count of bytes sent.
//   - Until then nothing is visible under the final name, not even for a moment, however
//     the connection or either side ends.
//   - A name that is already there is never replaced. With the same contents it counts as
//     delivered (Result.AlreadyThere): this is how a try whose answer was lost is
//     settled. With other contents the error's code is wire.CodeDestinationExists.
//   - A Put that failed may be repeated, on the same Store or another one, and leaves
//     nothing behind once it has succeeded.
//   - Every error is an *Error that says whether a repetition can help.
//   - A canceled context ends each method within seconds, a link or a server that
//     stalls within Timeouts.
type Store interface {
	// Put delivers one object. It reads o.Body only while it runs.
	Put(ctx context.Context, o Object) (Result, error)
	// Check goes through the steps of a delivery, as far as the profile's probe allows,
	// and ends at the first that fails.
	Check(ctx context.Context) wire.Check
	Challenger
	// Close ends what the Store keeps open. Calls under way fail.
	Close() error
}

// Challenger writes small files with which somebody shows that a destination is theirs:
// who can tell what such a file holds may look into the place. They are not captures:
// they get no retention, and may be deleted again. name is as Expand gives paths.
type Challenger interface {
	// WriteChallenge writes the file and reads it back. One of the same name that holds
	// the same is good; with other contents the code is wire.CodeDestinationExists.
	WriteChallenge(ctx context.Context, name string, contents []byte) error
	// ReadChallenge reads it, at most MaxChallenge bytes (ReasonTooLarge). One that is
	// not there is ReasonMissing.
	ReadChallenge(ctx context.Context, name string) ([]byte, error)
	// RemoveChallenge deletes it. One that is not there is no error.
	RemoveChallenge(ctx context.Context, name string) error
}

// MaxChallenge is the most that a challenge file holds, in bytes.
const MaxChallenge = 8 << 10

// Object is one file to be stored.
type Object struct {
	Path   string      // where, as Expand gave it
	Tag    string      // of the capture; tells temporary files of own earlier tries from others'
	Body   io.ReaderAt // its bytes 0 to Size-1 do not change while a Put runs
	Size   int64
	SHA256 [32]byte          // of those bytes; a Put that reads others fails for good. Zero: not known, a Put learns it from what it sends
	Sent   func(bytes int64) // told of progress, may be nil; bytes since the last call
}

// Result is what a delivery has proven.
type Result struct {
	URL          string `json:"url"`  // without secrets
	Name         string `json:"name"` // path or key at the destination
	Bytes        int64  `json:"bytes"`
	SHA256       string `json:"sha256"`   // of the bytes delivered, 64 hexadecimal digits
	Verified     string `json:"verified"` // wire.VerifiedReadback or wire.VerifiedChecksum
	AlreadyThere bool   `json:"already_there,omitempty"`
}

// OpenFunc makes a Store of a valid profile. It does not connect.
type OpenFunc func(Profile, Env) (Store, error)

// Env is what a Store needs besides its profile.
type Env struct {
	Dialer   *Dialer
	Timeouts Timeouts
	Logger   *slog.Logger
}

// Timeouts bound every wait. The zero value of a field means its default.
type Timeouts struct {
	Connect  time.Duration // for a name to resolve, and for a connection: 10 s
	Progress time.Duration // without a byte moving in a transfer (twice as long at most), for a handshake, for a small question's answer: 30 s
	Settle   time.Duration // for a server to answer after the last byte (it may be writing to slow disks): 2 min
}

// WithDefaults fills in what is zero.
func (t Timeouts) WithDefaults() Timeouts {
	if t.Connect == 0 {
		t.Connect = 10 * time.Second
	}
	if t.Progress == 0 {
		t.Progress = 30 * time.Second
	}
	if t.Settle == 0 {
		t.Settle = 2 * time.Minute
	}
	return t
}

// maxSize is the largest file that is delivered, in bytes: what S3 takes in one PUT
// (5 GiB, Amazon S3 user guide, "Uploading objects"). Segments are at most 1 GB.
const maxSize = 5 << 30

// Steps of a check, in their order; a store leaves out what it does not have.
const (
	StepProfile      = "profile" // key and password files, as far as they are here
	StepResolve      = "resolve"
	StepConnect      = "connect"
	StepHostKey      = "host key"
	StepCertificate  = "certificate"
	StepAuthenticate = "authenticate"
	StepVerify       = "verify" // the server can do what the profile's verify asks
	StepObjectLock   = "object lock"
	StepWrite        = "write probe"
	StepReadBack     = "read back"
	StepDelete       = "delete"
)

// Steps collects the steps of a check.
type Steps struct{ Check wire.Check }

// OK notes a step that went well.
func (s *Steps) OK(step, detail string) {
	s.Check.Steps = append(s.Check.Steps, wire.CheckStep{Step: step, OK: true, Detail: detail})
}

// Fail notes the step that ends the check, and gives the check.
func (s *Steps) Fail(step string, err *Error) wire.Check {
	s.Check.Steps = append(s.Check.Steps, wire.CheckStep{Step: step, Detail: err.Message, Hint: err.Hint})
	s.Check.OK = false
	return s.Check
}

// Done gives the check when every step went well.
func (s *Steps) Done() wire.Check {
	s.Check.OK = true
	return s.Check
}
