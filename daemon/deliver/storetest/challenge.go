package storetest

import (
	"testing"

	"capd/ctl/wire"
	"capd/daemon/deliver"
)

// challenged goes through a challenge file's life.
func challenged(t *testing.T, s Suite) {
	p := s.New(t)
	st := s.open(t, p.Profile)
	name := p.Prefix + "ownership-challenge-1.txt"
	if _, err := st.ReadChallenge(t.Context(), name); Failed(t, err, deliver.ReasonMissing) == nil {
		t.Error("it is there before it was written")
	}
	for range 2 { // the second finds the first
		if err := st.WriteChallenge(t.Context(), name, []byte("a token")); err != nil {
			t.Fatal(err)
		}
	}
	Holds(t, p, map[string][]byte{name: []byte("a token")})
	if data, err := st.ReadChallenge(t.Context(), name); err != nil || string(data) != "a token" {
		t.Errorf("read %q, %v", data, err)
	}
	err := st.WriteChallenge(t.Context(), name, []byte("another"))
	if failure := Failed(t, err, deliver.ReasonExists); failure.Code != wire.CodeDestinationExists {
		t.Errorf("got %+v", failure)
	}
	for range 2 {
		if err := st.RemoveChallenge(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	Holds(t, p, nil)
	p.Plant(name, make([]byte, deliver.MaxChallenge+1))
	_, err = st.ReadChallenge(t.Context(), name)
	Failed(t, err, deliver.ReasonTooLarge)
}
