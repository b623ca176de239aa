package wire

import (
	"math"
	"testing"
)

func TestAbout(t *testing.T) {
	for _, test := range []struct{ got, want string }{
		{About(0), "0 B"}, {About(999), "999 B"}, {About(1000), "1.00 kB"}, {About(6760000), "6.76 MB"}, {About(9996), "10.0 kB"},
		{About(99960), "100 kB"}, {About(999499), "999 kB"}, {About(999500), "1.00 MB"}, {About(int64(-1)), "0 B"},
		{About(uint64(math.MaxUint64)), "18.4 EB"}, {About(Size(24012760 << 10)), "24.6 GB"},
	} {
		if test.got != test.want {
			t.Errorf("%q, not %q", test.got, test.want)
		}
	}
}
