package daemon

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha512"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/crypto/ssh"

	"capd/ctl/wire"
)

// signer signs manifests with the box's own key.
type signer struct{ key ssh.Signer }

// openSigner reads the box's key from stateDir/signing_key, and makes it at the first
// start. signing_key.pub beside it is what goes into an allowed_signers file.
func openSigner(stateDir, host string) (*signer, error) {
	path := filepath.Join(stateDir, "signing_key")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		text, err = makeKey(path, "capd@"+host)
	}
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	key, err := ssh.ParsePrivateKey(text)
	if err != nil {
		return nil, fmt.Errorf("signing key %s: %w", path, err)
	}
	return &signer{key}, nil
}

func makeKey(path, comment string) ([]byte, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(private, comment)
	if err != nil {
		return nil, err
	}
	public, err := ssh.NewPublicKey(private.Public())
	if err != nil {
		return nil, err
	}
	line := ssh.MarshalAuthorizedKey(public)
	line = append(line[:len(line)-1], (" " + comment + "\n")...)
	if err := os.WriteFile(path+".pub", line, 0o644); err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(block)
	return text, os.WriteFile(path, text, 0o600)
}

// sign gives an armored SSH signature of data; PROTOCOL.sshsig in OpenSSH's source
// describes the form.
func (s *signer) sign(data []byte) ([]byte, error) {
	hash := sha512.Sum512(data)
	const magic = "SSHSIG"
	signed := ssh.Marshal(struct {
		Namespace, Reserved, HashAlgorithm string
		Hash                               []byte
	}{wire.SignatureNamespace, "", "sha512", hash[:]})
	signature, err := s.key.Sign(rand.Reader, append([]byte(magic), signed...))
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	blob := ssh.Marshal(struct {
		Version                            uint32
		PublicKey                          []byte
		Namespace, Reserved, HashAlgorithm string
		Signature                          []byte
	}{1, s.key.PublicKey().Marshal(), wire.SignatureNamespace, "", "sha512", ssh.Marshal(signature)})
	return pem.EncodeToMemory(&pem.Block{Type: "SSH SIGNATURE", Bytes: append([]byte(magic), blob...)}), nil
}
