package ctl

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"capd/ctl/wire"
)

// downloadCommand is capctl download.
func (a *app) downloadCommand() *cobra.Command {
	var to string
	var force bool
	cmd := &cobra.Command{
		Use:        "download [flags] CAPTURE",
		GroupID:    groupFiles,
		Short:      "fetch the files that are still on the box",
		SuggestFor: []string{"fetch", "cp", "pull"},
		Long: `download fetches the files of a capture that are still on the box into a folder and prints
the name of each. Where capd has recorded a hash (it takes that of a plain file when it
delivers it) the file is checked against it. Files that were delivered are no longer there:
capctl show tells where they are.

A file appears under its name only when it is whole, readable by you alone. One that is
there already is left alone when it is the same; another is replaced only with --force, so
that a download can be repeated. With -o - the
only file of a capture goes to stdout, into a pipe or a file. From several boxes (-H) the
files come into DIR/host.`,
		Example: `  capctl download 0f8c -o captures/0f8c
  capctl download voip-drops -o - | tshark -r -
  capctl download voip-drops -o - | wireshark -k -i -`,
		Args:              exactly("CAPTURE"),
		ValidArgsFunction: a.completeCapture(1, func(c wire.Capture) bool { here, _ := filesHere(c); return len(here) > 0 }),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.download(cmd.Context(), args[0], to, force)
		},
	}
	cmd.Flags().StringVarP(&to, "output", "o", ".", "put them into `DIR`, made where it is not there; -: write to stdout")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "replace files that are there")
	return cmd
}

func (a *app) download(ctx context.Context, ref, to string, force bool) error {
	if to == "-" && a.screenOf(a.stdout).terminal {
		return usagef("a capture is not written to a terminal").withHint("give it to a program or a file: capctl download %s -o - | tshark -r -", ref)
	}
	if to == "-" && a.json {
		return usagef("--json and -o - both want stdout").withHint("choose one of them")
	}
	if a.box != nil && a.box.many {
		if to == "-" {
			return usagef("one stream cannot hold the files of several boxes").withHint("save them with -o DIR and join them: capctl merge -o - DIR")
		}
		to = filepath.Join(to, a.box.label)
	}
	quick, cancel := a.soon(ctx)
	c, err := a.client().Get(quick, ref)
	cancel()
	if err != nil {
		return err
	}
	here, open := filesHere(c)
	if open > 0 {
		a.note("%s still being written; capctl stop %s ends that", plural(uint64(open), "file is", "files are"), short(c.ID))
	}
	if len(here) == 0 {
		return nothingHere(c, open)
	}
	for _, f := range here {
		if err := safeName(f.Name); err != nil {
			return err
		}
	}
	if to == "-" {
		if len(here) > 1 {
			return failf("%s has %d files on the box, and one stream can hold one", ref, len(here)).
				withHint("save them with -o DIR and join them: capctl merge -o - DIR")
		}
		return a.fetch(ctx, c.ID, here[0], a.stdout)
	}
	if err := os.MkdirAll(to, 0o777); err != nil {
		return failf("making the folder: %v", err)
	}
	return a.save(ctx, c, here, to, force)
}

// wanted gives those files that a folder does not have yet, or with force all of them. A
// file of the same name that is another is an error.
func (a *app) wanted(ctx context.Context, c wire.Capture, files []wire.File, dir string, force bool) (wanted []wire.File, err error) {
	for _, f := range files {
		path := filepath.Join(dir, f.Name)
		_, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && force {
			wanted = append(wanted, f)
			continue
		}
		if err != nil {
			return nil, failf("looking for %s: %v", path, err)
		}
		same, err := a.sameFile(ctx, c.ID, f, path)
		if err != nil {
			return nil, err
		}
		if !same {
			return nil, failf("%s is there already", path).
				withHint("choose another folder (-o %s), or replace it with --force", short(c.ID))
		}
		a.note("%s is there already, and the same", path)
	}
	return wanted, nil
}

// save fetches files into a folder, after a look at all of them for names that are taken.
func (a *app) save(ctx context.Context, c wire.Capture, files []wire.File, dir string, force bool) error {
	wanted, err := a.wanted(ctx, c, files, dir, force)
	if err != nil {
		return err
	}
	saved := []wire.File{}
	total, failed := uint64(0), exitDone
	for _, f := range wanted {
		path := filepath.Join(dir, f.Name)
		err := a.saveFile(ctx, c.ID, f, path, force)
		if err != nil && len(wanted) > 1 && isAnswer(err) {
			// It was delivered meanwhile, or is damaged: that concerns this file alone.
			if exit := a.report(fmt.Errorf("%s: %w", f.Name, err)); failed == exitDone {
				failed = exit
			}
			continue
		}
		if err != nil {
			return err
		}
		saved = append(saved, f)
		total += f.Bytes
		if !a.json {
			if _, err := fmt.Fprintln(a.stdout, path); err != nil {
				return err
			}
		}
	}
	if a.json {
		if err := a.printJSON(saved); err != nil {
			return err
		}
	} else {
		a.note("%s, %s", plural(uint64(len(saved)), "file", "files"), wire.About(total))
	}
	if failed != exitDone {
		return &exitError{exit: failed}
	}
	return nil
}

// saveFile fetches one file to a temporary name beside path and renames it when it is
// whole. What goes wrong, or a signal, leaves nothing behind.
func (a *app) saveFile(ctx context.Context, id string, f wire.File, path string, force bool) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".capctl-*.part") // mode 0600: packets are private
	if err != nil {
		return failf("making a file: %v", err)
	}
	defer func() {
		tmp.Close()
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	if err := a.fetch(ctx, id, f, tmp); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return failf("writing %s: %v", path, err)
	}
	if err := tmp.Close(); err != nil {
		return failf("writing %s: %v", path, err)
	}
	if force {
		err = os.Rename(tmp.Name(), path)
	} else {
		err = renameNew(tmp.Name(), path)
	}
	if errors.Is(err, fs.ErrExist) {
		return failf("%s has appeared meanwhile", path).withHint("choose another folder, or replace it with --force")
	}
	if err != nil {
		return failf("renaming to %s: %v", path, err)
	}
	return nil
}

// renameNew renames without replacing: renameat2(2) with RENAME_NOREPLACE, or where the
// file system lacks that (EINVAL: NFS and others) by a hard link.
func renameNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	if err := os.Link(from, to); err != nil {
		return err
	}
	return os.Remove(from)
}

// fetch copies a file's bytes and compares them with what the record says of them.
func (a *app) fetch(ctx context.Context, id string, f wire.File, to io.Writer) error {
	r, _, err := a.client().File(ctx, id, f.Name)
	if err != nil {
		return err
	}
	defer r.Close()
	hash := sha256.New()
	if _, err := io.Copy(io.MultiWriter(to, hash), r); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return failf("fetching %s: %v", f.Name, err)
	}
	if sum := hex.EncodeToString(hash.Sum(nil)); !hashKnown(f, sum) {
		return failf("%s arrived with the hash %s, and capd recorded %s", f.Name, sum, orElse(f.SHA256, f.SHA256Plain)).
			withHint("try again; where that does not help, the file on the box is damaged: journalctl -u capd")
	}
	return nil
}

// hashKnown reports whether a file's hash is one that the record allows. Before its
// delivery a file may lie on the box as it will be delivered or as it was captured.
func hashKnown(f wire.File, sum string) bool {
	if f.SHA256 == "" && f.SHA256Plain == "" {
		return true
	}
	return strings.EqualFold(sum, f.SHA256) || strings.EqualFold(sum, f.SHA256Plain)
}

// sameFile reports whether what is at path has the contents of a file on the box: by the
// hash that the record names, else by fetching the file and comparing. The error is that of
// fetching.
func (a *app) sameFile(ctx context.Context, id string, f wire.File, path string) (bool, error) {
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || uint64(info.Size()) != f.Bytes {
		return false, nil
	}
	in, err := os.Open(path)
	if err != nil {
		return false, nil
	}
	defer in.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, in); err != nil {
		return false, nil
	}
	sum := hex.EncodeToString(hash.Sum(nil))
	if f.SHA256 == "" && f.SHA256Plain == "" {
		hash.Reset()
		if err := a.fetch(ctx, id, f, hash); err != nil {
			return false, err
		}
		return hex.EncodeToString(hash.Sum(nil)) == sum, nil
	}
	return hashKnown(f, sum), nil
}

// filesHere gives the files that can be fetched, and how many are still being written.
func filesHere(c wire.Capture) (here []wire.File, open int) {
	for _, f := range c.Files {
		switch f.Status {
		case wire.FileSpooled, wire.FileUploading, wire.FileFailed:
			here = append(here, f)
		case wire.FileOpen:
			open++
		}
	}
	return here, open
}

// nothingHere says why there is nothing to fetch.
func nothingHere(c wire.Capture, open int) error {
	e := failf("%s has no files on the box", short(c.ID))
	switch {
	case open > 0:
		return e.withHint("capctl stop %s finishes the file that is being written", short(c.ID))
	case c.Stream:
		return e.withHint("it went live to whoever started it, and nothing is kept")
	case len(c.Files) == 0:
		return e.withHint("it has not captured any packet: capctl show %s", short(c.ID))
	}
	for _, f := range c.Files {
		if f.URL != "" {
			return e.withHint("delivered: %s (capctl show %s lists all)", f.URL, short(c.ID))
		}
	}
	return e.withHint("they were removed: capctl show %s", short(c.ID))
}

// safeName refuses a name that would lead out of the folder or hide in it: it comes from
// the other side, which need not be this machine.
func safeName(name string) error {
	if !filepath.IsLocal(name) || strings.ContainsAny(name, "/\\") || strings.HasPrefix(name, ".") || clean(name) != name {
		return failf("capd names a file %q, which is no name for one here", name)
	}
	return nil
}
