// Package unseal opens capture files as they were delivered: sealed with age, compressed
// with zstd, both, or neither. What a file is, its first bytes say and not its name.
package unseal

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"filippo.io/age/armor"
	"github.com/klauspost/compress/zstd"
)

// ErrSealed says that a file is sealed and that none of the identities opens it.
var ErrSealed = errors.New("sealed, and no identity given opens it")

// ChunkSize is the length of age's chunks before they are sealed, in bytes
// (age-encryption.org/v1, "Payload"): a sealed file that was cut opens up to its last
// whole one.
const ChunkSize = 64 << 10

// Reader reads what is inside. It is not safe for concurrent use.
type Reader struct {
	Sealed     bool // with age
	Compressed bool // with zstd

	in     *bufio.Reader
	opened int64 // bytes out of the seal
	zstd   *zstd.Decoder
}

// First bytes of each layer.
const (
	ageMagic  = "age-encryption.org/"
	zstdMagic = "\x28\xb5\x2f\xfd" // RFC 8878, section 3.1.1
)

// Identity opens what is sealed to it.
type Identity = age.Identity

// New looks at what r holds. A sealed file is opened with one of the identities, or gives
// ErrSealed (wrapped). Errors of reading r are returned as they are. The caller closes
// the Reader, and then what r comes from.
func New(r io.Reader, identities []Identity) (*Reader, error) {
	u := &Reader{in: bufio.NewReaderSize(r, 128<<10)}
	switch {
	case u.begins(ageMagic):
		u.Sealed = true
	case u.begins(armor.Header):
		u.Sealed = true
		u.in = bufio.NewReaderSize(armor.NewReader(u.in), 128<<10)
	}
	if u.Sealed {
		if len(identities) == 0 {
			return nil, ErrSealed
		}
		open, err := age.Decrypt(u.in, identities...)
		var none *age.NoIdentityMatchError
		switch {
		case errors.As(err, &none):
			return nil, fmt.Errorf("%w", ErrSealed)
		case err != nil:
			return nil, fmt.Errorf("opening the seal: %w", err)
		}
		u.in = bufio.NewReaderSize(&counter{open, &u.opened}, ChunkSize)
	}
	if u.begins(zstdMagic) {
		u.Compressed = true
		// Several frames are read one after the other, a cut one up to the cut. 128 MiB
		// bound the window that a hostile file can ask for.
		d, err := zstd.NewReader(u.in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, fmt.Errorf("opening the compression: %w", err)
		}
		u.zstd = d
	}
	return u, nil
}

// begins reports whether the next bytes are those. What cannot be read now is told by
// the reads that follow.
func (u *Reader) begins(magic string) bool {
	head, _ := u.in.Peek(len(magic))
	return string(head) == magic
}

// Read implements io.Reader. A file that was cut ends in an error, which may be any but
// io.EOF, after everything that can be had.
func (u *Reader) Read(p []byte) (int, error) {
	if u.zstd != nil {
		return u.zstd.Read(p)
	}
	return u.in.Read(p)
}

// Opened is how many bytes have come out of the seal so far, before decompression: of a
// file that was cut, those of its whole chunks.
func (u *Reader) Opened() int64 { return u.opened }

// Close frees the decoder.
func (u *Reader) Close() {
	if u.zstd != nil {
		u.zstd.Close()
	}
}

type counter struct {
	r io.Reader
	n *int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	*c.n += int64(n)
	return n, err
}

// Identities reads what opens sealed files: an age identity file (lines AGE-SECRET-KEY-…)
// or an SSH private key without a passphrase.
func Identities(path string) ([]Identity, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	const most = 1 << 20 // bytes; a file of keys is small
	text, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(text, []byte("-----BEGIN")) {
		id, err := agessh.ParseIdentity(text)
		if err != nil {
			if strings.Contains(err.Error(), "passphrase") {
				return nil, fmt.Errorf("%s: this SSH key has a passphrase; age -d -i %s opens what is sealed to it", path, path)
			}
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return []Identity{id}, nil
	}
	ids, err := age.ParseIdentities(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("%s: neither an age identity file nor an SSH private key: %w", path, err)
	}
	return ids, nil
}
