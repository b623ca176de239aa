package daemon

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"

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

// segments names a capture's files and encodes them as the destination asks.
func (s *sealing) segments(format string) func(int) (string, spool.Encode) {
	return func(n int) (string, spool.Encode) {
		name := fmt.Sprintf("%04d.%s", n, format)
		if s == nil || !s.compress && len(s.recipients) == 0 {
			return name, nil
		}
		if s.compress {
			name += ".zst"
		}
		if len(s.recipients) > 0 {
			name += ".age"
		}
		return name, s.encode
	}
}

// encode builds one segment's chain: zstd → age → dst (spool.Encode).
func (s *sealing) encode(dst io.Writer) (spool.Encoder, error) {
	e := &encoding{top: dst}
	if len(s.recipients) > 0 {
		w, err := age.Encrypt(dst, s.recipients...)
		if err != nil {
			return nil, err
		}
		e.top, e.age = w, w
	}
	if s.compress {
		w, err := newFrame(e.top)
		if err != nil {
			return nil, err
		}
		e.top, e.frame = w, w
	}
	return e, nil
}

// whole seals data to the recipients, of which there must be some.
func (s *sealing) whole(data []byte) ([]byte, error) {
	var out bytes.Buffer
	w, err := age.Encrypt(&out, s.recipients...)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	if _, err := w.Write(data); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return out.Bytes(), nil
}

// encoding is a chain of writers, of which top is the first.
type encoding struct {
	top   io.Writer
	frame *frame         // nil without compression
	age   io.WriteCloser // nil without sealing
}

// Write implements spool.Encoder.
func (e *encoding) Write(p []byte) (int, error) { return e.top.Write(p) }

// Flush implements spool.Encoder. age passes on whole chunks of 64 KiB only.
func (e *encoding) Flush() error {
	if e.frame == nil {
		return nil
	}
	return e.frame.flush()
}

// Hurry implements spool.Encoder. Compression is the dearest step, and losing packets for
// it would be wrong; sealing is not left out.
func (e *encoding) Hurry() error {
	if e.frame == nil {
		return nil
	}
	return e.frame.store()
}

// Close implements spool.Encoder.
func (e *encoding) Close() error {
	if e.frame != nil {
		if err := e.frame.close(); err != nil {
			return err
		}
	}
	if e.age != nil {
		return e.age.Close()
	}
	return nil
}
