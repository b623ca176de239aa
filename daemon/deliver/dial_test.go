package deliver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// listen gives a listener on loopback that tells from where connections come.
func listen(t *testing.T) (string, <-chan netip.AddrPort) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	from := make(chan netip.AddrPort, 10)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			from <- conn.RemoteAddr().(*net.TCPAddr).AddrPort()
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l.Addr().String(), from
}

func TestDialerUsesSourceAddressAndDevice(t *testing.T) {
	address, from := listen(t)
	d := NewDialer(Profile{SourceAddress: netip.MustParseAddr("127.0.0.9"), BindDevice: "lo"}, Timeouts{}, nil)
	conn, err := d.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if got := <-from; got.Addr() != netip.MustParseAddr("127.0.0.9") {
		t.Errorf("came from %v", got)
	}
}

func TestAddrsForPeople(t *testing.T) {
	a := Addrs{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")}
	if got := a.String(); got != "192.0.2.7, 2001:db8::7" {
		t.Errorf("got %q", got)
	}
}

func TestDialerSaysWhatIsWrong(t *testing.T) {
	address, _ := listen(t)
	for name, test := range map[string]struct {
		p       Profile
		address string
		reason  Reason
		want    string
	}{
		"address of another box": {Profile{SourceAddress: netip.MustParseAddr("192.0.2.1")}, address, ReasonConnect, "source_address"},
		"no such device":         {Profile{BindDevice: "no-such-device"}, address, ReasonConnect, "bind_device"},
		"other family":           {Profile{SourceAddress: netip.MustParseAddr("::1")}, address, ReasonResolve, "source_address"},
		"nobody listens":         {Profile{}, "127.0.0.1:1", ReasonConnect, "127.0.0.1:1"},
		"no such name":           {Profile{}, "no-such-host.invalid:22", ReasonResolve, "no-such-host.invalid"},
		"no such port":           {Profile{}, "127.0.0.1:no-such-service", ReasonProfile, "no-such-service"},
		"not an address":         {Profile{}, "127.0.0.1", ReasonProfile, "127.0.0.1"},
	} {
		_, err := NewDialer(test.p, Timeouts{}, nil).DialContext(t.Context(), "tcp", test.address)
		var failure *Error
		if !errors.As(err, &failure) || failure.Reason != test.reason || !strings.Contains(failure.Message+failure.Hint, test.want) {
			t.Errorf("%s: got %+v", name, err)
		}
	}
}

func TestDialerGivesUpOnASilentAddress(t *testing.T) {
	// A listener whose queue is full does not answer.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	_, err = NewDialer(Profile{}, Timeouts{Connect: time.Nanosecond}, nil).DialContext(ctx, "tcp", l.Addr().String())
	var failure *Error
	if !errors.As(err, &failure) || failure.Permanent {
		t.Errorf("got %+v", err)
	}
}

func TestDialerAnnouncesItsPortBeforeItConnects(t *testing.T) {
	address, from := listen(t)
	var announced []Flow
	released := 0
	d := NewDialer(Profile{}, Timeouts{}, func(ctx context.Context, f Flow) (func(), error) {
		select {
		case got := <-from:
			t.Errorf("%v was there before it was announced", got)
		default:
		}
		announced = append(announced, f)
		return func() { released++ }, nil
	})
	conn, err := d.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	got := <-from
	if len(announced) != 1 || announced[0].Local != got || announced[0].Remote.String() != address {
		t.Errorf("announced %v, came %v", announced, got)
	}
	conn.Close()
	conn.Close()
	if released != 1 {
		t.Errorf("released %d times", released)
	}
	if _, err := d.DialContext(t.Context(), "tcp", "127.0.0.1:1"); err == nil || len(announced) != 2 || released != 2 {
		t.Errorf("a connection that failed: %v, announced %d, released %d", err, len(announced), released)
	}
	refusing := NewDialer(Profile{}, Timeouts{}, func(context.Context, Flow) (func(), error) { return nil, errors.New("not now") })
	if _, err := refusing.DialContext(t.Context(), "tcp", address); err == nil || !strings.Contains(err.Error(), "not now") {
		t.Errorf("got %v", err)
	}
	select {
	case got := <-from:
		t.Errorf("%v came although it was refused", got)
	default:
	}
}
