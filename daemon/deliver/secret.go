package deliver

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// credentialPrefix begins a value that names one of the service's systemd credentials
// (LoadCredential=, systemd.exec(5)) instead of a path.
const credentialPrefix = "credential:"

// credentialsVariable names the folder where systemd puts a service's credentials.
const credentialsVariable = "CREDENTIALS_DIRECTORY"

// fileMessage is what a key that holds a path should hold.
const fileMessage = `is neither an absolute path nor credential:NAME, a systemd credential of the delivery process`

// validFile tells whether a profile's value may name a file: an absolute path, or
// credential:NAME.
func validFile(value string) bool {
	name, isCredential := strings.CutPrefix(value, credentialPrefix)
	if !isCredential {
		return filepath.IsAbs(value)
	}
	return name != "" && name != "." && name != ".." && !strings.Contains(name, "/")
}

// Locate gives the path of a file that a profile names: a path, or credential:NAME, which
// lies in the delivery process's $CREDENTIALS_DIRECTORY. what names the profile's key, for
// error texts. Errors are *Error.
func Locate(what, file string) (string, error) {
	name, isCredential := strings.CutPrefix(file, credentialPrefix)
	if !isCredential {
		return file, nil
	}
	if !validFile(file) {
		return "", Fail(ReasonProfile, nil, "%s: %q is no name of a systemd credential", what, name)
	}
	dir := os.Getenv(credentialsVariable)
	if dir == "" {
		return "", Fail(ReasonSecretFile, nil, "%s: the delivery process has no systemd credentials", what).
			WithHint("systemctl edit capd-deliver.service, [Service] LoadCredential=%s:/PATH, and restart it", name)
	}
	return filepath.Join(dir, name), nil
}

// ReadFile reads a file that a profile names and that holds no secret. Errors are *Error.
func ReadFile(what, file string) ([]byte, error) {
	path, err := Locate(what, file)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		if dir := closedFolder(path); dir != "" {
			return nil, Fail(ReasonSecretFile, err, "%s", what).WithHint(closedHint, dir, dir)
		}
		return nil, Fail(ReasonSecretFile, err, "%s", what).WithHint("the delivery process must be able to read it")
	}
	return data, nil
}

// maxSecret is more than any key or password file has, in bytes.
const maxSecret = 256 << 10

// ReadSecret reads a key or password file. One that others may read is refused, so that
// a slip does not stay unnoticed. what names the profile's key, for error texts. Errors
// are *Error and hold nothing of the contents.
func ReadSecret(what, file string) ([]byte, error) {
	path, err := Locate(what, file)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		hint := "put it there with mode 600, or correct " + what
		if path != file {
			hint = "systemctl edit capd-deliver.service, [Service] LoadCredential=" + filepath.Base(path) + ":/PATH, and restart it"
		}
		return nil, Fail(ReasonSecretFile, nil, "%s: there is no file %s", what, path).WithHint("%s", hint)
	}
	if dir := closedFolder(path); err != nil && dir != "" {
		return nil, Fail(ReasonSecretFile, err, "%s", what).WithHint(closedHint, dir, dir)
	}
	if err != nil {
		return nil, Fail(ReasonSecretFile, err, "%s", what).WithHint("the delivery process must be able to read it, and nobody else: %s", giveTo(path))
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, Fail(ReasonSecretFile, err, "%s", what)
	}
	if !info.Mode().IsRegular() {
		return nil, Fail(ReasonSecretFile, nil, "%s: %s is not a regular file", what, path)
	}
	if mode := info.Mode().Perm(); mode&forbidden(path) != 0 {
		return nil, Fail(ReasonSecretFile, nil, "%s: others may read or change %s (mode %#o)", what, path, mode).WithHint("%s", giveTo(path))
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return nil, Fail(ReasonSecretFile, err, "%s", what)
	}
	if len(data) == 0 || len(data) > maxSecret {
		return nil, Fail(ReasonSecretFile, nil, "%s: %s has %d bytes, which cannot be right", what, path, len(data))
	}
	return data, nil
}

const closedHint = "the delivery process must get through %s: chmod o+x %s"

// closedFolder is the topmost folder above a file that this process cannot get through, ""
// where there is none.
func closedFolder(path string) (closed string) {
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		if _, err := os.Lstat(filepath.Join(dir, "any")); errors.Is(err, fs.ErrPermission) {
			closed = dir
		}
		if dir == filepath.Dir(dir) {
			return closed
		}
	}
}

// giveTo is the command that gives a secret's file to this process's user and to nobody
// else. Where the user has the file already the mode is all that is wrong.
func giveTo(path string) string {
	mode := "chmod 600 " + path
	if info, err := os.Stat(path); err == nil {
		if stat, ok := info.Sys().(*syscall.Stat_t); ok && int(stat.Uid) == os.Geteuid() {
			return mode
		}
	}
	name := strconv.Itoa(os.Geteuid())
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
	}
	return "chown " + name + ": " + path + " && " + mode
}

// forbidden are the mode bits that a secret must not have. systemd lets a service's user
// read a credential through an access list, whose mask stands in the group's bits (mode
// 440, acl(5)); the folder is closed to all others.
func forbidden(path string) fs.FileMode {
	if dir := os.Getenv(credentialsVariable); dir != "" && filepath.Dir(path) == filepath.Clean(dir) {
		return 0o037
	}
	return 0o077
}
