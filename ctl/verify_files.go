package ctl

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"capd/ctl/sshsig"
	"capd/ctl/unseal"
	"capd/ctl/wire"
	"capd/ring/pcapng"
)

// verifier holds what a verification was told.
type verifier struct {
	ctx        context.Context // ends a reading; a file of many gigabytes takes its time
	signers    *sshsig.Signers // nil: nobody was named
	identities []unseal.Identity
	now        time.Time
}

// maxManifest bounds a manifest, in bytes: one of 100,000 files has about 50 MB.
const maxManifest = 256 << 20

// verify looks at folders and files. What it finds wrong is in the report; the error is
// for arguments that make no sense.
func (v *verifier) verify(args []string) (verified, error) {
	r := verified{Captures: []verifiedCapture{}, Extra: []string{}}
	byFolder := map[string][]string{} // files that were named, by their folder
	var folders []string
	for _, arg := range args {
		info, err := os.Stat(arg)
		switch {
		case err != nil:
			return r, unreadable(err)
		case info.IsDir():
			if err := v.folder(&r, arg); err != nil {
				return r, err
			}
		default:
			dir := filepath.Dir(arg)
			if byFolder[dir] == nil {
				folders = append(folders, dir)
			}
			byFolder[dir] = append(byFolder[dir], filepath.Base(arg))
		}
	}
	for _, dir := range folders {
		if err := v.files(&r, dir, byFolder[dir]); err != nil {
			return r, err
		}
	}
	if err := v.ctx.Err(); err != nil {
		return r, err // what was not read to its end is neither good nor bad
	}
	r.OK = len(r.Extra) == 0
	for _, c := range r.Captures {
		r.OK = r.OK && c.OK
	}
	return r, nil
}

// folder verifies every capture in a folder and below it.
func (v *verifier) folder(r *verified, root string) error {
	found := map[string][]string{}
	var dirs []string
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !e.IsDir() {
			dir := filepath.Dir(path)
			if found[dir] == nil {
				dirs = append(dirs, dir)
			}
			found[dir] = append(found[dir], e.Name())
		}
		return nil
	})
	if err != nil {
		return unreadable(err)
	}
	captures := len(r.Captures)
	for _, dir := range dirs {
		taken := map[string]bool{}
		for _, name := range manifestsOf(found[dir]) {
			c := v.capture(dir, name, found[dir], nil, taken)
			r.Captures = append(r.Captures, c)
		}
		for _, name := range found[dir] {
			if !taken[name] {
				r.Extra = append(r.Extra, filepath.Join(dir, name))
			}
		}
	}
	if len(r.Captures) == captures {
		return failf("there is no %s in %s or below it", wire.ManifestName, root).
			withHint("it is delivered last of all; a capture that stayed on its box has none")
	}
	return nil
}

// files verifies some files of one folder.
func (v *verifier) files(r *verified, dir string, names []string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return unreadable(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	taken := map[string]bool{}
	manifests := manifestsOf(all)
	for _, manifest := range manifests {
		before := len(taken)
		if c := v.capture(dir, manifest, all, names, taken); len(c.Files) > 0 || c.Error != "" || len(taken) > before {
			r.Captures = append(r.Captures, c)
		}
	}
	if len(manifests) == 0 {
		return failf("there is no %s beside %s", wire.ManifestName, filepath.Join(dir, names[0])).
			withHint("keep the files of a capture in one folder, with its manifest and signature")
	}
	for _, name := range names {
		if !taken[name] {
			r.Extra = append(r.Extra, filepath.Join(dir, name))
		}
	}
	return nil
}

// manifestsOf gives the manifests among the files of a folder. A destination's path may
// put something before the name, and captures side by side.
func manifestsOf(names []string) []string {
	var found []string
	for _, name := range names {
		if strings.HasSuffix(name, wire.ManifestName) || strings.HasSuffix(name, wire.SealedManifestName) {
			found = append(found, name)
		}
	}
	return found
}

// capture verifies one capture: its manifest, and of its files those in only (nil: all).
// What belongs to it is marked as taken.
func (v *verifier) capture(dir, manifest string, names, only []string, taken map[string]bool) verifiedCapture {
	c := verifiedCapture{Manifest: filepath.Join(dir, manifest), Files: []verifiedFile{}}
	prefix, _, _ := strings.Cut(manifest, wire.ManifestName)
	wanted := func(name string) bool { return only == nil || slices.Contains(only, name) }
	if wanted(manifest) {
		taken[manifest] = true
	}
	for _, name := range []string{prefix + wire.SignatureName, manifest + ".sig"} {
		if slices.Contains(names, name) && wanted(name) {
			taken[name] = true
		}
	}
	raw, plain, err := v.readManifest(c.Manifest)
	if errors.Is(err, unseal.ErrSealed) {
		// Who cannot open it can still tell that the box made it, and no more.
		c.Error = err.Error()
		c.Signature = v.signature(dir, []string{manifest + ".sig", prefix + wire.SignatureName}, raw, nil, "")
		for _, name := range names {
			if strings.HasPrefix(name, prefix) && strings.HasSuffix(name, ".age") {
				taken[name] = true
			}
		}
		return c
	}
	var m wire.Manifest
	if err == nil {
		if err = json.Unmarshal(plain, &m); err == nil && m.Capture.ID == "" {
			err = errors.New("it describes no capture")
		}
		if err != nil {
			err = fmt.Errorf("not a manifest of capd's: %w", err)
		}
	}
	if err != nil {
		c.Error = err.Error()
		return c
	}
	c.ID, c.Name, c.Host = m.Capture.ID, m.Capture.Name, m.Capture.Host
	c.Signature = v.signature(dir, []string{manifest + ".sig", prefix + wire.SignatureName}, raw, plain, c.Host)
	c.OK = c.Signature.good()
	for _, f := range m.Capture.Files {
		name := localName(f, prefix, names)
		if !wanted(name) {
			continue
		}
		taken[name] = true
		got := v.file(filepath.Join(dir, name), f)
		c.OK = c.OK && got.good()
		c.Files = append(c.Files, got)
	}
	return c
}

// localName is the name of a file here: as at its destination, or behind the same prefix
// as the manifest, or as capd calls it.
func localName(f wire.File, prefix string, names []string) string {
	candidates := []string{prefix + f.Name, path.Base(f.URL), f.Name}
	for _, name := range candidates {
		if filepath.IsLocal(name) && !strings.ContainsAny(name, `/\`) && slices.Contains(names, name) {
			return name
		}
	}
	return path.Base(path.Clean("/" + candidates[0]))
}

// readManifest gives a manifest as it lies there, and opened.
func (v *verifier) readManifest(path string) (raw, plain []byte, err error) {
	f, err := openFile(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	if raw, err = io.ReadAll(io.LimitReader(f, maxManifest)); err != nil {
		return nil, nil, err
	}
	u, err := unseal.New(strings.NewReader(string(raw)), v.identities)
	if errors.Is(err, unseal.ErrSealed) {
		return raw, nil, fmt.Errorf("%w: --identity FILE", err)
	}
	if err != nil {
		return nil, nil, err
	}
	defer u.Close()
	plain, err = io.ReadAll(io.LimitReader(u, maxManifest))
	return raw, plain, err
}

// openFile opens a file for reading. A pipe that somebody has put in a file's place would
// be waited for without end: only files are opened.
func openFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a file", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// readSmall reads a signature.
func readSmall(path string) ([]byte, error) {
	f, err := openFile(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 64<<10))
}

// signature judges the manifest's signature, which lies under one of the names and was
// made over the manifest as it is there or as it was before it was sealed. host is the one
// that the manifest names, "" where it cannot be opened.
func (v *verifier) signature(dir string, names []string, raw, plain []byte, host string) verifiedSigner {
	var armored []byte
	var err error
	for _, name := range names {
		if armored, err = readSmall(filepath.Join(dir, name)); err == nil {
			break
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return verifiedSigner{Status: signedMissing, Error: "there is no " + names[len(names)-1] + ", which is delivered last of all"}
	}
	if err != nil {
		return verifiedSigner{Status: signedBad, Error: err.Error()}
	}
	key, err := sshsig.Check(raw, armored, wire.SignatureNamespace)
	if errors.Is(err, sshsig.ErrInvalid) {
		if again, plainErr := sshsig.Check(plain, armored, wire.SignatureNamespace); plainErr == nil {
			key, err = again, nil
		}
	}
	if err != nil {
		return verifiedSigner{Status: signedBad, Error: err.Error()}
	}
	s := verifiedSigner{Status: signedUnknown, Key: sshsig.Fingerprint(key)}
	if v.signers != nil {
		s.Status = signedUntrusted
		if name, ok, own := v.signers.Find(key, host, wire.SignatureNamespace, v.now); ok {
			s.Status, s.Signer = signedTrusted, name
			if !own && host != "" {
				s.Status = signedByOther
			}
		}
	}
	return s
}

// file verifies one file in one reading.
func (v *verifier) file(path string, f wire.File) verifiedFile {
	got := verifiedFile{Name: filepath.Base(path), Path: path}
	in, err := openFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && f.Status == wire.FileRemoved:
		got.Status, got.Detail = fileRemoved, "by capd, to keep only the newest"
		return got
	case errors.Is(err, fs.ErrNotExist):
		got.Status = fileMissing
		return got
	case err != nil:
		got.Status, got.Detail = fileUnreadable, err.Error()
		return got
	}
	defer in.Close()
	outer := sha256.New()
	counted := &countingReader{ctx: v.ctx, r: io.TeeReader(in, outer)}
	inside := v.inside(counted)
	// Whatever the inside left: the hash is over all of it.
	if _, err := io.Copy(io.Discard, counted); err != nil {
		got.Status, got.Detail = fileUnreadable, err.Error()
		return got
	}
	got.Bytes, got.Packets, got.Inside = counted.n, inside.packets, inside.looked
	got.Status = fileSame
	sum := hex.EncodeToString(outer.Sum(nil))
	changed := func(format string, args ...any) { got.Status, got.Detail = fileChanged, fmt.Sprintf(format, args...) }
	switch {
	case f.SHA256 == "":
		changed("the manifest has no hash of it")
	case uint64(got.Bytes) != f.Bytes:
		changed("%s here, %s were delivered", plural(uint64(got.Bytes), "byte", "bytes"), count(f.Bytes))
	case !strings.EqualFold(sum, f.SHA256):
		changed("SHA-256 %s, delivered was %s", sum, f.SHA256)
	case f.Cut:
		got.Status, got.Detail = fileCut, inside.cutAt()
	case !inside.looked:
		got.Detail = inside.err.Error()
	case inside.err != nil:
		changed("inside: %v", inside.err)
	case f.SHA256Plain != "" && !strings.EqualFold(inside.sum, f.SHA256Plain):
		changed("inside SHA-256 %s, captured was %s", inside.sum, f.SHA256Plain)
	case inside.packets != nil && *inside.packets != f.Packets:
		changed("%s inside, the manifest says %s", plural(*inside.packets, "packet", "packets"), count(f.Packets))
	}
	return got
}

// contents is what was found inside a file.
type contents struct {
	looked  bool // it could be opened
	sealed  bool
	opened  int64   // bytes out of the seal
	packets *uint64 // whole ones
	sum     string  // SHA-256 of the capture before compression and sealing
	err     error
}

// inside reads what a file holds. It need not read to the end of in.
func (v *verifier) inside(in io.Reader) contents {
	u, err := unseal.New(in, v.identities)
	if errors.Is(err, unseal.ErrSealed) {
		return contents{sealed: true, err: errors.New("sealed: what is inside was not looked at (--identity FILE)")}
	}
	if err != nil {
		return contents{looked: true, err: err}
	}
	defer u.Close()
	hash := sha256.New()
	n, err := countPackets(io.TeeReader(u, hash))
	return contents{looked: true, sealed: u.Sealed, opened: u.Opened(), packets: &n, sum: hex.EncodeToString(hash.Sum(nil)), err: err}
}

// cutAt tells how far a file that was cut can be read.
func (c contents) cutAt() string {
	switch {
	case !c.looked:
		return "cut by a kill; " + c.err.Error()
	case c.sealed:
		return fmt.Sprintf("cut by a kill: it opens up to byte %s, the last whole chunk of %d KiB", count(uint64(c.opened)), unseal.ChunkSize>>10)
	}
	return "cut by a kill: it opens up to the last whole packet"
}

// countPackets counts the whole packets of a capture file of either format, and the
// error that ends it, nil at its end.
func countPackets(r io.Reader) (n uint64, err error) {
	in := bufio.NewReaderSize(r, 64<<10)
	next, err := packetSteps(in)
	for err == nil {
		var packet bool
		if packet, err = next(); packet && err == nil {
			n++
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// packetSteps gives a function that reads a block or record and says whether it was a
// packet.
func packetSteps(in *bufio.Reader) (func() (bool, error), error) {
	if head, _ := in.Peek(4); string(head) == "\x0a\x0d\x0d\x0a" {
		blocks := pcapng.NewReader(in)
		return func() (bool, error) {
			b, err := blocks.Next()
			if err != nil || (b.Type != pcapng.TypePacket && b.Type != pcapng.TypeSimple) {
				return false, err
			}
			_, err = b.Packet()
			return true, err
		}, nil
	}
	records, err := pcapng.NewClassicReader(in)
	if err != nil {
		return nil, err
	}
	return func() (bool, error) { _, err := records.Next(); return true, err }, nil
}

type countingReader struct {
	ctx context.Context
	r   io.Reader
	n   int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
