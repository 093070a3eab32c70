package stage

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// workshop makes numbered things; each takes a second in stage "make".
type workshop struct {
	mu      sync.Mutex
	made    int
	undone  []int
	invalid bool
	fail    error // of the next Start
	failing int   // so many undos fail
}

func (w *workshop) work() Work[int] {
	return Work[int]{
		Start: func(ctx context.Context) (int, error) {
			err := Run(ctx, "make", 0, func(ctx context.Context) error {
				select {
				case <-time.After(time.Second):
					return nil
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			})
			w.mu.Lock()
			defer w.mu.Unlock()
			if err == nil {
				err, w.fail = w.fail, nil
			}
			if err != nil {
				return 0, err
			}
			w.made++
			return w.made, nil
		},
		Undo: func(ctx context.Context, n int) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.failing > 0 {
				w.failing--
				return errBroken
			}
			w.undone = append(w.undone, n)
			return ctx.Err()
		},
		Valid: func(int) bool { return !w.invalid },
	}
}

// in runs fn in a bubble of its own time.
func in(t *testing.T, fn func(t *testing.T, g *Group[int], w *workshop)) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGroup[int]("make", NewRecorder(10), nil)
		fn(t, g, &workshop{})
		g.Close(t.Context())
	})
}

func want(t *testing.T, what string, got, want any) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func TestJoinSharesOneOperation(t *testing.T) {
	in(t, func(t *testing.T, g *Group[int], w *workshop) {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				n, err := g.Join(t.Context(), "pod", "f", w.work())
				if n != 1 || err != nil {
					t.Errorf("got %d, %v", n, err)
				}
			})
		}
		wg.Wait()
		n, err := g.Join(t.Context(), "pod", "f", w.work())
		want(t, "later retry", n, 1)
		want(t, "error of it", err, nil)
		n, _ = g.Join(t.Context(), "other", "f", w.work())
		want(t, "another identity", n, 2)
		pass(time.Hour)
		want(t, "undone although claimed", len(w.undone), 0)
	})
}

func TestDeadlineEndsOnlyTheWait(t *testing.T) {
	in(t, func(t *testing.T, g *Group[int], w *workshop) {
		ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
		defer cancel()
		_, err := g.Join(ctx, "pod", "f", w.work())
		want(t, "error", errText(err), "make pod: in stage make for 0.4 s: context deadline exceeded")
		want(t, "is a deadline", errors.Is(err, context.DeadlineExceeded), true)
		n, err := g.Join(t.Context(), "pod", "f", w.work())
		want(t, "the retry", n, 1)
		want(t, "error of the retry", err, nil)
		_, err = g.Join(ctx, "pod2", "f", w.work())
		want(t, "ended before it began", errors.Is(err, context.DeadlineExceeded), true)
		pass(time.Minute)
		want(t, "operations that ran", w.made, 1)
	})
}

func TestCallerSeesTheStagesItWaitedFor(t *testing.T) {
	in(t, func(t *testing.T, g *Group[int], w *workshop) {
		rec := NewRecorder(1)
		ctx, op := rec.Start(t.Context(), "rpc", "pod")
		if _, err := g.Join(ctx, "pod", "f", w.work()); err != nil {
			t.Fatal(err)
		}
		op.End(nil)
		r := op.Record()
		if len(r.Stages) != 1 || r.Stages[0].Name != "make" || r.Stages[0].Took != time.Second {
			t.Errorf("got stages %+v, want the one second of make", r.Stages)
		}
		want(t, "records of the caller, which had no stage of its own", len(rec.Records()), 0)
		want(t, "records of the group", len(g.rec.Records()), 1)
	})
}

func TestUnclaimedResultIsUndone(t *testing.T) {
	for _, test := range []struct {
		name    string
		failing int // undos that fail
		after   time.Duration
		undone  int
		next    int // what a retry then gets
	}{
		{name: "claimed in time", after: 4 * time.Minute, next: 1},
		{name: "too late", after: 6 * time.Minute, undone: 1, next: 2},
		{name: "undo failed, tried again", failing: 1, after: 11 * time.Minute, undone: 1, next: 2},
		{name: "undo failed, then a retry came and undid it", failing: 1, after: 6 * time.Minute, undone: 0, next: 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			in(t, func(t *testing.T, g *Group[int], w *workshop) {
				w.failing = test.failing
				ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
				defer cancel()
				_, err := g.Join(ctx, "pod", "f", w.work())
				want(t, "the wait ended", errors.Is(err, context.DeadlineExceeded), true)
				pass(test.after)
				want(t, "undone", len(w.undone), test.undone)
				n, err := g.Join(t.Context(), "pod", "f", w.work())
				want(t, "retry", n, test.next)
				want(t, "error of the retry", err, nil)
				want(t, "undone in the end", len(w.undone), test.next-1)
				pass(time.Hour)
				want(t, "undone an hour later", len(w.undone), test.next-1)
			})
		})
	}
}

func TestDifferentRequestUndoesTheOlder(t *testing.T) {
	for _, test := range []struct {
		name    string
		prepare func(t *testing.T, g *Group[int], w *workshop)
		made    int // by the second request
		undone  int
		err     string
	}{
		{name: "ended and claimed", prepare: func(t *testing.T, g *Group[int], w *workshop) {
			_, _ = g.Join(t.Context(), "pod", "f", w.work())
		}, made: 2, undone: 1},
		{name: "ended and not valid any more", prepare: func(t *testing.T, g *Group[int], w *workshop) {
			_, _ = g.Join(t.Context(), "pod", "f", w.work())
			w.invalid = true
		}, made: 2},
		{name: "running", prepare: func(t *testing.T, g *Group[int], w *workshop) {
			go func() {
				_, err := g.Join(t.Context(), "pod", "f", w.work())
				want(t, "the first caller is told", errors.Is(err, ErrSuperseded), true)
			}()
			synctest.Wait()
		}, made: 1},
		{name: "known from before a restart", prepare: func(t *testing.T, g *Group[int], w *workshop) {
			g.Adopt("pod", "f", 7, w.work())
			n, _ := g.Join(t.Context(), "pod", "f", w.work())
			want(t, "the adopted", n, 7)
		}, made: 1, undone: 1},
		{name: "undo fails", prepare: func(t *testing.T, g *Group[int], w *workshop) {
			_, _ = g.Join(t.Context(), "pod", "f", w.work())
			w.failing = 1
		}, err: "stage undo the older request: plugin bridge: exit status 1 after 0.0 ms"},
	} {
		t.Run(test.name, func(t *testing.T) {
			in(t, func(t *testing.T, g *Group[int], w *workshop) {
				test.prepare(t, g, w)
				n, err := g.Join(t.Context(), "pod", "g", w.work())
				want(t, "second request", n, test.made)
				want(t, "error", errText(err), test.err)
				want(t, "undone", len(w.undone), test.undone)
			})
		})
	}
}

func TestWhatCouldNotBeUndoneIsOwed(t *testing.T) {
	in(t, func(t *testing.T, g *Group[int], w *workshop) {
		_, _ = g.Join(t.Context(), "pod", "f", w.work())
		w.failing = 2
		for _, fingerprint := range []string{"g", "f"} {
			_, err := g.Join(t.Context(), "pod", fingerprint, w.work())
			want(t, "fails while the first is there", errors.Is(err, errBroken), true)
		}
		n, err := g.Join(t.Context(), "pod", "f", w.work())
		want(t, "made in the end", n, 2)
		want(t, "error", err, nil)
		want(t, "undone", len(w.undone) == 1 && w.undone[0] == 1, true)
	})
}

func TestThreeRequestsInARow(t *testing.T) {
	in(t, func(t *testing.T, g *Group[int], w *workshop) {
		var wg sync.WaitGroup
		results := map[string]int{}
		for _, fingerprint := range []string{"a", "b", "c"} {
			wg.Go(func() {
				n, err := g.Join(t.Context(), "pod", fingerprint, w.work())
				w.mu.Lock()
				defer w.mu.Unlock()
				if err == nil {
					results[fingerprint] = n
				}
			})
			synctest.Wait()
		}
		wg.Wait()
		want(t, "requests that got something", len(results), 1)
		want(t, "the last one's", results["c"], w.made)
		want(t, "left over", w.made-len(w.undone), 1)
	})
}

func TestFailureIsNotKept(t *testing.T) {
	in(t, func(t *testing.T, g *Group[int], w *workshop) {
		w.fail = errBroken
		_, err := g.Join(t.Context(), "pod", "f", w.work())
		want(t, "error", err, errBroken)
		n, err := g.Join(t.Context(), "pod", "f", w.work())
		want(t, "retry", n, 1)
		want(t, "error of the retry", err, nil)
		want(t, "undone", len(w.undone), 0)
	})
}

func TestPanicIsAFailure(t *testing.T) {
	in(t, func(t *testing.T, g *Group[int], w *workshop) {
		work := w.work()
		work.Start = func(context.Context) (int, error) { panic("oh") }
		_, err := g.Join(t.Context(), "pod", "f", work)
		want(t, "error", errText(err), "panic: oh")
	})
}

func TestInvalidResultsAreForgotten(t *testing.T) {
	in(t, func(t *testing.T, g *Group[int], w *workshop) {
		w.invalid = true
		for i := range 1000 {
			g.Adopt(strings.Repeat("x", i), "f", i, w.work())
		}
		_, _ = g.Join(t.Context(), "pod", "f", w.work())
		want(t, "remembered", len(g.entries), 1)
	})
}

func TestResultForThoseWhoWaitIsForgotten(t *testing.T) {
	in(t, func(t *testing.T, g *Group[int], w *workshop) {
		work := w.work()
		work.Valid = nil
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				n, err := g.Join(t.Context(), "pod", "f", work)
				want(t, "result", n, 1)
				want(t, "error", err, nil)
			})
		}
		wg.Wait()
		want(t, "remembered", len(g.entries), 0)
		n, _ := g.Join(t.Context(), "pod", "f", work)
		want(t, "the next one's", n, 2)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, _ = g.Join(ctx, "pod", "f", work)
		pass(time.Hour)
		want(t, "undone", len(w.undone), 0)
	})
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, w := NewGroup[int]("make", nil, nil), &workshop{}
		failed := make(chan error, 1)
		work := w.work()
		work.Start = func(ctx context.Context) (int, error) { <-ctx.Done(); return 0, context.Cause(ctx) }
		go func() {
			_, err := g.Join(t.Context(), "pod", "f", work)
			failed <- err
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		g.Close(ctx)
		want(t, "running operation", <-failed, ErrClosed)
		_, err := g.Join(t.Context(), "pod", "f", w.work())
		want(t, "new operation refused", errors.Is(err, ErrClosed), true)
	})
}

// TestRaces has many callers with different fingerprints and deadlines on few keys; at the end exactly one thing a key is left.
func TestRaces(t *testing.T) {
	g := NewGroup[int]("make", NewRecorder(10), nil)
	var made, left atomic.Int64
	work := Work[int]{
		Start: func(ctx context.Context) (int, error) {
			if made.Add(1)%5 == 0 {
				return 0, errBroken
			}
			left.Add(1)
			return 1, nil
		},
		Undo:  func(context.Context, int) error { left.Add(-1); return nil },
		Valid: func(int) bool { return true },
	}
	var wg sync.WaitGroup
	for i := range 400 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%7)*time.Millisecond)
			defer cancel()
			_, _ = g.Join(ctx, "pod"+string(rune('0'+i%3)), "f"+string(rune('0'+i%4)), work)
			g.rec.Records()
		})
	}
	wg.Wait()
	for _, key := range []string{"pod0", "pod1", "pod2"} {
		for {
			if _, err := g.Join(t.Context(), key, "last", work); err == nil {
				break
			}
		}
	}
	g.Close(t.Context())
	want(t, "left over", left.Load(), int64(3))
}

func TestClaimedResultIsNotUndoneForALaterCallerWhoGaveUp(t *testing.T) {
	in(t, func(t *testing.T, g *Group[int], w *workshop) {
		_, _ = g.Join(t.Context(), "pod", "f", w.work())
		ctx, cancel := context.WithCancel(t.Context())
		e, err := g.enter(ctx, "pod", "f", w.work())
		want(t, "error of entering", err, nil)
		cancel()
		_, err = g.leave(ctx, e)
		want(t, "gave up", errors.Is(err, context.Canceled), true)
		pass(time.Hour)
		want(t, "undone", len(w.undone), 0)
	})
}

func TestSupersededResultIsNotHandedOut(t *testing.T) {
	in(t, func(t *testing.T, g *Group[int], w *workshop) {
		stubborn := w.work()
		stubborn.Start = func(context.Context) (int, error) { <-time.After(time.Second); return 9, nil }
		first := make(chan error, 1)
		go func() {
			_, err := g.Join(t.Context(), "pod", "f", stubborn)
			first <- err
		}()
		synctest.Wait()
		_, err := g.Join(t.Context(), "pod", "g", w.work())
		want(t, "error of the second", err, nil)
		want(t, "the first is told", errors.Is(<-first, ErrSuperseded), true)
		want(t, "the first is undone", len(w.undone) == 1 && w.undone[0] == 9, true)
	})
}

// The result and the end of a caller's patience may come at the same moment. Then nobody has the result.
func TestResultThatCameWithTheDeadlineIsNotClaimed(t *testing.T) {
	in(t, func(t *testing.T, g *Group[int], w *workshop) {
		ctx, cancel := context.WithCancel(t.Context())
		e, err := g.enter(ctx, "pod", "f", w.work())
		want(t, "error of entering", err, nil)
		<-e.done
		cancel()
		_, err = g.leave(ctx, e)
		want(t, "error", errText(err), "make pod: ended after 1.0 s: context canceled")
		pass(claimBound)
		want(t, "undone", len(w.undone), 1)
	})
}
