// Package api is capd's control interface: HTTP and JSON on a Unix socket. It judges
// the peer of each call by its credentials, reads requests strictly, and hands them to
// a Daemon; every answer that is not a success is a wire.ErrorBody.
package api

import (
	"context"
	"os"

	"capd/ctl/wire"
)

// Daemon is what the handlers work on. It must be safe for concurrent use. A ref is a
// capture's id, an unambiguous prefix of one (4 characters or more), or its name, and
// comes unchecked from the caller. Errors are *wire.Error with their Status; any other
// error is logged and answered with 500. peerFrom tells who calls.
type Daemon interface {
	// Start begins a capture. The request has passed validateRequest; defaults are not
	// filled in.
	Start(ctx context.Context, req wire.StartRequest, by wire.Requester) (wire.Capture, error)
	// List gives captures, newest first: all, or those unfinished and the last 20.
	List(all bool) []wire.Capture
	// Get gives one capture.
	Get(ref string) (wire.Capture, error)
	// Stop ends a capture and gives its final counts; a stopped one stays as it is.
	Stop(ctx context.Context, ref string) (wire.Capture, error)
	// Retry delivers again, at once, what is not delivered.
	Retry(ctx context.Context, ref string) (wire.Capture, error)
	// Remove forgets a finished capture and deletes what is left of it here.
	Remove(ctx context.Context, ref string, force bool) error
	// OpenFile opens one file of a capture that is still here, at its start. The caller
	// closes it.
	OpenFile(ref, name string) (*os.File, wire.File, error)
	// Record notes in a capture's record what was done to it. A capture that is gone is
	// no error.
	Record(id string, a wire.Action)
	// Destinations gives the profiles, sorted by name.
	Destinations() []wire.Destination
	// CheckDestination goes through every step of a delivery with a probe. A step that
	// fails is no error but told in the Check.
	CheckDestination(ctx context.Context, name string) (wire.Check, error)
	// Ownerships lists the proofs that somebody can read a destination.
	Ownerships() []Ownership
	// Challenge writes a file with a new secret to a destination.
	Challenge(ctx context.Context, destination string) (Ownership, error)
	// Prove takes what somebody read in the challenge file of a destination.
	Prove(destination, challenge string) (Ownership, error)
	// Disown forgets a proof and deletes its challenge file.
	Disown(ctx context.Context, id string) error
	// Explain says what Start would install. The request has passed validateRequest.
	Explain(ctx context.Context, req wire.StartRequest) (wire.Explain, error)
	// Status describes the box.
	Status() wire.Status
	// Doctor looks at everything here that a capture needs; destinations are
	// CheckDestination's.
	Doctor() wire.Doctor
	// Stream copies the packets of a running capture, as pcapng. Via, where it is not nil,
	// is a TCP connection to keep out of every capture while the stream is open.
	Stream(ref string, via *wire.Flow) (Live, error)
	// StartStream begins a capture without files, which ends when the stream is closed.
	// The request has passed validateRequest.
	StartStream(ctx context.Context, req wire.StartRequest, by wire.Requester, via *wire.Flow) (wire.Capture, Live, error)
	// Events follows what happens to captures: each piece is one wire.Event as JSON, with
	// a newline.
	Events() (Live, error)
	// Metrics gives what is measured, in Prometheus' text format 0.0.4.
	Metrics() []byte
}

// Live is something that is sent as it comes. Next and Close are called by one goroutine.
type Live interface {
	// Next waits for the next piece, which is valid until the next call. io.EOF says that
	// there is no more, ctx's error that it ended first.
	Next(ctx context.Context) ([]byte, error)
	// Done is closed when nothing will be added to what can be read already.
	Done() <-chan struct{}
	// Close gives back what it holds. It must be called.
	Close()
}
