package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// fakePutter answers as a test wants, and counts.
type fakePutter struct {
	answer func(ctx context.Context, p Put) (Result, error)

	mu     sync.Mutex
	under  map[string]int // deliveries under way, by destination
	most   map[string]int // the most at once
	tries  map[string]int // by file
	order  []string
	opened []*os.File
}

var _ Putter = (*fakePutter)(nil)

func (f *fakePutter) Put(ctx context.Context, p Put, file *os.File) (Result, error) {
	f.mu.Lock()
	f.under[p.Destination]++
	f.most[p.Destination] = max(f.most[p.Destination], f.under[p.Destination])
	f.tries[p.Vars.File]++
	f.order = append(f.order, p.Vars.File)
	f.opened = append(f.opened, file)
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.under[p.Destination]--
		f.mu.Unlock()
	}()
	return f.answer(ctx, p)
}

func (f *fakePutter) tried(file string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tries[file]
}

// updates are what the jobs were told.
type updates struct {
	mu  sync.Mutex
	all map[string][]Update
}

func (u *updates) of(key string) []Update {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.all[key])
}

func (u *updates) states(key string) string {
	text := ""
	for _, up := range u.of(key) {
		text += fmt.Sprintf("%s/%d ", up.State, up.Attempts)
	}
	return text
}

// queueOf makes a queue over a fake; it is closed before the bubble ends.
func queueOf(t *testing.T, answer func(ctx context.Context, p Put) (Result, error)) (*Queue, *fakePutter, *updates, func(destination, file string)) {
	fake := &fakePutter{answer: answer, under: map[string]int{}, most: map[string]int{}, tries: map[string]int{}}
	q := NewQueue(fake, QueueOptions{Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	u := &updates{all: map[string][]Update{}}
	t.Cleanup(func() {
		q.Close()
		for _, f := range fake.opened {
			if f.Close() == nil {
				t.Error("a file was left open")
			}
		}
	})
	return q, fake, u, func(destination, file string) {
		t.Helper()
		err := q.Enqueue(Job{Key: file, Put: Put{Destination: destination, Vars: Vars{File: file}},
			Open: func() (*os.File, error) { return os.Open("/dev/null") },
			Changed: func(up Update) {
				u.mu.Lock()
				u.all[file] = append(u.all[file], up)
				u.mu.Unlock()
			}})
		if err != nil {
			t.Error(err)
		}
	}
}

// pass lets time pass, and then everything come to rest.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestQueueDeliversInOrderAFewAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, fake, u, add := queueOf(t, func(context.Context, Put) (Result, error) {
			time.Sleep(time.Second)
			return Result{URL: "there"}, nil
		})
		var want []string
		for i := range 9 {
			add("soc", fmt.Sprint(i))
			want = append(want, fmt.Sprint(i))
		}
		pass(10 * time.Second)
		if fake.most["soc"] != DefaultConcurrency {
			t.Errorf("%d at once", fake.most["soc"])
		}
		slices.Sort(fake.order)
		if !slices.Equal(fake.order, want) {
			t.Errorf("tried %v", fake.order)
		}
		if got := u.states("8"); got != "sending/1 delivered/1 " || u.of("8")[1].Result.URL != "there" {
			t.Errorf("told %s", got)
		}
		if q.Retry("8") {
			t.Error("a delivered job is still there")
		}
	})
}

func TestQueueAsksForTheConcurrencyInForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, fake, _, add := queueOf(t, func(context.Context, Put) (Result, error) {
			time.Sleep(time.Second)
			return Result{}, nil
		})
		q.o.Concurrency = func(string) int { return 5 }
		for i := range 20 {
			add("soc", fmt.Sprint(i))
		}
		pass(time.Minute)
		if fake.most["soc"] != 5 {
			t.Errorf("%d at once", fake.most["soc"])
		}
	})
}

func TestQueueTriesAgainWithGrowingPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		var at []time.Duration
		_, _, u, add := queueOf(t, func(context.Context, Put) (Result, error) {
			at = append(at, time.Since(begun))
			if len(at) == 14 {
				return Result{}, nil
			}
			return Result{}, Fail(ReasonCorrupt, nil, "changed on the way")
		})
		add("soc", "1")
		pass(2 * time.Hour)
		if len(at) != 14 {
			t.Fatalf("%d tries", len(at))
		}
		for i := 1; i < len(at); i++ {
			pause, nominal := at[i]-at[i-1], min(backoffMin<<(i-1), backoffMax)
			if pause < backoffMin || pause > backoffMax || pause < nominal*3/4 || pause > nominal*5/4 {
				t.Errorf("pause %d is %v, nominally %v", i, pause, nominal)
			}
		}
		told := u.of("1")
		if len(told) != 28 || told[1].State != StateWaiting || told[1].Err == nil || !told[1].Next.Equal(begun.Add(at[1])) || told[27].State != StateDelivered || told[27].Attempts != 14 {
			t.Errorf("told %s", u.states("1"))
		}
	})
}

func TestBackoffIsSpread(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 20 {
		seen[backoff(5)] = true
	}
	if len(seen) < 10 {
		t.Errorf("only %d different pauses in 20", len(seen))
	}
	for _, n := range []int{1, 9, 16, 17, 1000, math.MaxInt} {
		if d := backoff(n); d < backoffMin || d > backoffMax {
			t.Errorf("backoff(%d) = %v", n, d)
		}
	}
}

func TestOneDeadDestinationHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, fake, u, add := queueOf(t, func(ctx context.Context, p Put) (Result, error) {
			if p.Destination == "dead" {
				time.Sleep(10 * time.Second)
				return Result{}, Fail(ReasonConnect, nil, "nobody answers")
			}
			return Result{}, nil
		})
		for i := range 50 {
			add("dead", fmt.Sprint("d", i))
			add("well", fmt.Sprint("w", i))
		}
		synctest.Wait()
		for i := range 50 {
			if got := u.states(fmt.Sprint("w", i)); got != "sending/1 delivered/1 " {
				t.Errorf("w%d: %s", i, got)
			}
		}
		pass(time.Hour)
		total := 0
		for i := range 50 {
			total += fake.tried(fmt.Sprint("d", i))
		}
		if total < 10 || total > 30 {
			t.Errorf("the dead destination was tried %d times in an hour", total)
		}
	})
}

func TestADestinationThatIsWellAgainGetsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var well atomic.Bool
		_, fake, u, add := queueOf(t, func(context.Context, Put) (Result, error) {
			time.Sleep(time.Second)
			if !well.Load() {
				return Result{}, Fail(ReasonConnect, nil, "nobody answers")
			}
			return Result{}, nil
		})
		for i := range 10 {
			add("soc", fmt.Sprint(i))
		}
		pass(time.Minute)
		well.Store(true)
		pass(10 * time.Minute)
		for i := range 10 {
			if told := u.of(fmt.Sprint(i)); told[len(told)-1].State != StateDelivered {
				t.Errorf("%d: %s", i, u.states(fmt.Sprint(i)))
			}
		}
		if fake.most["soc"] != 2 {
			t.Errorf("%d at once", fake.most["soc"])
		}
	})
}

func TestAPermanentFailureWaitsForRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fail atomic.Bool
		fail.Store(true)
		q, fake, u, add := queueOf(t, func(context.Context, Put) (Result, error) {
			if fail.Load() {
				return Result{}, Fail(ReasonExists, nil, "there")
			}
			return Result{}, nil
		})
		add("soc", "1")
		add("soc", "2")
		pass(24 * time.Hour)
		if fake.tried("1") != 1 || fake.tried("2") != 1 || u.states("1") != "sending/1 failed/1 " {
			t.Errorf("tried %v, told %s", fake.tries, u.states("1"))
		}
		fail.Store(false)
		if !q.Retry("1") || q.Retry("nobody") {
			t.Error("Retry tells wrongly whether there is a job")
		}
		synctest.Wait()
		if u.states("1") != "sending/1 failed/1 sending/2 delivered/2 " || fake.tried("2") != 1 {
			t.Errorf("told %s; 2 was tried %d times", u.states("1"), fake.tried("2"))
		}
	})
}

func TestAWrongKeyIsNotTriedAHundredTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fail atomic.Bool
		fail.Store(true)
		q, fake, u, add := queueOf(t, func(context.Context, Put) (Result, error) {
			time.Sleep(time.Second)
			if fail.Load() {
				return Result{}, Fail(ReasonCredentials, nil, "not accepted")
			}
			return Result{}, nil
		})
		for i := range 100 {
			add("soc", fmt.Sprint(i))
		}
		pass(time.Hour)
		if len(fake.order) > DefaultConcurrency {
			t.Errorf("the wrong key was tried %d times", len(fake.order))
		}
		for i := range 100 {
			told := u.of(fmt.Sprint(i))
			if last := told[len(told)-1]; last.State != StateFailed || last.Err == nil {
				t.Errorf("%d: %s", i, u.states(fmt.Sprint(i)))
			}
		}
		fail.Store(false)
		for i := range 100 {
			q.Retry(fmt.Sprint(i))
		}
		pass(time.Hour)
		for i := range 100 {
			if told := u.of(fmt.Sprint(i)); told[len(told)-1].State != StateDelivered {
				t.Errorf("%d: %s", i, u.states(fmt.Sprint(i)))
			}
		}
	})
}

func TestRetryCutsAWaitShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, fake, _, add := queueOf(t, func(context.Context, Put) (Result, error) {
			return Result{}, Fail(ReasonConnect, nil, "nobody answers")
		})
		add("soc", "1")
		pass(30 * time.Minute)
		before := fake.tried("1")
		q.Retry("1")
		synctest.Wait()
		if fake.tried("1") != before+1 {
			t.Errorf("%d tries, then %d", before, fake.tried("1"))
		}
	})
}

func TestRetryDuringATryGivesOneMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, fake, u, add := queueOf(t, func(context.Context, Put) (Result, error) {
			time.Sleep(time.Minute)
			return Result{}, Fail(ReasonExists, nil, "there")
		})
		add("soc", "1")
		pass(time.Second)
		q.Retry("1")
		pass(time.Hour)
		if fake.tried("1") != 2 || u.states("1") != "sending/1 failed/1 sending/2 failed/2 " {
			t.Errorf("tried %d times, told %s", fake.tried("1"), u.states("1"))
		}
	})
}

func TestForgetEndsATryAndWaitsForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, fake, u, add := queueOf(t, func(ctx context.Context, p Put) (Result, error) {
			<-ctx.Done()
			time.Sleep(3 * time.Second) // clearing up
			return Result{}, Classify(ctx, ctx.Err(), "deliver")
		})
		for i := range 4 {
			add("soc", fmt.Sprint(i))
		}
		synctest.Wait()
		begun := time.Now()
		if err := q.Forget(t.Context(), "0"); err != nil {
			t.Error(err)
		}
		if time.Since(begun) != 3*time.Second {
			t.Errorf("waited %v", time.Since(begun))
		}
		if u.states("0") != "sending/1 " {
			t.Errorf("told %s", u.states("0"))
		}
		if err := q.Forget(t.Context(), "3"); err != nil || fake.tried("3") != 0 {
			t.Errorf("a waiting job: %v, tried %d times", err, fake.tried("3"))
		}
		if err := q.Forget(t.Context(), "nobody"); err != nil {
			t.Error(err)
		}
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := q.Forget(short, "1"); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		pass(time.Minute)
		if fake.tried("2") != 1 || q.Retry("1") || q.Retry("3") {
			t.Error("what was forgotten is still there, or what was not has not begun")
		}
	})
}

func TestAJobThatIsThereAlreadyIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, _, _, add := queueOf(t, func(ctx context.Context, p Put) (Result, error) {
			<-ctx.Done()
			return Result{}, ctx.Err()
		})
		add("soc", "1")
		if err := q.Enqueue(Job{Key: "1"}); err == nil {
			t.Error("taken twice")
		}
		q.Close()
		if err := q.Enqueue(Job{Key: "2"}); err == nil {
			t.Error("taken after Close")
		}
	})
}

func TestAttemptsOfAnEarlierLifeCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, _, u, _ := queueOf(t, func(context.Context, Put) (Result, error) { return Result{}, nil })
		q.Enqueue(Job{Key: "1", Put: Put{Destination: "soc"}, Attempts: 7, Open: func() (*os.File, error) { return os.Open("/dev/null") },
			Changed: func(up Update) { u.mu.Lock(); u.all["1"] = append(u.all["1"], up); u.mu.Unlock() }})
		synctest.Wait()
		if u.states("1") != "sending/8 delivered/8 " {
			t.Errorf("told %s", u.states("1"))
		}
	})
}

func TestAFileThatIsGoneFailsForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, fake, u, _ := queueOf(t, func(context.Context, Put) (Result, error) { return Result{}, nil })
		q.Enqueue(Job{Key: "1", Put: Put{Destination: "soc"}, Open: func() (*os.File, error) { return os.Open("/does/not/exist") },
			Changed: func(up Update) { u.mu.Lock(); u.all["1"] = append(u.all["1"], up); u.mu.Unlock() }})
		pass(time.Hour)
		if u.states("1") != "sending/1 failed/1 " || len(fake.order) != 0 {
			t.Errorf("told %s", u.states("1"))
		}
	})
}

func TestCloseTellsWhatWasUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, _, u, add := queueOf(t, func(ctx context.Context, p Put) (Result, error) {
			<-ctx.Done()
			return Result{}, Classify(ctx, ctx.Err(), "deliver")
		})
		for i := range 3 {
			add("soc", fmt.Sprint(i))
		}
		synctest.Wait()
		q.Close()
		if u.states("0") != "sending/1 waiting/1 " || u.states("2") != "" {
			t.Errorf("told %s; %s", u.states("0"), u.states("2"))
		}
	})
}
