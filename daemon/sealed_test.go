package daemon

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"capd/ctl/wire"
	"capd/daemon/seal"
	"capd/daemon/spool"
	"capd/ring"
	"capd/testbed"
)

// A flood that compression cannot keep up with is stored from some point on: each file is
// whole, and says how much of it was not compressed.
func TestFloodIsStored(t *testing.T) {
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string][]string{"compressed": nil, "compressed and sealed": {key.Recipient().String()}} {
		t.Run(name, func(t *testing.T) {
			s, err := seal.New(true, to)
			if err != nil {
				t.Fatal(err)
			}
			memory, err := ring.Alloc(512 << 10)
			if err != nil {
				t.Fatal(err)
			}
			defer memory.Free()
			var closed []spool.Segment
			dir := t.TempDir()
			w, err := spool.NewWriter(spool.Options{Create: spool.InFolder(dir), Segment: segments(s, wire.FormatPcapng), Memory: memory.Bytes(),
				Finished: func(s spool.Segment) { closed = append(closed, s) }, Repair: repairer(wire.FormatPcapng)})
			if err != nil {
				t.Fatal(err)
			}
			data := testbed.HalfRandom(8 << 20)
			for range 2 {
				for rest := data; len(rest) > 0; rest = rest[1<<10:] { // as fast as the CPU copies
					copy(w.Reserve(1<<10), rest)
					w.Commit()
				}
				w.Rotate()
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			sum := sha256.Sum256(data)
			for _, segment := range closed[:2] {
				file, err := os.ReadFile(filepath.Join(dir, segment.Name))
				if err != nil {
					t.Fatal(err)
				}
				if to != nil {
					file = testbed.Unseal(t, file, key.String())
				}
				if got := testbed.Unzstd(t, file, true); !bytes.Equal(got, data) || segment.PlainSHA256 != hex.EncodeToString(sum[:]) {
					t.Errorf("%s: %d bytes come out, %d went in", segment.Name, len(got), len(data))
				}
				if f := wireFile(segment); f.Stored == 0 || f.Stored > uint64(len(data)) || !strings.Contains(f.Name, ".zst") {
					t.Errorf("%+v", f)
				}
			}
		})
	}
}
