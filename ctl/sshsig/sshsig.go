// Package sshsig checks signatures that ssh-keygen -Y sign makes (PROTOCOL.sshsig in
// OpenSSH's source), and reads who may sign from an allowed_signers file (ssh-keygen(1),
// "ALLOWED SIGNERS") or a public key. Only the formats of golang.org/x/crypto/ssh are
// used, and no connection is made.
package sshsig

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/pem"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// ErrInvalid is wrapped by the errors of Check that mean: these bytes were not signed so.
var ErrInvalid = errors.New("the signature does not fit")

const magic = "SSHSIG"

// Check verifies an armored signature of message in a namespace and gives the key that
// made it. Whether that key is to be trusted is not its matter.
func Check(message, armored []byte, namespace string) (ssh.PublicKey, error) {
	block, _ := pem.Decode(armored)
	if block == nil || block.Type != "SSH SIGNATURE" || !bytes.HasPrefix(block.Bytes, []byte(magic)) {
		return nil, errors.New("not an SSH signature (-----BEGIN SSH SIGNATURE-----)")
	}
	var blob struct {
		Version                            uint32
		PublicKey                          []byte
		Namespace, Reserved, HashAlgorithm string
		Signature                          []byte
	}
	if err := ssh.Unmarshal(block.Bytes[len(magic):], &blob); err != nil {
		return nil, fmt.Errorf("damaged signature: %w", err)
	}
	if blob.Version != 1 {
		return nil, fmt.Errorf("signature of version %d, only 1 is known", blob.Version)
	}
	if blob.Namespace != namespace {
		return nil, fmt.Errorf("%w: it was made for %q, not for %q", ErrInvalid, blob.Namespace, namespace)
	}
	key, err := ssh.ParsePublicKey(blob.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("damaged signature: its key: %w", err)
	}
	if _, isCertificate := key.(*ssh.Certificate); isCertificate {
		return nil, errors.New("signed with a certificate; only plain keys are known here (ssh-keygen -Y verify knows more)")
	}
	var hash []byte
	switch blob.HashAlgorithm {
	case "sha256":
		sum := sha256.Sum256(message)
		hash = sum[:]
	case "sha512":
		sum := sha512.Sum512(message)
		hash = sum[:]
	default:
		return nil, fmt.Errorf("signature over the hash %q, only sha256 and sha512 are allowed", blob.HashAlgorithm)
	}
	var signature ssh.Signature
	if err := ssh.Unmarshal(blob.Signature, &signature); err != nil {
		return nil, fmt.Errorf("damaged signature: %w", err)
	}
	if signature.Format == ssh.KeyAlgoRSA { // SHA-1
		return nil, fmt.Errorf("%w: %s is too weak", ErrInvalid, signature.Format)
	}
	signed := ssh.Marshal(struct {
		Namespace, Reserved, HashAlgorithm string
		Hash                               []byte
	}{blob.Namespace, blob.Reserved, blob.HashAlgorithm, hash})
	if err := key.Verify(append([]byte(magic), signed...), &signature); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return key, nil
}

// Signers are the keys that are trusted.
type Signers struct{ entries []signer }

type signer struct {
	principals    string // as written; "" for a bare public key
	key           ssh.PublicKey
	comment       string
	namespaces    []string // patterns; nil = every
	after, before time.Time
}

// ParseSigners reads an allowed_signers file, or public keys as in a .pub file. Lines of
// certificate authorities are left out, as certificates are not known here. A file without
// any key is an error.
func ParseSigners(text []byte) (*Signers, error) {
	s := new(Signers)
	for n, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		e, known, err := parseSigner(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n+1, err)
		}
		if known {
			s.entries = append(s.entries, e)
		}
	}
	if len(s.entries) == 0 {
		return nil, errors.New("no key in it: a line is PRINCIPAL KEYTYPE KEY, or a public key")
	}
	return s, nil
}

func parseSigner(line string) (e signer, known bool, err error) {
	// A public key file begins with the key's type, an allowed_signers line with names.
	if key, comment, options, _, err := ssh.ParseAuthorizedKey([]byte(line)); err == nil && len(options) == 0 {
		return signer{key: key, comment: comment}, true, nil
	}
	principals, rest := cutWord(line)
	// What follows has the form of an authorized_keys line: options, key, comment.
	key, comment, options, _, err := ssh.ParseAuthorizedKey([]byte(rest))
	if err != nil {
		return e, false, errors.New("neither PRINCIPAL [OPTIONS] KEYTYPE KEY nor a public key")
	}
	e = signer{principals: strings.Trim(principals, `"`), key: key, comment: comment}
	for _, o := range options {
		name, value, _ := strings.Cut(o, "=")
		value = strings.Trim(value, `"`)
		switch strings.ToLower(name) {
		case "cert-authority":
			return e, false, nil
		case "namespaces":
			e.namespaces = strings.Split(value, ",")
		case "valid-after":
			e.after, err = parseTime(value)
		case "valid-before":
			e.before, err = parseTime(value)
		default:
			return e, false, fmt.Errorf("option %q is not known", o)
		}
		if err != nil {
			return e, false, fmt.Errorf("%s: %w", name, err)
		}
	}
	return e, true, nil
}

// cutWord parts the first word, which may be quoted, from the rest.
func cutWord(line string) (word, rest string) {
	quoted := false
	for i, r := range line {
		switch {
		case r == '"':
			quoted = !quoted
		case (r == ' ' || r == '\t') && !quoted:
			return line[:i], strings.TrimSpace(line[i:])
		}
	}
	return line, ""
}

// parseTime reads YYYYMMDD[HHMM[SS]][Z]; without Z it is local time.
func parseTime(s string) (time.Time, error) {
	zone := time.Local
	digits, utc := strings.CutSuffix(s, "Z")
	if utc {
		zone = time.UTC
	}
	for _, layout := range []string{"20060102", "200601021504", "20060102150405"} {
		if len(layout) == len(digits) {
			return time.ParseInLocation(layout, digits, zone)
		}
	}
	return time.Time{}, fmt.Errorf("%q is not a time: YYYYMMDD[HHMM[SS]][Z]", s)
}

// Find looks whether a key may sign in a namespace at a time, and gives the name under
// which it is listed: its principals, else the key's comment. own says whether it may sign
// in the name of who, as ssh-keygen -Y verify -I has it: a bare public key may in any.
func (s *Signers) Find(key ssh.PublicKey, who, namespace string, at time.Time) (name string, ok, own bool) {
	for _, e := range s.entries {
		if own {
			break
		}
		switch {
		case !bytes.Equal(e.key.Marshal(), key.Marshal()):
		case e.namespaces != nil && !slices.ContainsFunc(e.namespaces, func(p string) bool { m, _ := path.Match(p, namespace); return m }):
		case !e.after.IsZero() && at.Before(e.after), !e.before.IsZero() && !at.Before(e.before):
		default:
			name, ok, own = e.comment, true, true
			if e.principals != "" {
				name, own = e.principals, matchList(who, e.principals)
			}
		}
	}
	return name, ok, own
}

// matchList says whether a name is in a list of patterns with * and ?, of which one with !
// keeps out what it matches (ssh_config(5), "PATTERNS").
func matchList(name, list string) (in bool) {
	for pattern := range strings.SplitSeq(list, ",") {
		rest, not := strings.CutPrefix(pattern, "!")
		if !matchPattern(name, rest) {
			continue
		}
		if not {
			return false
		}
		in = true
	}
	return in
}

// matchPattern is a match of the whole name; nothing but * and ? has a meaning.
func matchPattern(name, pattern string) bool {
	literal, rest, star := strings.Cut(pattern, "*")
	if len(name) < len(literal) || !star && len(name) != len(literal) {
		return false
	}
	for i := range len(literal) {
		if literal[i] != '?' && literal[i] != name[i] {
			return false
		}
	}
	if !star {
		return true
	}
	for i := len(literal); i <= len(name); i++ {
		if matchPattern(name[i:], rest) {
			return true
		}
	}
	return false
}

// Fingerprint is how OpenSSH shows a key: SHA256:….
func Fingerprint(key ssh.PublicKey) string { return ssh.FingerprintSHA256(key) }
