package storetest

import (
	"bytes"
	"fmt"
	"sync"
	"testing"

	"capd/daemon/deliver"
)

// watched runs f while the place is looked at again and again: a name that is there must
// hold all of the data.
func watched(t *testing.T, p Place, path string, data []byte, f func()) {
	t.Helper()
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			if got, ok := p.Files()[path]; ok && !bytes.Equal(got, data) {
				t.Errorf("%s is visible with %d of %d bytes", path, len(got), len(data))
				return
			}
			select {
			case <-done:
				return
			default:
			}
		}
	})
	f()
	close(done)
	wg.Wait()
}

// phases gives bytes at which to make a fault: through the whole course of a delivery
// that took total bytes, closely at both ends.
func phases(total int64) []int64 {
	at := []int64{0, 1, total / 100, total / 20, total / 4, total / 2, total * 3 / 4, total * 19 / 20}
	for _, before := range []int64{4000, 1500, 700, 400, 300, 200, 150, 100, 60, 30, 1} {
		if total > before {
			at = append(at, total-before)
		}
	}
	return at
}

// cutAnywhere cuts the connection in each direction after so and so many bytes.
func cutAnywhere(t *testing.T, s Suite) {
	p := s.New(t)
	proxy := NewProxy(t, p.Address)
	profile := p.Via(proxy.Address)
	const size = 300_000

	var total [2]int64
	func() {
		st := s.open(t, profile)
		o, _ := Object(p.Prefix+"measure/0001.pcapng", size)
		Put(t, st, o)
		total[Up], total[Down] = proxy.Passed(Up), proxy.Passed(Down)
	}()
	for d, name := range map[Direction]string{Up: "up", Down: "down"} {
		for _, at := range phases(total[d]) {
			t.Run(fmt.Sprintf("%s at %d of %d", name, at, total[d]), func(t *testing.T) {
				o, data := Object(fmt.Sprintf("%scut-%s-%d/0001.pcapng", p.Prefix, name, at), size)
				st := s.open(t, profile) // a new connection: the handshake counts too
				proxy.Set(Fault{Kind: Cut, Direction: d, At: at})
				watched(t, p, o.Path, data, func() {
					_, err := st.Put(t.Context(), o)
					struck := proxy.Struck()
					proxy.Set(Fault{})
					if err != nil {
						if failure := Failed(t, err, deliver.ReasonCut, deliver.ReasonConnect, deliver.ReasonBusy); failure.Permanent {
							t.Errorf("a cut connection may be repeated: %+v", failure)
						}
					} else if !struck && !bytes.Equal(p.Files()[o.Path], data) {
						t.Error("a success without the file")
					}
					Put(t, st, o)
				})
				if !bytes.Equal(p.Files()[o.Path], data) {
					t.Errorf("%s is not there whole", o.Path)
				}
				noParts(t, p)
			})
		}
	}
}

// lostAnswer lets everything through to the server and cuts off its last answers.
func lostAnswer(t *testing.T, s Suite) {
	p := s.New(t)
	proxy := NewProxy(t, p.Address)
	st := s.open(t, p.Via(proxy.Address))
	first, _ := Object(p.Prefix+"first/0000.pcapng", 100_000)
	Put(t, st, first)
	down := proxy.Passed(Down)
	lost := false
	// Somewhere near the end the file has its name and the answer that says so is lost.
	// How many bytes there are varies a little with the server's mood (SSH's windows): so
	// the end is gone through several times.
	for try := int64(0); try < 600 && !lost; try++ {
		cut := 1 + try*13%1200
		o, data := Object(fmt.Sprintf("%sl%04d/0000.pcapng", p.Prefix, try), 100_000) // names as long as the first, for the same bytes
		st := s.open(t, p.Via(proxy.Address))
		proxy.Set(Fault{Kind: Cut, Direction: Down, At: down - cut})
		_, err := st.Put(t.Context(), o)
		there := bytes.Equal(p.Files()[o.Path], data)
		proxy.Set(Fault{})
		if err == nil {
			continue
		}
		result := Put(t, st, o)
		if there {
			lost = true
			if !result.AlreadyThere {
				t.Errorf("the file was there and was sent again: %+v", result)
			}
		}
	}
	if !lost {
		t.Error("no cut fell between the file's name and its answer: the test does not test")
	}
	noParts(t, p)
}

// stalls holds all bytes back from a certain one on.
func stalls(t *testing.T, s Suite) {
	p := s.New(t)
	proxy := NewProxy(t, p.Address)
	profile := p.Via(proxy.Address)
	const size = 3 << 20
	o, _ := Object(p.Prefix+"measure/0001.pcapng", size)
	Put(t, s.open(t, profile), o)
	total := [2]int64{proxy.Passed(Up), proxy.Passed(Down)}
	var wg sync.WaitGroup
	for _, f := range []Fault{
		{Kind: Stall, Direction: Up, At: 10}, {Kind: Stall, Direction: Up, At: total[Up] / 2}, {Kind: Stall, Direction: Up, At: total[Up] * 9 / 10}, {Kind: Stall, Direction: Down, At: 10}, {Kind: Stall, Direction: Down, At: total[Down] / 2}, {Kind: Stall, Direction: Down, At: total[Down] * 9 / 10},
	} {
		wg.Go(func() {
			proxy := NewProxy(t, p.Address)
			st := s.open(t, p.Via(proxy.Address))
			o, data := Object(fmt.Sprintf("%sstall-%d-%d/0001.pcapng", p.Prefix, f.Direction, f.At), size)
			proxy.Set(f)
			_, err := st.Put(t.Context(), o)
			if !proxy.Struck() {
				t.Errorf("%+v: nothing stalled", f)
			}
			if err == nil {
				t.Errorf("%+v: the delivery succeeded", f)
				return
			}
			if got, ok := p.Files()[o.Path]; ok && !bytes.Equal(got, data) {
				t.Errorf("%+v: half a file is visible", f)
			}
			proxy.Set(Fault{})
			if _, again := st.Put(t.Context(), o); again != nil {
				t.Errorf("%+v: after %v: %v", f, err, again)
			}
			if failure, ok := err.(*deliver.Error); !ok || failure.Permanent || failure.Reason != deliver.ReasonStalled && failure.Reason != deliver.ReasonCut && failure.Reason != deliver.ReasonConnect {
				t.Errorf("%+v: got %#v", f, err)
			}
		})
	}
	wg.Wait()
	noParts(t, p)
}

// stalledCheck holds a check's bytes back.
func stalledCheck(t *testing.T, s Suite) {
	p := s.New(t)
	proxy := NewProxy(t, p.Address)
	profile := p.Via(proxy.Address)
	if check := s.open(t, profile).Check(t.Context()); !check.OK {
		t.Fatalf("got %+v", check)
	}
	total := [2]int64{proxy.Passed(Up), proxy.Passed(Down)}
	var wg sync.WaitGroup
	for _, f := range []Fault{{Kind: Stall, Direction: Up, At: 10}, {Kind: Stall, Direction: Up, At: total[Up] / 3}, {Kind: Stall, Direction: Up, At: total[Up] / 2}, {Kind: Stall, Direction: Down, At: 10}, {Kind: Stall, Direction: Down, At: total[Down] / 2}} {
		wg.Go(func() {
			proxy := NewProxy(t, p.Address)
			st := s.open(t, p.Via(proxy.Address))
			proxy.Set(f)
			check := st.Check(t.Context())
			if last := check.Steps[len(check.Steps)-1]; check.OK || last.OK || last.Detail == "" || !proxy.Struck() {
				t.Errorf("%+v: got %+v", f, check)
			}
		})
	}
	wg.Wait()
}

// cameBack cuts the connection that the store has kept, between two deliveries.
func cameBack(t *testing.T, s Suite) {
	p := s.New(t)
	proxy := NewProxy(t, p.Address)
	st := s.open(t, p.Via(proxy.Address))
	want := map[string][]byte{}
	for i := range 3 {
		o, data := Object(fmt.Sprintf("%sx/%d.pcapng", p.Prefix, i), 50_000)
		want[o.Path] = data
		Put(t, st, o) // over a connection that was cut meanwhile: a new one is made unasked
		proxy.drop()
	}
	Holds(t, p, want)
}
