package imageservice

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/criserver/criserver/stage"
)

// flights runs work once for everybody who wants it at the same time. The work has a context of its own, which ends when
// nobody waits any more.
type flights[T any] struct {
	name    string // of the work, in records
	rec     *stage.Recorder
	base    context.Context // of all work; a field because work outlives the calls that begin it
	mu      sync.Mutex
	running map[string]*flight[T]
	wg      sync.WaitGroup
}

type flight[T any] struct {
	op      *stage.Op
	cancel  context.CancelFunc
	waiters int  // guarded by flights.mu
	dying   bool // guarded by flights.mu; cancelled since nobody waited
	done    chan struct{}
	value   T     // once done
	err     error // once done
}

func newFlights[T any](base context.Context, rec *stage.Recorder, name string) *flights[T] {
	return &flights[T]{name: name, rec: rec, base: base, running: map[string]*flight[T]{}}
}

// do returns the result of the work under key, which is work if none is under way; ours says that it is, else work is
// never called. When ctx ends do returns its cause and where the work is. If that cancelled the work and linger is set, do first waits until
// the work has ended.
func (g *flights[T]) do(ctx context.Context, key string, linger bool, work func(context.Context) (T, error)) (value T, ours bool, err error) {
	f, ours, err := g.join(ctx, key, work)
	if err != nil {
		return value, false, err
	}
	select {
	case <-f.done:
		return f.value, ours, f.err
	case <-ctx.Done():
	}
	where := f.op.Where()
	if g.leave(f) && linger {
		<-f.done
	}
	return value, ours, fmt.Errorf("gave up waiting, it is %s: %w", where, context.Cause(ctx))
}

// join makes the caller one of the waiters; ours says that it began the work.
func (g *flights[T]) join(ctx context.Context, key string, work func(context.Context) (T, error)) (f *flight[T], ours bool, err error) {
	for {
		if ctx.Err() != nil {
			return nil, false, context.Cause(ctx)
		}
		g.mu.Lock()
		f := g.running[key]
		if f == nil {
			f = g.start(key, work)
			g.mu.Unlock()
			return f, true, nil
		}
		if !f.dying {
			f.waiters++
			g.mu.Unlock()
			return f, false, nil
		}
		g.mu.Unlock()
		select { // what is being cancelled is undone first
		case <-f.done:
		case <-ctx.Done():
		}
	}
}

// start is called with mu held.
func (g *flights[T]) start(key string, work func(context.Context) (T, error)) *flight[T] {
	ctx, cancel := context.WithCancel(g.base)
	subject, _, _ := strings.Cut(key, "\x00") // what follows only tells apart
	ctx, op := g.rec.Start(ctx, g.name, subject)
	f := &flight[T]{op: op, cancel: cancel, waiters: 1, done: make(chan struct{})}
	g.running[key] = f
	g.wg.Go(func() {
		defer cancel()
		f.err = stage.Protect(func() (err error) {
			f.value, err = work(ctx)
			return err
		})
		op.End(f.err)
		g.mu.Lock()
		delete(g.running, key)
		g.mu.Unlock()
		close(f.done)
	})
	return f
}

// leave takes one waiter away and says whether that was the last, which cancels the work.
func (g *flights[T]) leave(f *flight[T]) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f.waiters--; f.waiters > 0 {
		return false
	}
	f.dying = true
	f.cancel()
	return true
}

// stage is the stage in which the work under key is; empty if there is none.
func (g *flights[T]) stage(key string) string {
	g.mu.Lock()
	f := g.running[key]
	g.mu.Unlock()
	if f == nil {
		return ""
	}
	return f.op.Stage()
}

// wait returns when no work is left. No new work may begin.
func (g *flights[T]) wait() { g.wg.Wait() }
