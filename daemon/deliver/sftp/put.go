package sftp

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/pkg/sftp"

	"capd/ctl/wire"
	"capd/daemon/deliver"
)

// Extensions of OpenSSH's SFTP (its file PROTOCOL, section 4).
const (
	extFsync    = "fsync@openssh.com"
	extHardlink = "hardlink@openssh.com"
	extLimits   = "limits@openssh.com"
	extStatVFS  = "statvfs@openssh.com"
)

// putting is one Put on one connection.
type putting struct {
	s      *Store
	c      *session
	o      deliver.Object
	watch  *deliver.Watch
	final  string // absolute
	folder string
	temp   string // absolute; "" while there is none
}

// run looks whether the name is there, and if not writes a temporary file, proves it,
// and gives it its name.
func (p *putting) run(ctx context.Context) (deliver.Result, error) {
	p.sweep(ctx)
	if there, err := p.look(ctx); err != nil || there {
		return p.s.result(p.o, p.final, true), err
	}
	if err := p.makeFolder(); err != nil {
		return deliver.Result{}, err
	}
	result, err := p.write(ctx)
	if clearErr := p.clear(); err == nil {
		err = clearErr // the file is there; the next try finds it, and clears up
	}
	return result, err
}

// look tells whether the final name is there already with the same contents.
func (p *putting) look(ctx context.Context) (bool, error) {
	p.watch.Touch()
	info, err := p.c.sftp.Lstat(p.final)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	exists := func(how string) error {
		return deliver.Fail(deliver.ReasonExists, nil, "%s is there already %s", p.final, how).
			WithHint("capd never replaces a file: move that one away, or put {id} into the profile's path")
	}
	if !info.Mode().IsRegular() {
		return false, exists("and is not a file")
	}
	if info.Size() != p.o.Size {
		return false, exists("with other contents")
	}
	if err := p.o.Learn(ctx, p.watch); err != nil {
		return false, err
	}
	back, err := p.readBack(ctx, p.final)
	if err != nil {
		return false, err
	}
	if !back.Is(p.o) {
		return false, exists("with other contents")
	}
	return true, nil
}

// makeFolder makes the folders of the final name.
func (p *putting) makeFolder() error {
	p.s.mu.Lock()
	known := p.s.folders[p.folder]
	p.s.mu.Unlock()
	if known {
		return nil
	}
	p.watch.Touch()
	if err := p.c.sftp.MkdirAll(p.folder); err != nil {
		return err
	}
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if len(p.s.folders) >= maxFolders {
		clear(p.s.folders)
	}
	p.s.folders[p.folder] = true
	return nil
}

// write makes the temporary file, proves it, and publishes it.
func (p *putting) write(ctx context.Context) (deliver.Result, error) {
	temp := path.Join(p.folder, "."+path.Base(p.final)+partOf(p.o.Tag)+random())
	p.s.mu.Lock()
	p.s.live[temp] = true
	p.s.mu.Unlock()
	p.temp = temp

	p.watch.Touch()
	f, err := p.c.sftp.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		p.s.mu.Lock()
		delete(p.s.folders, p.folder) // perhaps somebody has removed it
		p.s.mu.Unlock()
		return deliver.Result{}, err
	}
	src := deliver.NewSource(ctx, p.o, p.s.up, p.watch) // hashes each byte as it is sent
	// Several writes are under way at once (0: as many as the client has for a file). An
	// error may leave holes behind them: what was written is then deleted whole, and even
	// without an error it counts only once it has been read back.
	_, err = f.ReadFromWithConcurrency(src, 0)
	if err == nil {
		p.o.SHA256, err = src.Whole()
	}
	p.watch.Expect(p.s.env.Timeouts.Settle) // the server may be writing to a slow disk
	if err == nil && p.c.offers(extFsync) {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	p.watch.Expect(p.s.env.Timeouts.Progress)
	if err != nil {
		return deliver.Result{}, err
	}

	back, err := p.readBack(ctx, temp)
	if err != nil {
		return deliver.Result{}, err
	}
	if !back.Is(p.o) {
		return deliver.Result{}, deliver.Fail(deliver.ReasonCorrupt, nil, "what %s holds of %s is not what was sent: %d bytes of SHA-256 %s were read back, %d of %x were sent",
			p.s.p.Address, p.final, back.Bytes(), back.Sum(), p.o.Size, p.o.SHA256).
			WithHint("it was deleted and is sent again; if this stays, check the server's disk and memory")
	}
	return p.publish(ctx)
}

// readBack reads a file of the server.
func (p *putting) readBack(ctx context.Context, name string) (*deliver.Sink, error) {
	p.watch.Touch()
	f, err := p.c.sftp.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sink := deliver.NewSink(ctx, p.o, p.s.down, p.watch)
	if _, err := f.WriteTo(sink); err != nil && !errors.Is(err, deliver.ErrMore) {
		return nil, err
	}
	return sink, nil
}

// publish gives the temporary file its final name, which must not be there.
//
// posix-rename@openssh.com replaces what has the name, so it is not used. A hard link is
// the one step that is atomic, refuses a name that is there, and means the same on every
// server that offers it; the temporary name is removed afterwards. Where it is missing,
// or the file system has no links, SSH_FXP_RENAME follows a look at the name: version 3
// of the protocol wants it to refuse one that is there, and OpenSSH's does.
func (p *putting) publish(ctx context.Context) (deliver.Result, error) {
	p.watch.Touch()
	if p.c.offers(extHardlink) {
		err := p.c.sftp.Link(p.temp, p.final)
		if err == nil {
			return p.s.result(p.o, p.final, false), nil
		}
		if lost(err) {
			return deliver.Result{}, err
		}
	}
	if there, err := p.look(ctx); err != nil || there {
		return p.s.result(p.o, p.final, true), err
	}
	p.watch.Touch()
	if err := p.c.sftp.Rename(p.temp, p.final); err != nil {
		return deliver.Result{}, err
	}
	p.s.release(p.temp)
	p.temp = ""
	info, err := p.c.sftp.Lstat(p.final)
	if err != nil {
		return deliver.Result{}, err
	}
	if info.Size() != p.o.Size {
		return deliver.Result{}, deliver.Fail(deliver.ReasonCorrupt, nil, "%s has %d bytes after its renaming, not %d", p.final, info.Size(), p.o.Size)
	}
	return p.s.result(p.o, p.final, false), nil
}

// clear removes the temporary name, if there is one.
func (p *putting) clear() error {
	if p.temp == "" {
		return nil
	}
	defer p.s.release(p.temp)
	p.watch.Touch()
	err := p.c.sftp.Remove(p.temp)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	p.s.mu.Lock()
	delete(p.s.swept, sweepKey(p.folder, p.o.Tag))
	p.s.mu.Unlock()
	return err
}

func (s *Store) release(temp string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.live, temp)
}

// partOf is what stands between a name and the random part of its temporary name.
func partOf(tag string) string { return ".part-" + tag + "-" }

func sweepKey(folder, tag string) string { return folder + "\x00" + tag }

// sweep removes temporary files that earlier tries of the same capture have left in the
// folder: once for each folder, and again after a try that could not clear up. Others'
// files, and those of tries under way, stay.
func (p *putting) sweep(ctx context.Context) {
	key := sweepKey(p.folder, p.o.Tag)
	p.s.mu.Lock()
	if p.s.swept[key] {
		p.s.mu.Unlock()
		return
	}
	if len(p.s.swept) >= maxFolders {
		clear(p.s.swept)
	}
	p.s.swept[key] = true
	p.s.mu.Unlock()

	p.watch.Touch()
	entries, err := p.list(ctx)
	whole := err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) // a drop box may not be listed
	for _, e := range entries {
		name := path.Join(p.folder, e.Name())
		if !strings.HasPrefix(e.Name(), ".") || !strings.Contains(e.Name(), partOf(p.o.Tag)) || !e.Mode().IsRegular() {
			continue
		}
		p.s.mu.Lock()
		live := p.s.live[name]
		p.s.mu.Unlock()
		if live {
			continue
		}
		p.watch.Touch()
		if err := p.c.sftp.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			p.s.log.Warn("remove what an earlier try has left", "file", name, "err", err)
			whole = false
			continue
		}
		p.s.log.Info("removed what an earlier try has left", "file", name)
	}
	if !whole {
		p.s.mu.Lock()
		delete(p.s.swept, key)
		p.s.mu.Unlock()
	}
}

// mostListed is how long a folder's list may be, in bytes: some 25,000 names of OpenSSH's.
const mostListed = 4 << 20

var errLongList = errors.New("the list is too long")

// list gives what is in the folder, or of one with very many files some of it: they are
// all in memory at once, and a server can go on for ever.
func (p *putting) list(ctx context.Context) ([]fs.FileInfo, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p.c.stream.after(mostListed, func() { cancel(errLongList) })
	defer p.c.stream.after(0, nil)
	entries, err := p.c.sftp.ReadDirContext(ctx, p.folder)
	if err != nil && errors.Is(context.Cause(ctx), errLongList) {
		p.s.log.Warn("the folder has too many files to look at all of them for what an earlier try has left: put {id} into the profile's path", "folder", p.folder)
		err = nil
	}
	return entries, err
}

// cut says whether an error is the library's own for a connection that has ended.
func cut(err error) bool {
	return errors.Is(err, sftp.ErrSSHFxConnectionLost) || errors.Is(err, sftp.ErrSSHFxNoConnection)
}

func (s *Store) classifyCut(ctx context.Context, err error, what string) *deliver.Error {
	if ctx.Err() != nil {
		return deliver.Classify(ctx, err, "%s", what)
	}
	return deliver.Fail(deliver.ReasonCut, nil, "%s: the connection to %s was cut", what, s.p.Address).WithHint("it is tried again")
}

// lost says whether an error is about the connection rather than about the file.
func lost(err error) bool {
	var status *sftp.StatusError
	return !errors.As(err, &status) && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, fs.ErrExist)
}

// Status codes (draft-ietf-secsh-filexfer-02, section 7; those above 8 are of later
// drafts, some servers of version 3 use them).
const (
	fxFailure      = 4
	fxBadMessage   = 5
	fxUnsupported  = 8
	fxWriteProtect = 12
	fxNoSpace      = 14
	fxQuota        = 15
)

// classify says why a Put failed. OpenSSH tells a full disk only as "Failure": so the
// free space is asked for.
func (p *putting) classify(ctx context.Context, err error) *deliver.Error {
	what := "write " + p.final
	var status *sftp.StatusError
	switch {
	case cut(err):
		return p.s.classifyCut(ctx, err, what)
	case errors.Is(err, fs.ErrPermission):
		return deliver.Fail(deliver.ReasonPermission, nil, "%s: the server permits it not to %s", what, p.s.p.User).
			WithHint("give %s the right to make files and folders below %s on the server", p.s.p.User, p.folder)
	case errors.Is(err, fs.ErrNotExist):
		// A name that vanished under our hands: another try settles it.
		return deliver.Fail(deliver.ReasonUnknown, nil, "%s: a folder or file is not there", what).
			WithHint("see to it that folders can be made in %s on the server, and that nothing removes them meanwhile", p.s.p.Path)
	case errors.As(err, &status):
		return p.classifyStatus(ctx, err, status, what)
	}
	return deliver.Classify(ctx, err, "%s", what)
}

func (p *putting) classifyStatus(ctx context.Context, err error, status *sftp.StatusError, what string) *deliver.Error {
	if ctx.Err() != nil {
		return deliver.Classify(ctx, err, "%s", what)
	}
	full := status.Code == fxNoSpace || status.Code == fxQuota
	if status.Code == fxFailure && p.c.offers(extStatVFS) {
		if v, statErr := p.c.sftp.StatVFS(p.existingFolder()); statErr == nil {
			full = v.Bavail*v.Frsize < uint64(p.o.Size)+v.Frsize || v.Files > 0 && v.Favail == 0
		}
	}
	switch {
	case full:
		return deliver.Fail(deliver.ReasonNoSpace, nil, "%s: no room for %s on the server", what, wire.About(p.o.Size)).WithHint("make room there; it is tried again")
	case status.Code == fxUnsupported:
		return deliver.Fail(deliver.ReasonUnsupported, nil, "%s: the server cannot do what is needed", what)
	case status.Code == fxBadMessage, status.Code == fxWriteProtect:
		return deliver.Fail(deliver.ReasonRefused, nil, "%s: the server refuses it (%s)", what, status.Error())
	}
	return deliver.Fail(deliver.ReasonUnknown, nil, "%s: the server answers only %q", what, status.Error()).
		WithHint("the server's log may say more (disk, quota); it is tried again")
}

// existingFolder is the folder, or the nearest above it that we know to be there.
func (p *putting) existingFolder() string {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if p.s.folders[p.folder] {
		return p.folder
	}
	return p.c.home
}
