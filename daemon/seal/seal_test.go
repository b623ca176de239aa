package seal

import (
	"bytes"
	"strings"
	"testing"

	"filippo.io/age"

	"capd/testbed"
)

// What is sealed comes out again with the tools that its readers have, and its name says
// what they are.
func TestSealing(t *testing.T) {
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	to := []string{key.Recipient().String()}
	data := testbed.HalfRandom(300_000)
	for _, c := range []struct {
		name       string
		compress   bool
		recipients []string
		suffix     string
	}{
		{"nothing", false, nil, ""},
		{"compressed", true, nil, ".zst"},
		{"sealed", false, to, ".age"},
		{"both", true, to, ".zst.age"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := New(c.compress, c.recipients)
			if err != nil {
				t.Fatal(err)
			}
			if s.Suffix() != c.suffix || s.Sealed() != (c.recipients != nil) {
				t.Errorf("%q, sealed: %t", s.Suffix(), s.Sealed())
			}
			var file bytes.Buffer
			e, err := s.Begin(&file)
			if err != nil {
				t.Fatal(err)
			}
			for _, half := range [][]byte{data[:len(data)/2], data[len(data)/2:]} {
				if _, err := e.Write(half); err != nil {
					t.Fatal(err)
				}
				if err := e.Flush(); err != nil {
					t.Fatal(err)
				}
			}
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
			got := file.Bytes()
			if s.Sealed() {
				got = testbed.Unseal(t, got, key.String())
			}
			if c.compress {
				got = testbed.Unzstd(t, got, true)
			}
			if !bytes.Equal(got, data) {
				t.Errorf("%d bytes come out, %d went in", len(got), len(data))
			}
		})
	}
	var none *Sealing
	if none.Suffix() != "" || none.Sealed() {
		t.Error("without a destination something is done")
	}
}

// A recipient that cannot be read is quoted.
func TestUnfitRecipients(t *testing.T) {
	for text, why := range map[string]string{
		"soc@example.org":      "is neither an age recipient",
		"age1qqqq":             `recipient "age1qqqq"`,
		"ssh-ed25519 AAAA soc": `recipient "ssh-ed25519 AAAA soc"`,
	} {
		if _, err := New(false, []string{text}); err == nil || !strings.Contains(err.Error(), text) || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: got %v", text, err)
		}
	}
}
