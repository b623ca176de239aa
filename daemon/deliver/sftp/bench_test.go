package sftp_test

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"capd/daemon/deliver"
	"capd/daemon/deliver/sftp"
	"capd/testbed"
)

// BenchmarkPut delivers a segment of the default size to sshd over loopback, two at a time
// as a profile does by default: written, read back, proven, named. Besides the rate it tells
// the CPU of this process, in ns a byte delivered. Put TMPDIR where the disk is not what is
// measured.
func BenchmarkPut(b *testing.B) {
	const size = 64_000_000
	server := testbed.NewSSHD(b)
	file, err := os.Create(filepath.Join(b.TempDir(), "segment"))
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{}).Read(data)
	if _, err := file.Write(data); err != nil {
		b.Fatal(err)
	}
	p := profile(server)
	p.Path = "{date}/{file}"
	p = p.WithDefaults()
	st, err := sftp.Open(p, deliver.Env{Dialer: deliver.NewDialer(p, deliver.Timeouts{}, nil), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	defer st.Close()
	names := make(chan string)
	var workers sync.WaitGroup
	for range deliver.DefaultConcurrency {
		workers.Go(func() {
			for name := range names {
				result, err := st.Put(b.Context(), deliver.Object{Path: name, Tag: "benchmark", Body: file, Size: size})
				if err != nil || result.Bytes != size {
					b.Errorf("put %s: %+v, %v", name, result, err)
				}
				if err := os.Remove(filepath.Join(server.Root, name)); err != nil {
					b.Error(err)
				}
			}
		})
	}
	b.SetBytes(size)
	b.ResetTimer()
	before := cpuTime(b)
	for i := range b.N {
		names <- fmt.Sprintf("2026-11-23/%d.pcapng", i)
	}
	close(names)
	workers.Wait()
	b.StopTimer()
	b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N)/size, "cpu-ns/byte")
}

// cpuTime is what this process has used, in ns.
func cpuTime(b *testing.B) int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
