package ctl

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"capd/ctl/sshsig"
	"capd/ctl/unseal"
	"capd/ctl/wire"
)

// verifyCommand is capctl verify.
func (a *app) verifyCommand() *cobra.Command {
	var signers string
	var identities []string
	cmd := &cobra.Command{
		Use:        "verify [flags] DIR | FILE...",
		GroupID:    groupFiles,
		Short:      "files against their manifest and its signature",
		SuggestFor: []string{"check", "validate"},
		Long: `verify holds delivered files against the manifest.json that lies beside them, on any
machine and without capd: the hash and length of each as it was delivered, the hash of
what is inside a compressed or sealed one, and the number of packets, counted in the file.
Missing, changed and extra files are named. A DIR is searched for every capture below it;
of FILEs only these are looked at.

The manifest is signed by the key of the box that captured
(/var/lib/capd/signing_key.pub there). --signers says whose key is trusted: an
allowed_signers file as ssh-keygen -Y verify takes it, whose lines begin with the host
that a key may sign for, or a public key, which may sign for any. Without it only the
bytes are checked, and the signature is marked !: whoever can change the files can sign a
manifest of their own with a key of their own.

What is inside a sealed file is looked at only with --identity. A file that was sealed
while its box lost power opens up to its last whole chunk of 64 KiB, which is told.

The exit code is 0 where everything is as the manifest says and the signature fits, by a
trusted key where --signers is given, and 1 where anything is not. ssh-keygen and sha256sum do the same without capctl:

  ssh-keygen -Y verify -f allowed_signers -I edge-1 -n capd-manifest \
      -s manifest.json.sig < manifest.json
  jq -r '.capture.files[] | "\(.sha256)  \(.name)"' manifest.json | sha256sum -c`,
		Example: `  capctl verify captures/2026-11-23
  capctl verify --signers edge-1.pub captures/2026-11-23/edge-1
  capctl verify --signers allowed_signers --identity key.txt 0001.pcapng.zst.age
  capctl verify --json captures | jq -r '.captures[] | select(.ok | not) | .id'`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("capctl verify wants a DIR or a FILE").withHint("usage: %s", cmd.UseLine())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			v := &verifier{ctx: cmd.Context(), now: a.now()}
			var err error
			if signers != "" {
				if v.signers, err = readSigners(signers); err != nil {
					return err
				}
			}
			if v.identities, err = readIdentities(identities); err != nil {
				return err
			}
			report, err := v.verify(args)
			if err != nil {
				return err
			}
			if a.json {
				err = a.printJSON(report)
			} else {
				err = a.printVerified(report)
			}
			if err == nil && !report.OK {
				err = &exitError{exit: exitFailed, message: report.complaint()}
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&signers, "signers", "", "trust the keys in `FILE`: allowed_signers, or a public key")
	f.StringArrayVar(&identities, "identity", nil, "open sealed files with the age identity or SSH key in `FILE`; repeatable")
	return cmd
}

func readSigners(path string) (*sshsig.Signers, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, usagef("--signers: %v", err)
	}
	s, err := sshsig.ParseSigners(text)
	if err != nil {
		return nil, usagef("--signers: %s: %v", path, err)
	}
	return s, nil
}

func readIdentities(paths []string) ([]unseal.Identity, error) {
	var all []unseal.Identity
	for _, path := range paths {
		ids, err := unseal.Identities(path)
		if err != nil {
			return nil, usagef("--identity: %v", err).withHint("age-keygen makes one; what is sealed to ssh-ed25519 or ssh-rsa keys opens with these")
		}
		all = append(all, ids...)
	}
	return all, nil
}

// verified is what verify finds, and what it prints with --json.
type verified struct {
	OK       bool              `json:"ok"`
	Captures []verifiedCapture `json:"captures"`
	Extra    []string          `json:"extra"` // files of the folders that no manifest names
}

type verifiedCapture struct {
	OK        bool           `json:"ok"`
	Manifest  string         `json:"manifest"` // its path
	ID        string         `json:"id,omitempty"`
	Name      string         `json:"name,omitempty"`
	Host      string         `json:"host,omitempty"`
	Signature verifiedSigner `json:"signature"`
	Files     []verifiedFile `json:"files"`
	Error     string         `json:"error,omitempty"` // the manifest cannot be read
}

// Statuses of a signature.
const (
	signedTrusted   = "trusted"
	signedUnknown   = "unknown_key"   // good, and nobody was named as trusted
	signedUntrusted = "untrusted_key" // good, by a key that is not among the trusted
	signedByOther   = "other_host"    // good, by a trusted key that may not sign for the manifest's host
	signedBad       = "bad"
	signedMissing   = "missing"
)

type verifiedSigner struct {
	Status string    `json:"status"`
	Key    string    `json:"key,omitempty"` // fingerprint
	Signer string    `json:"signer,omitempty"`
	Error  string    `json:"error,omitempty"`
	At     time.Time `json:"-"`
}

// Statuses of a file.
const (
	fileSame       = "ok"
	fileCut        = "cut" // as delivered, but it was cut by a kill before
	fileChanged    = "changed"
	fileMissing    = "missing"
	fileUnreadable = "unreadable"
	fileRemoved    = "removed" // by capd itself, as the manifest says (capctl start --ring)
)

type verifiedFile struct {
	Name    string  `json:"name"`
	Path    string  `json:"path"`
	Status  string  `json:"status"`
	Bytes   int64   `json:"bytes"`
	Packets *uint64 `json:"packets"` // as counted in the file; null where that was not possible
	Inside  bool    `json:"inside"`  // what is inside was looked at
	Detail  string  `json:"detail,omitempty"`
}

func (f verifiedFile) good() bool {
	return f.Status == fileSame || f.Status == fileCut || f.Status == fileRemoved
}

func (s verifiedSigner) good() bool { return s.Status == signedTrusted || s.Status == signedUnknown }

// signersChecked tells whether a trusted key signed every capture, as --signers asks.
func (r verified) signersChecked() bool {
	return !slices.ContainsFunc(r.Captures, func(c verifiedCapture) bool { return c.Signature.Status != signedTrusted })
}

// complaint says in a line what is not as it should be.
func (r verified) complaint() string {
	counts := map[string]uint64{}
	signatures, broken := uint64(0), uint64(0)
	for _, c := range r.Captures {
		if c.Error != "" {
			broken++
		} else if !c.Signature.good() {
			signatures++
		}
		for _, f := range c.Files {
			counts[f.Status]++
		}
	}
	var parts []string
	say := func(n uint64, one, many string) {
		if n > 0 {
			parts = append(parts, plural(n, one, many))
		}
	}
	say(counts[fileChanged], "file changed", "files changed")
	say(counts[fileMissing], "file missing", "files missing")
	say(counts[fileUnreadable], "file unreadable", "files unreadable")
	say(uint64(len(r.Extra)), "extra file", "extra files")
	say(broken, "manifest unreadable", "manifests unreadable")
	say(signatures, "manifest without a good signature", "manifests without a good signature")
	return "not as delivered: " + strings.Join(parts, ", ")
}

func (a *app) printVerified(r verified) error {
	var b strings.Builder
	s := a.screenOf(a.stdout)
	write := func(mark, name, text string) {
		if text != "" {
			text = "  " + oneLine(text)
		}
		fmt.Fprintf(&b, "%s %s%s\n", mark, clean(name), text)
	}
	line := func(ok bool, name, text string) {
		if ok {
			write(s.paint(green, s.glyph("✓", "ok  ")), name, text)
		} else {
			write(s.paint(red, s.glyph("✗", "FAIL")), name, text)
		}
	}
	files, packets := uint64(0), uint64(0)
	for i, c := range r.Captures {
		if i > 0 {
			b.WriteByte('\n')
		}
		title := orElse(short(c.ID), c.Manifest)
		if c.Name != "" {
			title = clean(c.Name) + "  " + title
		}
		if c.Host != "" {
			title += "  on " + clean(c.Host)
		}
		fmt.Fprintln(&b, s.paint(bold, title))
		if c.Error != "" {
			line(false, filepath.Base(c.Manifest), c.Error)
			continue
		}
		for _, f := range c.Files {
			line(f.good(), f.Name, f.about())
			if f.good() {
				files++
			}
			if f.Packets != nil {
				packets += *f.Packets
			}
		}
		if c.Signature.Status == signedUnknown {
			write(s.paint(yellow, s.glyph("!", "warn")), filepath.Base(c.Manifest), c.Signature.about())
		} else {
			line(c.Signature.good(), filepath.Base(c.Manifest), c.Signature.about())
		}
	}
	for _, path := range r.Extra {
		line(false, path, "extra: no manifest names it")
	}
	counted := plural(files, "file", "files") + ", " + plural(packets, "packet", "packets") + " counted"
	switch {
	case r.OK && r.signersChecked():
		fmt.Fprintf(&b, "as delivered: %s\n", counted)
	case r.OK:
		fmt.Fprintf(&b, "as the manifest says: %s; who signed it was not checked\n", counted)
	}
	_, err := io.WriteString(a.stdout, b.String())
	return err
}

func (f verifiedFile) about() string {
	parts := []string{}
	if f.Status != fileSame {
		parts = append(parts, f.Status)
	}
	if f.Status == fileSame || f.Status == fileCut {
		parts = append(parts, wire.About(uint64(f.Bytes)))
	}
	if f.Packets != nil {
		parts = append(parts, plural(*f.Packets, "packet", "packets"))
	}
	if f.Detail != "" {
		parts = append(parts, f.Detail)
	}
	return strings.Join(parts, ", ")
}

func (s verifiedSigner) about() string {
	switch s.Status {
	case signedTrusted:
		return "signed by " + orElse(s.Signer, "a trusted key") + " (" + s.Key + ")"
	case signedUnknown:
		return "signed by a key that is not checked (" + s.Key + "), which anybody can make: --signers FILE names the box's, " +
			"/var/lib/capd/signing_key.pub fetched from the box itself"
	case signedUntrusted:
		return "signed by a key that is not among the trusted (" + s.Key + ")"
	case signedByOther:
		return "signed by " + s.Signer + " (" + s.Key + "), whose key may not sign for this host: its line in the --signers file begins with the hosts that it may sign for, * for any"
	case signedMissing:
		return "not signed: " + s.Error
	}
	return "the signature is bad: " + s.Error
}
