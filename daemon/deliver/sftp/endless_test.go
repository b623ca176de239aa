package sftp_test

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync/atomic"
	"testing"
	"time"

	pkgsftp "github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"capd/daemon/deliver"
	"capd/daemon/deliver/storetest"
)

// endless is a server whose files or folders have no end, or nearly: they end far beyond
// what anybody should read of them, so that a test that fails ends, too.
type endless struct {
	pkgsftp.FileReader
	pkgsftp.FileLister
	files, folders bool
	served         atomic.Int64 // bytes of files, entries of folders
}

const (
	farFile   = 1 << 30
	farFolder = 3_000_000
)

// Fileread implements pkgsftp.FileReader.
func (e *endless) Fileread(r *pkgsftp.Request) (io.ReaderAt, error) {
	if !e.files {
		return e.FileReader.Fileread(r)
	}
	return e, nil
}

// ReadAt implements io.ReaderAt.
func (e *endless) ReadAt(b []byte, off int64) (int, error) {
	if off >= farFile {
		return 0, io.EOF
	}
	e.served.Add(int64(len(b)))
	return len(b), nil
}

// Filelist implements pkgsftp.FileLister.
func (e *endless) Filelist(r *pkgsftp.Request) (pkgsftp.ListerAt, error) {
	if !e.folders || r.Method != "List" {
		return e.FileLister.Filelist(r)
	}
	return e, nil
}

// ListAt implements pkgsftp.ListerAt.
func (e *endless) ListAt(entries []os.FileInfo, off int64) (int, error) {
	if off >= farFolder {
		return 0, io.EOF
	}
	for i := range entries {
		entries[i] = entry(fmt.Sprintf("%07d.pcapng", off+int64(i)))
	}
	e.served.Add(int64(len(entries)))
	return len(entries), nil
}

// entry is a file of 1 byte.
type entry string

func (e entry) Name() string     { return string(e) }
func (entry) Size() int64        { return 1 }
func (entry) Mode() fs.FileMode  { return 0o600 }
func (entry) ModTime() time.Time { return time.Unix(1, 0) }
func (entry) IsDir() bool        { return false }
func (entry) Sys() any           { return nil }

// serveEndless gives a profile for the server.
func serveEndless(t *testing.T, e *endless) deliver.Profile {
	memory := pkgsftp.InMemHandler()
	e.FileReader, e.FileLister = memory.FileGet, memory.FileList
	handlers := pkgsftp.Handlers{FileGet: e, FilePut: memory.FilePut, FileCmd: memory.FileCmd, FileList: e}
	address, hostKey := passwordServerOf(t, false, func(channel ssh.Channel) (subsystem, error) {
		return pkgsftp.NewRequestServer(channel, handlers), nil
	})
	return deliver.Profile{Name: "x", Type: deliver.TypeSFTP, Address: address, User: "capd", HostKey: hostKey,
		PasswordFile: write(t, "password", "open sesame\n", 0o600)}
}

// A server that gives more than it was sent, without end, is found out at the first byte
// too many.
func TestAFileWithoutEnd(t *testing.T) {
	e := &endless{files: true}
	st := open(t, serveEndless(t, e))
	o, _ := storetest.Object("x/0001.pcapng", 100_000)
	_, err := st.Put(t.Context(), o)
	storetest.Failed(t, err, deliver.ReasonCorrupt)
	if most := o.Size + 8<<20; e.served.Load() > most { // what is asked for ahead
		t.Errorf("%d bytes were read back of %d", e.served.Load(), o.Size)
	}
}

// A folder of very many files is not read to its end for what an earlier try may have
// left, and the delivery goes on.
func TestAFolderWithoutEnd(t *testing.T) {
	e := &endless{folders: true}
	st := open(t, serveEndless(t, e))
	o, _ := storetest.Object("x/0001.pcapng", 100_000)
	storetest.Put(t, st, o)
	if n := e.served.Load(); n == 0 || n > farFolder/10 {
		t.Errorf("%d names were read", n)
	}
	listed := e.served.Load()
	next, _ := storetest.Object("x/0002.pcapng", 100_000)
	storetest.Put(t, st, next)
	if n := e.served.Load(); n != listed {
		t.Errorf("the folder was read again: %d names more", n-listed)
	}
}
