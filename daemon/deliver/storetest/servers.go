package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"capd/daemon/deliver"
)

// damage turns the last byte of whatever file in a folder has a size.
func damage(root string, size int64) error {
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		last := make([]byte, 1)
		if info, err := f.Stat(); err != nil || info.Size() != size {
			return err
		}
		if _, err := f.ReadAt(last, size-1); err != nil {
			return err
		}
		last[0] ^= 1
		if _, err := f.WriteAt(last, size-1); err != nil {
			return err
		}
		return errDamaged
	})
	if errors.Is(err, errDamaged) {
		return nil
	}
	return errors.Join(errors.New("there is no such file"), err)
}

var errDamaged = errors.New("done")

// partial checks that no part of a delivery that failed is visible, but for temporary
// files.
func partial(t *testing.T, p Place, path string, data []byte) {
	t.Helper()
	for name, got := range p.Files() {
		if !strings.Contains(name, ".part-") && (name != path || !bytes.Equal(got, data)) {
			t.Errorf("%s is visible with %d bytes", name, len(got))
		}
	}
}

// fullDisk is a server without room.
func fullDisk(t *testing.T, s Suite) {
	p := s.New(t)
	st := s.open(t, p.Profile)
	small, smallData := Object(p.Prefix+"x/0001.pcapng", 1000)
	Put(t, st, small)
	o, data := Object(p.Prefix+"x/0002.pcapng", 2<<20)
	room := p.Fill()
	_, err := st.Put(t.Context(), o)
	room()
	if failure := Failed(t, err, deliver.ReasonNoSpace); failure.Permanent || failure.Hint == "" {
		t.Errorf("got %+v", failure)
	}
	Holds(t, p, map[string][]byte{small.Path: smallData})
	Put(t, st, o)
	Holds(t, p, map[string][]byte{small.Path: smallData, o.Path: data})
}

// forbidden is a server that takes the right to write away in the middle of a delivery.
func forbidden(t *testing.T, s Suite) {
	p := s.New(t)
	proxy := NewProxy(t, p.Address)
	st := s.open(t, p.Via(proxy.Address))
	o, data := Object(p.Prefix+"x/0001.pcapng", 4<<20)
	proxy.Set(Fault{Kind: Do, Direction: Up, At: o.Size / 2, Do: p.Forbid})
	_, err := st.Put(t.Context(), o)
	// A server that refuses the rest of a body may end the connection before its answer is
	// read (RFC 9112, section 9.6): another try tells.
	var failure *deliver.Error
	for try := 0; try < 10 && errors.As(err, &failure) && failure.Reason == deliver.ReasonCut; try++ {
		_, err = st.Put(t.Context(), o)
	}
	p.Permit()
	if failure := Failed(t, err, deliver.ReasonPermission); !failure.Permanent || failure.Hint == "" || !proxy.Struck() {
		t.Errorf("got %+v", failure)
	}
	partial(t, p, o.Path, data)
	Put(t, st, o) // as capctl retry does
	Holds(t, p, map[string][]byte{o.Path: data})
}

// restarted is a server that is killed in the middle of a delivery and comes back.
func restarted(t *testing.T, s Suite) {
	p := s.New(t)
	proxy := NewProxy(t, p.Address)
	st := s.open(t, p.Via(proxy.Address))
	o, data := Object(p.Prefix+"x/0001.pcapng", 4<<20)
	for _, at := range []int64{o.Size / 2, o.Size - 1} {
		proxy.Set(Fault{Kind: Do, Direction: Up, At: at, Do: p.Stop})
		_, err := st.Put(t.Context(), o)
		_, away := s.open(t, p.Profile).Put(t.Context(), o)
		partial(t, p, o.Path, data)
		p.Start()
		for _, err := range []error{err, away} {
			if failure := Failed(t, err, deliver.ReasonCut, deliver.ReasonConnect); failure.Permanent || !proxy.Struck() {
				t.Errorf("got %+v", failure)
			}
		}
	}
	Put(t, st, o)
	Holds(t, p, map[string][]byte{o.Path: data})
}

// slow is a link on which a delivery takes longer than any single wait may, also after the
// last byte was handed to the kernel.
func slow(t *testing.T, s Suite) {
	p := s.New(t)
	proxy := NewSlowProxy(t, p.Address, 60_000)
	o, data := Object(p.Prefix+"x/0001.pcapng", 300_000)
	st := s.open(t, p.Via(proxy.Address))
	Put(t, st, o)
	if check := st.Check(t.Context()); !check.OK {
		t.Errorf("got %+v", check)
	}
	Holds(t, p, map[string][]byte{o.Path: data})
}

// flipped changes a byte on its way, up and down.
func flipped(t *testing.T, s Suite) {
	p := s.New(t)
	proxy := NewProxy(t, p.Address)
	profile := p.Via(proxy.Address)
	profile.Verify = deliver.VerifyReadback
	const size = 300_000
	want := map[string][]byte{}
	for d, name := range map[Direction]string{Up: "up", Down: "down"} {
		for _, at := range []int64{size / 4, size / 2, size * 3 / 4} {
			o, data := Object(fmt.Sprintf("%s%s/%d.pcapng", p.Prefix, name, at), size)
			want[o.Path] = data
			st := s.open(t, profile)
			proxy.Set(Fault{Kind: Flip, Direction: d, At: at})
			_, err := st.Put(t.Context(), o)
			struck := proxy.Struck()
			proxy.Set(Fault{})
			// SSH ends the connection, S3's server refuses the body, capd finds what was
			// read back to be another.
			if failure := Failed(t, err, deliver.ReasonCut, deliver.ReasonCorrupt); failure.Permanent || !struck {
				t.Errorf("%s at %d: struck %v, got %+v", name, at, struck, failure)
			}
			if got, there := p.Files()[o.Path]; there && !bytes.Equal(got, data) {
				t.Errorf("%s at %d: what is visible is not what was sent", name, at)
			}
			Put(t, st, o)
		}
	}
	Holds(t, p, want)
}

// rotten changes a byte where it lies, while it is read back.
func rotten(t *testing.T, s Suite) {
	p := s.New(t)
	proxy := NewProxy(t, p.Address)
	profile := p.Via(proxy.Address)
	profile.Verify = deliver.VerifyReadback
	st := s.open(t, profile)
	o, data := Object(p.Prefix+"x/0001.pcapng", 32<<20) // more than all buffers on the way
	var damaged error
	var once sync.Once
	proxy.Set(Fault{Kind: Do, Direction: Down, At: 1 << 20, Do: func() { once.Do(func() { damaged = damage(p.Root, o.Size) }) }})
	_, err := st.Put(t.Context(), o)
	proxy.Set(Fault{})
	if damaged != nil {
		t.Fatal(damaged)
	}
	if failure := Failed(t, err, deliver.ReasonCorrupt); failure.Permanent || failure.Hint == "" {
		t.Errorf("got %+v", failure)
	}
	if _, there := p.Files()[o.Path]; there {
		// Over S3 it has its name already. It is never taken for a delivery, and never
		// replaced.
		_, err := st.Put(t.Context(), o)
		Failed(t, err, deliver.ReasonExists)
		p.Remove(o.Path)
	}
	Put(t, st, o)
	Holds(t, p, map[string][]byte{o.Path: data})
}

// Trouble is what is wrong with one kind of server.
type Trouble struct {
	Name string
	// Make gives a profile that leads into it, and its mend, which gives the profile
	// that works.
	Make      func(t *testing.T, p Place) (deliver.Profile, func() deliver.Profile)
	Reason    deliver.Reason
	Permanent bool
}

// troubles goes through what is wrong with servers of the kind.
func troubles(t *testing.T, s Suite) {
	if len(s.Troubles) == 0 {
		t.Fatal("no troubles are known of this kind of server")
	}
	for _, trouble := range s.Troubles {
		t.Run(trouble.Name, func(t *testing.T) {
			p := s.New(t)
			bad, mend := trouble.Make(t, p)
			st := s.open(t, bad)
			o, data := Object(p.Prefix+"x/0001.pcapng", 10_000)
			_, err := st.Put(t.Context(), o)
			if failure := Failed(t, err, trouble.Reason); failure.Permanent != trouble.Permanent || failure.Hint == "" {
				t.Errorf("got %+v", failure)
			}
			check := st.Check(t.Context())
			if last := check.Steps[len(check.Steps)-1]; check.OK || last.OK || last.Hint == "" {
				t.Errorf("got %+v", check)
			}
			Holds(t, p, nil)
			Put(t, s.open(t, mend()), o)
			Holds(t, p, map[string][]byte{o.Path: data})
		})
	}
}
