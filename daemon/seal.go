package daemon

import (
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"github.com/klauspost/compress/zstd"

	"capd/daemon/config"
	"capd/daemon/spool"
)

// sealing is what a destination asks to be done with segments before they touch the
// disk: compression, then encryption to its recipients.
type sealing struct {
	compress   bool
	recipients []age.Recipient
}

// newSealing reads a profile's recipients.
func newSealing(c config.Destination) (*sealing, error) {
	s := &sealing{compress: c.Compression == config.CompressionZstd}
	for _, text := range c.EncryptTo {
		r, err := parseRecipient(text)
		if err != nil {
			return nil, err
		}
		s.recipients = append(s.recipients, r)
	}
	return s, nil
}

// parseRecipient reads an age X25519 or an SSH public key.
func parseRecipient(text string) (age.Recipient, error) {
	var r age.Recipient
	var err error
	switch {
	case strings.HasPrefix(text, "age1"):
		r, err = age.ParseX25519Recipient(text)
	case strings.HasPrefix(text, "ssh-"):
		r, err = agessh.ParseRecipient(text)
	default:
		return nil, fmt.Errorf("%q is neither an age recipient (age1…) nor an SSH public key (ssh-ed25519 …, ssh-rsa …)", text)
	}
	if err != nil {
		return nil, fmt.Errorf("recipient %q: %w", text, err)
	}
	return r, nil
}

// segments names a capture's files and encodes them as the destination asks. Compression
// is left out where the disk cannot keep up: it is the dearest step, and losing packets
// for it would be wrong.
func (s *sealing) segments(format string) func(int, bool) (string, spool.Encode) {
	return func(n int, behind bool) (string, spool.Encode) {
		name := fmt.Sprintf("%04d.%s", n, format)
		compress := s != nil && s.compress && !behind
		if compress {
			name += ".zst"
		}
		if s != nil && len(s.recipients) > 0 {
			name += ".age"
		}
		if !compress && (s == nil || len(s.recipients) == 0) {
			return name, nil
		}
		return name, func(dst io.Writer) (spool.Encoder, error) { return s.encode(dst, compress) }
	}
}

// encode builds one segment's chain: zstd → age → dst.
func (s *sealing) encode(dst io.Writer, compress bool) (spool.Encoder, error) {
	e := &encoding{top: nopCloser{dst}}
	if len(s.recipients) > 0 {
		w, err := age.Encrypt(dst, s.recipients...)
		if err != nil {
			return nil, err
		}
		e.top, e.layers = w, []io.Closer{w}
	}
	if compress {
		// One frame a file: tshark reads only the first of several.
		w, err := zstd.NewWriter(e.top, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		e.top, e.zstd, e.layers = w, w, append(e.layers, w)
	}
	return e, nil
}

// encoding is a chain of writers; the last layer is the outermost.
type encoding struct {
	top    io.Writer
	zstd   *zstd.Encoder // nil without compression
	layers []io.Closer
}

// Write implements spool.Encoder.
func (e *encoding) Write(p []byte) (int, error) { return e.top.Write(p) }

// Flush implements spool.Encoder. age passes on whole chunks of 64 KiB only.
func (e *encoding) Flush() error {
	if e.zstd == nil {
		return nil
	}
	return e.zstd.Flush()
}

// Close implements spool.Encoder.
func (e *encoding) Close() error {
	for i := len(e.layers) - 1; i >= 0; i-- {
		if err := e.layers[i].Close(); err != nil {
			return err
		}
	}
	return nil
}

type nopCloser struct{ io.Writer }
