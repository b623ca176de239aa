// Package seal does what a destination asks to be done with segments before they touch the
// disk: compression, then encryption to its recipients, so that what a thief of the disk
// finds is sealed already.
package seal

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
)

// Sealing is what is done with the segments of one destination. It may be used by several
// goroutines. A nil *Sealing does nothing.
type Sealing struct {
	compress   bool
	recipients []age.Recipient
}

// New reads recipients as a profile has them: age X25519 or SSH public keys. Its errors
// quote the one that is wrong.
func New(compress bool, recipients []string) (*Sealing, error) {
	s := &Sealing{compress: compress}
	for _, text := range recipients {
		r, err := parseRecipient(text)
		if err != nil {
			return nil, err
		}
		s.recipients = append(s.recipients, r)
	}
	return s, nil
}

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

// Sealed tells whether there are recipients.
func (s *Sealing) Sealed() bool { return s != nil && len(s.recipients) > 0 }

// Suffix is what a file's name gets: ".zst", ".age", both in this order, or "" where
// nothing is to be done.
func (s *Sealing) Suffix() string {
	suffix := ""
	if s != nil && s.compress {
		suffix += ".zst"
	}
	if s.Sealed() {
		suffix += ".age"
	}
	return suffix
}

// Begin builds one segment's chain, zstd → age → dst. Its header may be written at once.
func (s *Sealing) Begin(dst io.Writer) (*Encoding, error) {
	e := &Encoding{top: dst}
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

// Whole seals data to the recipients, of which there must be some. It is not compressed.
func (s *Sealing) Whole(data []byte) ([]byte, error) {
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

// Encoding is a segment on its way: a chain of writers, of which top is the first. It is
// used by one goroutine.
type Encoding struct {
	top   io.Writer
	frame *frame         // nil without compression
	age   io.WriteCloser // nil without sealing
}

// Write takes the segment's plain bytes; it keeps none of p.
func (e *Encoding) Write(p []byte) (int, error) { return e.top.Write(p) }

// Flush passes on what was written, as far as age does: in whole chunks of 64 KiB only.
func (e *Encoding) Flush() error {
	if e.frame == nil {
		return nil
	}
	return e.frame.flush()
}

// Hurry ends compression: what comes from here on is stored. Compression is the dearest
// step, and losing packets for it would be wrong; sealing is not left out.
func (e *Encoding) Hurry() error {
	if e.frame == nil {
		return nil
	}
	return e.frame.store()
}

// Close passes on everything and ends the chain; dst stays open.
func (e *Encoding) Close() error {
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
