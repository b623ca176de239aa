package testbed

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Unzstd is what zstd(1) makes of a file; of one that is cut, what comes before the cut.
func Unzstd(t testing.TB, data []byte, whole bool) []byte {
	t.Helper()
	NeedCommand(t, "zstd")
	cmd := exec.Command("zstd", "-dcq", "--no-asyncio") // asynchronously, it ends before it has written all
	cmd.Stdin = bytes.NewReader(data)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); whole && err != nil {
		t.Fatalf("zstd: %v: %s", err, complaint.String())
	}
	return out.Bytes()
}

// Unseal opens a whole sealed file with age(1) and an identity, as age-keygen writes it.
func Unseal(t testing.TB, data []byte, identity string) []byte {
	t.Helper()
	NeedCommand(t, "age")
	path := filepath.Join(t.TempDir(), "key.txt")
	if err := os.WriteFile(path, []byte(identity+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("age", "-d", "-i", path)
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("age: %v", err)
	}
	return out
}

// HalfRandom gives bytes, always the same, of which every other stretch of 50,000 can be
// compressed.
func HalfRandom(size int) []byte {
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
