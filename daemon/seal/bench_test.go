package seal

import (
	"bytes"
	"io"
	"math/rand/v2"
	"syscall"
	"testing"

	"filippo.io/age"
)

// BenchmarkSeal seals a segment of the default size in pieces of 1 MiB to one recipient and
// then to three. Beside the rate it tells bytes per second of CPU, which the target of
// 1 GB/s a core is about and other work on the machine changes less.
func BenchmarkSeal(b *testing.B) {
	const size, piece = 64 << 20, 1 << 20
	data := make([]byte, piece)
	rand.NewChaCha8([32]byte{}).Read(data)
	for _, c := range []struct {
		name       string
		recipients int
	}{{"one recipient", 1}, {"three recipients", 3}} {
		b.Run(c.name, func(b *testing.B) {
			var identity *age.X25519Identity
			var to []string
			for range c.recipients {
				var err error
				if identity, err = age.GenerateX25519Identity(); err != nil {
					b.Fatal(err)
				}
				to = append(to, identity.Recipient().String())
			}
			s, err := New(false, to)
			if err != nil {
				b.Fatal(err)
			}
			sealed := bytes.NewBuffer(make([]byte, 0, size+size/64))
			b.SetBytes(size)
			before := cpuTime(b)
			for b.Loop() {
				sealed.Reset()
				w, err := s.Begin(sealed)
				if err != nil {
					b.Fatal(err)
				}
				for range size / piece {
					if _, err := w.Write(data); err != nil {
						b.Fatal(err)
					}
				}
				if err := w.Close(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(size*float64(b.N)/float64(cpuTime(b)-before), "GB/cpu-s")
			opened, err := age.Decrypt(sealed, identity)
			if err != nil {
				b.Fatal(err)
			}
			if n, err := io.Copy(io.Discard, opened); n != size || err != nil {
				b.Errorf("%d bytes come out of what was sealed, want %d (%v)", n, size, err)
			}
		})
	}
}

// cpuTime is what this process has used, in ns.
func cpuTime(b *testing.B) int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
