package deliver

import (
	"errors"
	"io"
	"io/fs"
	"os"
)

// maxSecret is more than any key or password file has, in bytes.
const maxSecret = 256 << 10

// ReadSecret reads a key or password file. One that others may read is refused, so that
// a slip does not stay unnoticed. what names the profile's key, for error texts. Errors
// are *Error and hold nothing of the contents.
func ReadSecret(what, path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, Fail(ReasonSecretFile, nil, "%s: there is no file %s", what, path).WithHint("put it there with mode 600, or correct %s", what)
	}
	if err != nil {
		return nil, Fail(ReasonSecretFile, err, "%s", what).WithHint("the delivery process must be able to read it")
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, Fail(ReasonSecretFile, err, "%s", what)
	}
	if !info.Mode().IsRegular() {
		return nil, Fail(ReasonSecretFile, nil, "%s: %s is not a regular file", what, path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, Fail(ReasonSecretFile, nil, "%s: others may read or change %s (mode %#o)", what, path, mode).WithHint("chmod 600 %s", path)
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
