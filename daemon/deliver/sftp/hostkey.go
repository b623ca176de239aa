package sftp

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"capd/daemon/deliver"
)

// hostKeys verifies a server's key during one connection. There is no way around it.
type hostKeys struct {
	address    string
	from       string   // where the right key stands, for people
	algorithms []string // asked of the server, best first
	verify     func(address string, remote net.Addr, key ssh.PublicKey) error

	kinds [][]string     // still to be asked for, while the kind of key is not known
	first error          // what the first of several kinds came to
	seen  ssh.PublicKey  // what the server has shown
	err   *deliver.Error // why it was refused
}

// kindsOfKeys are the algorithms for each kind of host key, in the order in which they
// are asked for.
func kindsOfKeys() [][]string {
	return [][]string{
		{ssh.KeyAlgoED25519},
		{ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521},
		{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256},
	}
}

// algorithmsFor gives the signature algorithms of a kind of key.
func algorithmsFor(keyType string) []string {
	if keyType == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
	}
	return []string{keyType}
}

// certAlgorithms are asked for where known_hosts trusts an authority.
func certAlgorithms() []string {
	return []string{ssh.CertAlgoED25519v01, ssh.CertAlgoECDSA256v01, ssh.CertAlgoECDSA384v01, ssh.CertAlgoECDSA521v01,
		ssh.CertAlgoRSASHA512v01, ssh.CertAlgoRSASHA256v01}
}

// hostKeys reads what the profile says about the server's key.
func (s *Store) hostKeys() (*hostKeys, error) {
	h := &hostKeys{address: s.p.Address}
	switch {
	case s.p.KnownHosts != "":
		return h, h.fromKnownHosts(s.p.KnownHosts)
	case strings.HasPrefix(s.p.HostKey, "SHA256:"):
		h.from = "host_key"
		h.kinds = kindsOfKeys()
		h.algorithms, h.kinds = h.kinds[0], h.kinds[1:]
		want := strings.TrimRight(s.p.HostKey, "=")
		h.verify = func(_ string, _ net.Addr, key ssh.PublicKey) error {
			if ssh.FingerprintSHA256(key) != want {
				return errOtherKey
			}
			return nil
		}
		return h, nil
	}
	h.from = "host_key"
	want, _, _, _, err := ssh.ParseAuthorizedKey([]byte(s.p.HostKey))
	if err != nil {
		return nil, deliver.Fail(deliver.ReasonProfile, nil, "host_key = %q is not a public key", s.p.HostKey).
			WithHint(`write "ssh-ed25519 AAAA…" or "SHA256:…"; ssh-keyscan %s shows the first, ssh-keygen -l the second`, keyscanArgs(s.p.Address))
	}
	h.algorithms = algorithmsFor(want.Type())
	h.verify = func(_ string, _ net.Addr, key ssh.PublicKey) error {
		if !bytes.Equal(key.Marshal(), want.Marshal()) {
			return errOtherKey
		}
		return nil
	}
	return h, nil
}

var errOtherKey = errors.New("another key")

func (h *hostKeys) fromKnownHosts(file string) error {
	h.from = file
	file, err := deliver.Locate("known_hosts", file)
	if err != nil {
		return err
	}
	verify, err := knownhosts.New(file)
	if errors.Is(err, fs.ErrNotExist) {
		return deliver.Fail(deliver.ReasonSecretFile, nil, "known_hosts: there is no file %s", file).
			WithHint("make it: ssh-keyscan %s > %s; then compare its keys with the server's own", keyscanArgs(h.address), file)
	}
	if err != nil {
		return deliver.Fail(deliver.ReasonSecretFile, err, "known_hosts: %s cannot be read", file)
	}
	h.verify = verify
	// A key that nobody has draws out which keys are known for the address: the server
	// is then asked for one of those kinds, and not for one that it has besides.
	var known *knownhosts.KeyError
	if errors.As(verify(h.address, &net.TCPAddr{IP: net.IPv4zero}, noKey{}), &known) {
		for _, want := range known.Want {
			for _, a := range algorithmsFor(want.Key.Type()) {
				if !slices.Contains(h.algorithms, a) {
					h.algorithms = append(h.algorithms, a)
				}
			}
		}
		// Not in the file's order: ssh-keyscan's is by chance, and the key that is shown
		// should be the one that people compare.
		order := slices.Concat(kindsOfKeys()...)
		slices.SortStableFunc(h.algorithms, func(a, b string) int {
			return cmp.Compare(slices.Index(order, a), slices.Index(order, b))
		})
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return deliver.Fail(deliver.ReasonSecretFile, err, "known_hosts: %s cannot be read", file)
	}
	if h.algorithms == nil {
		h.algorithms = slices.Concat(kindsOfKeys()...)
	}
	if bytes.Contains(text, []byte("@cert-authority")) {
		h.algorithms = append(certAlgorithms(), h.algorithms...)
	}
	return nil
}

// noKey is a public key that stands in no file.
type noKey struct{}

func (noKey) Type() string                        { return "none" }
func (noKey) Marshal() []byte                     { return []byte("none") }
func (noKey) Verify([]byte, *ssh.Signature) error { return errOtherKey }

// begin prepares for one handshake.
func (h *hostKeys) begin() { h.seen, h.err = nil, nil }

// check is the ssh.HostKeyCallback.
func (h *hostKeys) check(address string, remote net.Addr, key ssh.PublicKey) error {
	h.seen = key
	err := h.verify(address, remote, key)
	if err == nil {
		return nil
	}
	h.err = h.explain(err, key)
	return h.err
}

// nextKind turns to the next kind of key when err says that the one shown was not the
// pinned one, or that the server has none of that kind. It tells whether there is one.
func (h *hostKeys) nextKind(err error) bool {
	var at *stepError
	if !errors.As(err, &at) || at.step != deliver.StepHostKey {
		return false
	}
	if h.first == nil && h.err != nil {
		h.first = err
	}
	if len(h.kinds) == 0 {
		return false
	}
	h.algorithms, h.kinds = h.kinds[0], h.kinds[1:]
	return true
}

// best prefers the error that names a key to one that says that there is no other.
func (h *hostKeys) best(err error) error {
	if h.first != nil {
		return h.first
	}
	return err
}

// explain says which key was seen and what to do if it is the right one.
func (h *hostKeys) explain(err error, key ssh.PublicKey) *deliver.Error {
	fingerprint := ssh.FingerprintSHA256(key)
	compare := "compare it with the server's own (there: ssh-keygen -lf /etc/ssh/ssh_host_" + shortType(key) + "_key.pub)"
	var unknown *knownhosts.KeyError
	var revoked *knownhosts.RevokedError
	switch {
	case errors.As(err, &revoked):
		return deliver.Fail(deliver.ReasonHostKey, nil, "%s shows the host key %s %s, which %s line %d revokes", h.address, key.Type(), fingerprint, h.from, revoked.Revoked.Line)
	case errors.As(err, &unknown) && len(unknown.Want) == 0:
		return deliver.Fail(deliver.ReasonHostKey, nil, "the host key of %s is not known: it shows %s %s, and %s has no line for it", h.address, key.Type(), fingerprint, h.from).
			WithHint("%s, then add this line to %s: %s", compare, h.from, knownhosts.Line([]string{h.address}, key))
	case errors.As(err, &unknown):
		lines := make([]string, 0, len(unknown.Want))
		for _, w := range unknown.Want {
			lines = append(lines, fmt.Sprintf("%s in line %d", ssh.FingerprintSHA256(w.Key), w.Line))
		}
		return deliver.Fail(deliver.ReasonHostKey, nil, "the host key of %s is not the one that is known: it shows %s %s, %s has %s; somebody may be in between", h.address, key.Type(), fingerprint, h.from, strings.Join(lines, ", ")).
			WithHint("%s; if it is the right one replace the line in %s by: %s", compare, h.from, knownhosts.Line([]string{h.address}, key))
	case errors.Is(err, errOtherKey):
		return deliver.Fail(deliver.ReasonHostKey, nil, "the host key of %s is not the pinned one: it shows %s %s; somebody may be in between", h.address, key.Type(), fingerprint).
			WithHint("%s; if it is the right one write host_key = %q", compare, fingerprint)
	}
	return deliver.Fail(deliver.ReasonHostKey, err, "the host key of %s (%s %s) cannot be verified", h.address, key.Type(), fingerprint).WithHint("%s", compare)
}

// shortType is the kind of a key as it stands in the names of sshd's own files.
func shortType(key ssh.PublicKey) string {
	switch {
	case strings.Contains(key.Type(), "ed25519"):
		return "ed25519"
	case strings.Contains(key.Type(), "ecdsa"):
		return "ecdsa"
	}
	return "rsa"
}

// keyscanArgs is how ssh-keyscan wants an address.
func keyscanArgs(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil || port == "22" {
		return host
	}
	return "-p " + port + " " + host
}
