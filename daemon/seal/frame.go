package seal

import (
	"io"

	"github.com/klauspost/compress/zstd"
)

// frame writes one zstd frame (RFC 8878), of which the rest can be stored instead of
// compressed at any point: tshark reads only the first of several frames, so a file must
// stay one. It has no checksum of its own: the manifest has the plain bytes' SHA-256.
type frame struct {
	dst    io.Writer
	zstd   *zstd.Encoder
	begun  bool // zstd has got bytes: the frame's header is written, or will be by a flush
	hurry  bool // store is due
	stored bool // it was done: zstd is not used any more
}

func newFrame(dst io.Writer) (*frame, error) {
	// Concurrency 1: no goroutine of its own, and dst is written to by Write and flush only.
	z, err := zstd.NewWriter(dst, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, err
	}
	return &frame{dst: dst, zstd: z}, nil
}

// maxRawBlock is the most that a block may hold, in bytes (RFC 8878, 3.1.1.2.4); the
// window that SpeedFastest announces is larger.
const maxRawBlock = 128 << 10

// Write implements io.Writer.
func (f *frame) Write(p []byte) (int, error) {
	if !f.stored {
		head := p
		if f.hurry {
			head = p[:min(len(p), maxRawBlock)] // something has to call for the frame's header
		}
		n, err := f.zstd.Write(head)
		f.begun = f.begun || n > 0
		if err != nil || !f.hurry || n == 0 {
			return n, err
		}
		if err := f.store(); err != nil {
			return n, err
		}
		rest, err := f.Write(p[n:])
		return n + rest, err
	}
	total := len(p)
	for len(p) > 0 {
		part := p[:min(len(p), maxRawBlock)]
		if err := f.rawHeader(len(part), false); err != nil {
			return total - len(p), err
		}
		if _, err := f.dst.Write(part); err != nil {
			return total - len(p), err
		}
		p = p[len(part):]
	}
	return total, nil
}

// rawHeader writes the head of a block whose size bytes stand there as they are: three
// bytes, little endian: last, type 0, size (RFC 8878, 3.1.1.2).
func (f *frame) rawHeader(size int, last bool) error {
	head := uint32(size) << 3
	if last {
		head |= 1
	}
	_, err := f.dst.Write([]byte{byte(head), byte(head >> 8), byte(head >> 16)})
	return err
}

// flush passes on what was written.
func (f *frame) flush() error {
	if f.stored {
		return nil
	}
	return f.zstd.Flush()
}

// store ends compression: what comes from here on is stored.
func (f *frame) store() error {
	f.hurry = true
	if !f.begun || f.stored {
		return nil
	}
	f.stored = true
	return f.zstd.Flush() // it is not closed: that would end the frame
}

// close ends the frame.
func (f *frame) close() error {
	if f.stored {
		return f.rawHeader(0, true)
	}
	return f.zstd.Close()
}
