package seal

import (
	"bytes"
	"testing"

	"capd/testbed"
)

// A frame is one zstd frame, wherever compression ends, and is read up to where it is cut.
func TestFrame(t *testing.T) {
	data := testbed.HalfRandom(1_000_000)
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
		if got := testbed.Unzstd(t, out.Bytes(), true); !bytes.Equal(got, data) {
			t.Errorf("stored from %d on: %d bytes come out, want %d", store, len(got), len(data))
		}
		if n := bytes.Count(out.Bytes(), []byte{0x28, 0xb5, 0x2f, 0xfd}); n != 1 {
			t.Errorf("stored from %d on: %d frames", store, n)
		}
		// What was flushed can be read although the file ends there; zstd(1) itself keeps
		// back what it has decoded and not yet written when the end surprises it.
		for i := 0; i < len(flushed); i += 10 {
			if got := testbed.Unzstd(t, out.Bytes()[:flushed[i]], false); !bytes.HasPrefix(data, got) || len(got) > flushed[i+1] || len(got) < flushed[i+1]-maxRawBlock {
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
		if got := testbed.Unzstd(t, out.Bytes(), out.Len() > 0); len(got) != 0 {
			t.Errorf("%d bytes come out of an empty frame", len(got))
		}
	}
}
