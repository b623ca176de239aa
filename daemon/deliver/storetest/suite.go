// Package storetest is one conformance suite for every kind of deliver.Store, run
// against real servers, and the faults that it provokes.
package storetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"capd/ctl/wire"
	"capd/daemon/deliver"
)

// Place is a folder of its own on a real server.
type Place struct {
	Profile deliver.Profile
	Address string                               // of the server: host:port
	Via     func(address string) deliver.Profile // the profile, by way of a proxy
	Prefix  string                               // of every path in the place, with a slash at the end
	Files   func() map[string][]byte             // what is in the place, temporary files included, by path
	Plant   func(path string, data []byte)       // a file that is not capd's
	Remove  func(path string)                    // what somebody at the server does
	Root    string                               // the folder on this machine where it lies
	Stop    func()                               // the server, as a crash does
	Start   func()                               // it again
	Fill    func() (room func())                 // its disk, until room is called
	Forbid  func()                               // take the right to write there away
	Permit  func()                               // give it back
}

// Suite is one kind of store.
type Suite struct {
	Open deliver.OpenFunc
	New  func(t *testing.T) Place

	Troubles []Trouble // what else can be wrong with such a server
}

// Timeouts are short, so that stalls end soon; no test depends on how long they last.
func Timeouts() deliver.Timeouts {
	return deliver.Timeouts{Connect: 5 * time.Second, Progress: 2 * time.Second, Settle: 3 * time.Second}
}

// Run runs every test of the suite.
func Run(t *testing.T, s Suite) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, Suite)
	}{
		{"files of every size arrive whole", sizes},
		{"a second delivery finds the first", again},
		{"a file with other contents is never replaced", occupied},
		{"a file whose hash is not known yet", unhashed},
		{"writers of one name do not mix", writers},
		{"several deliveries at once", several},
		{"a canceled delivery leaves nothing", canceled},
		{"a file that has changed here is refused", changed},
		{"nobody listens", nobody},
		{"a connection cut at every phase", cutAnywhere},
		{"a lost answer is settled by looking", lostAnswer},
		{"a link that stalls", stalls},
		{"a check over a link that stalls", stalledCheck},
		{"a server that went away and came back", cameBack},
		{"a check leaves nothing", cleanCheck},
		{"a check without a probe", noProbe},
		{"a closed store", closedStore},
		{"a link that is slow", slow},
		{"a byte changed on its way", flipped},
		{"a byte changed where it lies", rotten},
		{"a disk that is full", fullDisk},
		{"a right that is taken away in the middle", forbidden},
		{"a server that is killed in the middle", restarted},
		{"what is wrong with servers of this kind", troubles},
		{"a challenge is written, read and removed", challenged},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, s) })
	}
}

func (s Suite) open(t *testing.T, p deliver.Profile) deliver.Store {
	t.Helper()
	return Open(t, s.Open, p)
}

// Open opens a store with a profile, completed; it is closed with the test.
func Open(t *testing.T, open deliver.OpenFunc, p deliver.Profile) deliver.Store {
	t.Helper()
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	p = p.WithDefaults()
	st, err := open(p, Env(t, p))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return st
}

// Env is a store's surroundings in tests.
func Env(t *testing.T, p deliver.Profile) deliver.Env {
	return deliver.Env{Dialer: deliver.NewDialer(p, Timeouts(), nil), Timeouts: Timeouts(), Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}
}

// Object makes an object of random bytes.
func Object(path string, size int) (deliver.Object, []byte) {
	data := make([]byte, size)
	source := rand.NewChaCha8([32]byte{byte(size), byte(size >> 8), byte(len(path))})
	source.Read(data)
	return Of(path, data), data
}

// Of makes an object of given bytes.
func Of(path string, data []byte) deliver.Object {
	return deliver.Object{Path: path, Tag: "0f8c0f8c0f8c", Body: bytes.NewReader(data), Size: int64(len(data)), SHA256: sha256.Sum256(data)}
}

// Put delivers and wants it to succeed.
func Put(t *testing.T, st deliver.Store, o deliver.Object) deliver.Result {
	t.Helper()
	result, err := st.Put(t.Context(), o)
	if err != nil {
		t.Fatalf("put %s: %v", o.Path, err)
	}
	if result.Bytes != o.Size || result.SHA256 != hex.EncodeToString(o.SHA256[:]) || result.Verified == "" || !strings.HasSuffix(result.URL, o.Path) || !strings.HasSuffix(result.Name, o.Path) {
		t.Fatalf("put %s gave %+v", o.Path, result)
	}
	return result
}

// Failed checks that err is an *Error with one of the reasons.
func Failed(t *testing.T, err error, reasons ...deliver.Reason) *deliver.Error {
	t.Helper()
	var failure *deliver.Error
	if !errors.As(err, &failure) {
		t.Fatalf("got %v, want an *Error", err)
	}
	if !slices.Contains(reasons, failure.Reason) {
		t.Fatalf("got reason %s (%v), want one of %v", failure.Reason, failure, reasons)
	}
	if failure.Code == "" || failure.Message == "" {
		t.Fatalf("the error lacks a code or a message: %+v", failure)
	}
	return failure
}

// noParts checks that no temporary file was left.
func noParts(t *testing.T, p Place) {
	t.Helper()
	for path := range p.Files() {
		if strings.Contains(path, ".part-") {
			t.Errorf("%s was left", path)
		}
	}
}

// Checked runs a check and wants it to end well, or at a step; it gives all steps, of
// which that is the last.
func Checked(t *testing.T, st deliver.Store, failing string) []wire.CheckStep {
	t.Helper()
	check := st.Check(t.Context())
	last := check.Steps[len(check.Steps)-1]
	if check.OK != (failing == "") || !check.OK && last.Step != failing {
		t.Fatalf("want it to fail at %q, got %+v", failing, check)
	}
	return check.Steps
}

// Holds checks that the place holds these files and nothing else.
func Holds(t *testing.T, p Place, want map[string][]byte) {
	t.Helper()
	got := p.Files()
	for path, data := range want {
		if !bytes.Equal(got[path], data) {
			t.Errorf("%s holds %d bytes, want %d; there are %v", path, len(got[path]), len(data), slices.Sorted(maps.Keys(got)))
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			t.Errorf("%s is there and should not be", path)
		}
	}
}

func sizes(t *testing.T, s Suite) {
	p := s.New(t)
	st := s.open(t, p.Profile)
	want := map[string][]byte{}
	for i, size := range []int{0, 1, 32<<10 - 1, 32 << 10, 32<<10 + 1, 1 << 20, 5<<20 + 7} {
		path := fmt.Sprintf("%sa/b %d/ä+%%20&=?#%d.pcapng", p.Prefix, i%2, i)
		o, data := Object(path, size)
		want[path] = data
		result, err := st.Put(t.Context(), o)
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if result.AlreadyThere || result.Bytes != int64(size) {
			t.Errorf("%d bytes: %+v", size, result)
		}
	}
	Holds(t, p, want)
}

func again(t *testing.T, s Suite) {
	p := s.New(t)
	st := s.open(t, p.Profile)
	o, data := Object(p.Prefix+"x/0001.pcapng", 100_000)
	first := Put(t, st, o)
	second := Put(t, st, o)
	if first.AlreadyThere || !second.AlreadyThere || first.URL != second.URL {
		t.Errorf("first %+v, second %+v", first, second)
	}
	Holds(t, p, map[string][]byte{o.Path: data})
}

func occupied(t *testing.T, s Suite) {
	p := s.New(t)
	st := s.open(t, p.Profile)
	o, data := Object(p.Prefix+"x/0001.pcapng", 100_000)
	sameLength := bytes.Clone(data)
	sameLength[99_999] ^= 1
	for name, there := range map[string][]byte{"shorter": data[:50_000], "same length": sameLength, "empty": {}} {
		t.Run(name, func(t *testing.T) {
			o := o
			o.Path = p.Prefix + name + "/0001.pcapng"
			p.Plant(o.Path, there)
			_, err := st.Put(t.Context(), o)
			failure := Failed(t, err, deliver.ReasonExists)
			if failure.Code != wire.CodeDestinationExists || !failure.Permanent {
				t.Errorf("got %+v", failure)
			}
			if got := p.Files()[o.Path]; !bytes.Equal(got, there) {
				t.Errorf("the file was changed: %d bytes", len(got))
			}
		})
	}
	for path := range p.Files() {
		if !strings.HasSuffix(path, "/0001.pcapng") {
			t.Errorf("%s was left", path)
		}
	}
}

// unhashed is how a segment that was neither compressed nor sealed comes: its SHA-256 is
// learned from what is sent.
func unhashed(t *testing.T, s Suite) {
	p := s.New(t)
	known, data := Object(p.Prefix+"x/0001.pcapng", 3_000_000)
	o := known
	o.SHA256 = [32]byte{}
	for _, there := range []bool{false, true} {
		result, err := s.open(t, p.Profile).Put(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if result.SHA256 != hex.EncodeToString(known.SHA256[:]) || result.Bytes != known.Size || result.AlreadyThere != there {
			t.Errorf("got %+v, want the SHA-256 %x", result, known.SHA256)
		}
	}
	p.Remove(o.Path)
	other := bytes.Clone(data)
	other[len(other)/2] ^= 1
	p.Plant(o.Path, other)
	_, err := s.open(t, p.Profile).Put(t.Context(), o)
	Failed(t, err, deliver.ReasonExists)
	Holds(t, p, map[string][]byte{o.Path: other})
}

func writers(t *testing.T, s Suite) {
	p := s.New(t)
	st := s.open(t, p.Profile)
	path := p.Prefix + "x/0001.pcapng"
	var wg sync.WaitGroup
	errs := make([]error, 6)
	bodies := make([][]byte, len(errs))
	for i := range errs {
		o, data := Object(path, 300_000+i/2) // pairs with the same contents
		bodies[i] = data
		wg.Go(func() {
			// A server that refuses the rest of a file may end the connection before
			// its answer is read: another try tells.
			for try := 0; try < 10; try++ {
				_, errs[i] = st.Put(t.Context(), o)
				var failure *deliver.Error
				if !errors.As(errs[i], &failure) || failure.Permanent {
					return
				}
			}
		})
	}
	wg.Wait()
	got := p.Files()
	if len(got) != 1 {
		t.Errorf("there are %v", slices.Sorted(maps.Keys(got)))
	}
	won := 0
	for i, err := range errs {
		if bytes.Equal(bodies[i], got[path]) {
			won++
			if err != nil {
				t.Errorf("the contents are there, but the delivery failed: %v", err)
			}
			continue
		}
		Failed(t, err, deliver.ReasonExists)
	}
	if won != 2 {
		t.Errorf("%d deliveries have the contents that are there, want 2", won)
	}
}

func several(t *testing.T, s Suite) {
	p := s.New(t)
	st := s.open(t, p.Profile)
	want := map[string][]byte{}
	var wg sync.WaitGroup
	for i := range 8 {
		o, data := Object(fmt.Sprintf("%sid/%04d.pcapng", p.Prefix, i), 400_000+i)
		want[o.Path] = data
		wg.Go(func() {
			if _, err := st.Put(t.Context(), o); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	Holds(t, p, want)
}

func canceled(t *testing.T, s Suite) {
	p := s.New(t)
	st := s.open(t, p.Profile)
	o, data := Object(p.Prefix+"x/0001.pcapng", 8<<20)
	ctx, cancel := context.WithCancel(t.Context())
	var sent int64
	o.Sent = func(n int64) {
		if sent += n; sent > 4<<20 {
			cancel()
		}
	}
	_, err := st.Put(ctx, o)
	if failure := Failed(t, err, deliver.ReasonCanceled); failure.Permanent {
		t.Errorf("a canceled delivery may be repeated: %+v", failure)
	}
	Holds(t, p, nil)
	o.Sent = nil
	Put(t, st, o)
	Holds(t, p, map[string][]byte{o.Path: data})
}

func changed(t *testing.T, s Suite) {
	p := s.New(t)
	st := s.open(t, p.Profile)
	o, _ := Object(p.Prefix+"x/0001.pcapng", 200_000)
	o.SHA256[0] ^= 1
	_, err := st.Put(t.Context(), o)
	if failure := Failed(t, err, deliver.ReasonLocal); !failure.Permanent {
		t.Errorf("got %+v", failure)
	}
	short, data := Object(p.Prefix+"x/0002.pcapng", 200_000)
	short.Body = bytes.NewReader(data[:100_000])
	_, err = st.Put(t.Context(), short)
	Failed(t, err, deliver.ReasonLocal)
	Holds(t, p, nil)
}

func nobody(t *testing.T, s Suite) {
	p := s.New(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	profile := p.Via(l.Addr().String())
	l.Close()
	st := s.open(t, profile)
	o, _ := Object(p.Prefix+"x/0001.pcapng", 10)
	_, err = st.Put(t.Context(), o)
	if failure := Failed(t, err, deliver.ReasonConnect); failure.Permanent || failure.Code != wire.CodeDestinationUnreachable || failure.Hint == "" {
		t.Errorf("got %+v", failure)
	}
	check := st.Check(t.Context())
	last := check.Steps[len(check.Steps)-1]
	if check.OK || last.Step != deliver.StepConnect || last.OK || last.Hint == "" {
		t.Errorf("got %+v", check)
	}
}

func cleanCheck(t *testing.T, s Suite) {
	p := s.New(t)
	for _, probe := range []string{deliver.ProbeFull, deliver.ProbeWrite} {
		profile := p.Profile
		profile.Probe = probe
		check := s.open(t, profile).Check(t.Context())
		names := Steps(check)
		if !check.OK || !slices.Contains(names, deliver.StepWrite) || !slices.Contains(names, deliver.StepDelete) ||
			slices.Contains(names, deliver.StepReadBack) != (probe == deliver.ProbeFull) {
			t.Errorf("probe %s: %+v", probe, check)
		}
	}
	Holds(t, p, nil)
}

func noProbe(t *testing.T, s Suite) {
	p := s.New(t)
	p.Profile.Probe = deliver.ProbeNone
	check := s.open(t, p.Profile).Check(t.Context())
	names := Steps(check)
	if !check.OK || slices.Contains(names, deliver.StepWrite) || names[len(names)-1] != deliver.StepAuthenticate {
		t.Errorf("got %+v", check)
	}
	Holds(t, p, nil)
}

func closedStore(t *testing.T, s Suite) {
	p := s.New(t)
	st := s.open(t, p.Profile)
	o, _ := Object(p.Prefix+"x/0001.pcapng", 10)
	Put(t, st, o)
	if err := st.Close(); err != nil {
		t.Error(err)
	}
}

// Steps gives the names of a check's steps.
func Steps(c wire.Check) []string {
	names := make([]string, 0, len(c.Steps))
	for _, s := range c.Steps {
		names = append(names, s.Step)
	}
	return names
}
