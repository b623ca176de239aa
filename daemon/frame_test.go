package daemon

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"capd/ctl/wire"
	"capd/daemon/spool"
	"capd/ring"
	"capd/testbed"
)

// unzstd is what zstd(1) makes of a file; of one that is cut, what comes before the cut.
func unzstd(t *testing.T, data []byte, whole bool) []byte {
	t.Helper()
	testbed.NeedCommand(t, "zstd")
	cmd := exec.Command("zstd", "-dcq", "--no-asyncio") // asynchronously, it ends before it has written all
	cmd.Stdin = bytes.NewReader(data)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); whole && err != nil {
		t.Fatalf("zstd: %v: %s", err, complaint.String())
	}
	return out.Bytes()
}

// halfRandom gives bytes of which every other stretch of 50,000 can be compressed.
func halfRandom(size int) []byte {
	rnd := rand.New(rand.NewPCG(5, 6))
	data := make([]byte, size)
	for i := range data {
		if i/50_000%2 == 0 {
			data[i] = byte(rnd.Uint32())
		} else {
			data[i] = byte(i % 7)
		}
	}
	return data
}

// A frame is one zstd frame, wherever compression ends, and is read up to where it is cut.
func TestFrame(t *testing.T) {
	data := halfRandom(1_000_000)
	for _, store := range []int{-1, 0, 1, 70_000, 131_072, 999_999, 1_000_000} {
		var out bytes.Buffer
		f, err := newFrame(&out)
		if err != nil {
			t.Fatal(err)
		}
		const part = 30_011
		var flushed []int // out's length after each part
		for at := 0; at < len(data); {
			end := min(len(data), at+part)
			if store >= at {
				if store == at {
					if err := f.store(); err != nil {
						t.Fatal(err)
					}
				} else {
					end = min(end, store)
				}
			}
			if n, err := f.Write(data[at:end]); n != end-at || err != nil {
				t.Fatalf("wrote %d of %d: %v", n, end-at, err)
			}
			if err := f.flush(); err != nil {
				t.Fatal(err)
			}
			flushed = append(flushed, out.Len(), end)
			at = end
		}
		if err := f.close(); err != nil {
			t.Fatal(err)
		}
		if got := unzstd(t, out.Bytes(), true); !bytes.Equal(got, data) {
			t.Errorf("stored from %d on: %d bytes come out, want %d", store, len(got), len(data))
		}
		if n := bytes.Count(out.Bytes(), []byte{0x28, 0xb5, 0x2f, 0xfd}); n != 1 {
			t.Errorf("stored from %d on: %d frames", store, n)
		}
		// What was flushed can be read although the file ends there; zstd(1) itself keeps
		// back what it has decoded and not yet written when the end surprises it.
		for i := 0; i < len(flushed); i += 10 {
			if got := unzstd(t, out.Bytes()[:flushed[i]], false); !bytes.HasPrefix(data, got) || len(got) > flushed[i+1] || len(got) < flushed[i+1]-maxRawBlock {
				t.Errorf("stored from %d on: cut at %d, %d bytes come out of %d", store, flushed[i], len(got), flushed[i+1])
			}
		}
	}
}

func TestEmptyFrame(t *testing.T) {
	for _, store := range []bool{false, true} {
		var out bytes.Buffer
		f, err := newFrame(&out)
		if err == nil && store {
			err = f.store()
		}
		if err == nil {
			err = f.close()
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := unzstd(t, out.Bytes(), out.Len() > 0); len(got) != 0 {
			t.Errorf("%d bytes come out of an empty frame", len(got))
		}
	}
}

// A flood that compression cannot keep up with is stored from some point on: each file is
// whole, and says how much of it was not compressed.
func TestFloodIsStored(t *testing.T) {
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]*sealing{
		"compressed":            {compress: true},
		"compressed and sealed": {compress: true, recipients: []age.Recipient{key.Recipient()}},
	} {
		t.Run(name, func(t *testing.T) {
			memory, err := ring.Alloc(512 << 10)
			if err != nil {
				t.Fatal(err)
			}
			defer memory.Free()
			var segments []spool.Segment
			dir := t.TempDir()
			w, err := spool.NewWriter(spool.Options{Create: spool.InFolder(dir), Segment: s.segments(wire.FormatPcapng), Memory: memory.Bytes(),
				Finished: func(s spool.Segment) { segments = append(segments, s) }, Repair: repairer(wire.FormatPcapng)})
			if err != nil {
				t.Fatal(err)
			}
			data := halfRandom(8 << 20)
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
			for _, segment := range segments[:2] {
				file, err := os.ReadFile(filepath.Join(dir, segment.Name))
				if err != nil {
					t.Fatal(err)
				}
				if s.recipients != nil {
					file = unseal(t, file, key)
				}
				if got := unzstd(t, file, true); !bytes.Equal(got, data) || segment.PlainSHA256 != hex.EncodeToString(sum[:]) {
					t.Errorf("%s: %d bytes come out, %d went in", segment.Name, len(got), len(data))
				}
				if f := wireFile(segment); f.Stored == 0 || f.Stored > uint64(len(data)) || !strings.Contains(f.Name, ".zst") {
					t.Errorf("%+v", f)
				}
			}
		})
	}
}

// unseal opens a whole sealed file with age(1).
func unseal(t *testing.T, data []byte, key *age.X25519Identity) []byte {
	t.Helper()
	testbed.NeedCommand(t, "age")
	identity := filepath.Join(t.TempDir(), "key.txt")
	if err := os.WriteFile(identity, []byte(key.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("age", "-d", "-i", identity)
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("age: %v", err)
	}
	return out
}
