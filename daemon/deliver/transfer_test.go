package deliver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math"
	"testing"
	"testing/synctest"
	"time"
)

// These tests run in a bubble whose clock stands still while anything works: they say
// what would be waited for, and wait for nothing.

func TestPaceKeepsToItsRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := make([]byte, 1_000_000)
		o := Object{Body: bytes.NewReader(data), Size: int64(len(data)), SHA256: sha256.Sum256(data)}
		begun := time.Now()
		src := NewSource(t.Context(), o, NewPace(100_000), nil)
		if n, err := io.Copy(io.Discard, src); n != o.Size || err != nil {
			t.Fatal(n, err)
		}
		if _, err := src.Whole(); err != nil {
			t.Error(err)
		}
		if took := time.Since(begun); took != 10*time.Second-burst {
			t.Errorf("10 s of bytes took %v", took)
		}
	})
}

func TestPaceIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pace := NewPace(1000)
		begun := time.Now()
		done := make(chan error)
		for range 4 {
			go func() {
				sink := NewSink(t.Context(), Object{Size: 2500}, pace, nil)
				_, err := sink.Write(make([]byte, 2500))
				done <- err
			}()
		}
		for range 4 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if took := time.Since(begun); took != 10*time.Second-burst {
			t.Errorf("10 s of bytes took %v", took)
		}
	})
}

func TestPaceEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := NewPace(1).Wait(ctx, 100); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		var none *Pace
		if err := none.Wait(ctx, math.MaxInt); err != nil || none.Quantum(5) != 5 {
			t.Error("the nil Pace holds something back")
		}
	})
}

func TestASlowPaceIsNoStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, watch := NewWatch(t.Context(), 2*time.Second)
		defer watch.Stop()
		data := make([]byte, 1000)
		src := NewSource(ctx, Object{Body: bytes.NewReader(data), Size: 1000, SHA256: sha256.Sum256(data)}, NewPace(10), watch)
		if _, err := io.Copy(io.Discard, src); err != nil {
			t.Error(err)
		}
	})
}

func TestWatchEndsWhatStandsStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, watch := NewWatch(t.Context(), 30*time.Second)
		defer watch.Stop()
		for range 10 {
			time.Sleep(29 * time.Second)
			watch.Touch()
		}
		if ctx.Err() != nil {
			t.Fatal("ended although things moved")
		}
		watch.Expect(2 * time.Minute)
		time.Sleep(119 * time.Second)
		if ctx.Err() != nil {
			t.Fatal("ended although more patience was asked for")
		}
		time.Sleep(2 * time.Second)
		if !errors.Is(context.Cause(ctx), ErrStalled) {
			t.Errorf("the cause is %v", context.Cause(ctx))
		}
		failure := Classify(ctx, errors.New("use of closed connection"), "write x")
		if failure.Reason != ReasonStalled || failure.Permanent {
			t.Errorf("got %+v", failure)
		}
	})
}

func TestSourceRefusesAFileThatHasChanged(t *testing.T) {
	data := []byte("what the disk gives")
	src := NewSource(t.Context(), Object{Body: bytes.NewReader(data), Size: int64(len(data)), SHA256: sha256.Sum256([]byte("what was written"))}, nil, nil)
	io.Copy(io.Discard, src)
	var failure *Error
	if _, err := src.Whole(); !errors.As(err, &failure) || failure.Reason != ReasonLocal {
		t.Errorf("got %v", err)
	}
	src = NewSource(t.Context(), Object{Body: bytes.NewReader(data), Size: 100}, nil, nil)
	if _, err := io.Copy(io.Discard, src); !errors.As(err, &failure) || failure.Reason != ReasonLocal {
		t.Errorf("got %v", err)
	}
}
