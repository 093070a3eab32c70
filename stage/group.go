package stage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

var (
	// ErrSuperseded ends the wait for an operation that a different request under the same identity replaced.
	ErrSuperseded = errors.New("superseded by a different request for the same object")
	// ErrClosed refuses an operation because the group was closed.
	ErrClosed = errors.New("shutting down")
)

const (
	claimBound = 5 * time.Minute // how long a result waits for a caller
	undoBound  = 2 * time.Minute // how long the undoing of one result may take
)

// Group holds the operations of one kind that run, and the results of those that ended while they are valid.
type Group[T any] struct {
	name string
	rec  *Recorder
	log  *slog.Logger

	mu      sync.Mutex
	entries map[string]*entry[T]
	sweepAt int // len(entries) at which invalid results are looked for next
	closed  bool
	running sync.WaitGroup // of operations and of undos of unclaimed results
}

// Work is what an operation does.
type Work[T any] struct {
	// Start does the work. Its context carries the values but not the end of the context of the caller that came first;
	// it is cancelled when the work is superseded or the group closed. It leaves nothing behind when it fails.
	Start func(context.Context) (T, error)
	// Undo removes what Start made. It is idempotent and called again later if it fails.
	Undo func(context.Context, T) error
	// Valid says whether the object that Start made may still answer for the request (READY, CREATED). It must be quick
	// and not call the group, whose lock is held. nil: the result is for those who wait for it, and forgotten then.
	Valid func(T) bool
}

// entry is one operation and its result. Its fields are guarded by Group.mu, except those that never change
// and result and err, which are written before done is closed.
type entry[T any] struct {
	key, fingerprint string
	work             Work[T]
	op               *Op
	cancel           context.CancelCauseFunc
	done             chan struct{} // closed when Start has returned or was not reached

	result T
	err    error

	waiters    int
	claimed    bool          // a caller has got the result
	superseded bool          // the result is not handed out any more, it is to be undone
	undone     bool          // Undo has succeeded
	undoing    chan struct{} // not nil while Undo runs; closed at its end
	expiry     *time.Timer   // of an unclaimed result
	owed       *entry[T]     // the older one that e could not undo, and failed for it
}

// NewGroup returns a group whose operations are called name in records. rec and log may be nil.
func NewGroup[T any](name string, rec *Recorder, log *slog.Logger) *Group[T] {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Group[T]{name: name, rec: rec, log: log, entries: map[string]*entry[T]{}, sweepAt: 64}
}

// Join returns the result of the operation of this key and fingerprint: of the one that runs, of the one that ended
// while its result is valid, or of a new one. An operation or valid result under the same key with another fingerprint is
// cancelled and undone first. When ctx ends, only the wait ends; the error says where the operation is.
func (g *Group[T]) Join(ctx context.Context, key, fingerprint string, work Work[T]) (T, error) {
	e, err := g.enter(ctx, key, fingerprint, work)
	if err != nil {
		var zero T
		return zero, fmt.Errorf("%s %s: %w", g.name, key, err)
	}
	if !e.ended() {
		FromContext(ctx).join(e.op)
	}
	select {
	case <-e.done:
	case <-ctx.Done():
	}
	return g.leave(ctx, e)
}

// enter finds or begins the operation and counts the caller as one that waits for it.
func (g *Group[T]) enter(ctx context.Context, key, fingerprint string, work Work[T]) (*entry[T], error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, ErrClosed
	}
	e := g.current(key)
	if e == nil || e.superseded || e.fingerprint != fingerprint {
		e = g.begin(ctx, e, &entry[T]{key: key, fingerprint: fingerprint, work: work, done: make(chan struct{})})
	}
	e.waiters++
	e.disarm()
	return e, nil
}

// leave ends the wait of one caller. One whose context has ended takes no result, also when both came at once: it would
// count as claimed, and nobody has it.
func (g *Group[T]) leave(ctx context.Context, e *entry[T]) (T, error) {
	var zero T
	g.mu.Lock()
	defer g.mu.Unlock()
	e.waiters--
	gone := ctx.Err()
	switch {
	case e.ended() && e.err != nil:
		return zero, e.err
	case gone != nil:
		g.expire(e)
		return zero, fmt.Errorf("%s %s: %s: %w", g.name, e.key, e.op.Where(), gone)
	case e.superseded:
		return zero, fmt.Errorf("%s %s: %w", g.name, e.key, ErrSuperseded)
	}
	e.claimed = true
	return e.result, nil
}

// Adopt makes known a result from before a restart, as if a caller had claimed it. An entry of the same key stays.
func (g *Group[T]) Adopt(key, fingerprint string, result T, work Work[T]) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.entries[key]; ok || g.closed {
		return
	}
	e := &entry[T]{key: key, fingerprint: fingerprint, work: work, result: result, claimed: true, done: make(chan struct{})}
	_, e.op = (*Recorder)(nil).Start(context.Background(), g.name, key)
	e.cancel = func(error) {}
	close(e.done)
	g.entries[key] = e
}

// Close refuses new operations and waits for those that run, which are cancelled when ctx ends. Unclaimed results stay.
func (g *Group[T]) Close(ctx context.Context) {
	g.mu.Lock()
	g.closed = true
	for _, e := range g.entries {
		e.disarm()
	}
	g.mu.Unlock()
	stop := context.AfterFunc(ctx, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		for _, e := range g.entries {
			e.cancel(ErrClosed)
		}
	})
	defer stop()
	g.running.Wait()
}

// current returns the entry of key, or nil if there is none or its object does not answer any more. g.mu is held.
func (g *Group[T]) current(key string) *entry[T] {
	e := g.entries[key]
	if e == nil || !g.stale(e) {
		return e
	}
	delete(g.entries, key)
	return nil
}

// stale says whether e has a result that is not valid, and need not be undone either. g.mu is held.
func (g *Group[T]) stale(e *entry[T]) bool {
	return e.ended() && !e.superseded && !e.work.Valid(e.result)
}

// ended says whether Start has returned.
func (e *entry[T]) ended() bool {
	select {
	case <-e.done:
		return true
	default:
		return false
	}
}

// disarm stops the clock of an unclaimed result. Group.mu is held.
func (e *entry[T]) disarm() {
	if e.expiry != nil {
		e.expiry.Stop()
		e.expiry = nil
	}
}

// begin starts the operation e, which replaces prev if that is not nil. g.mu is held.
func (g *Group[T]) begin(ctx context.Context, prev, e *entry[T]) *entry[T] {
	if len(g.entries) >= g.sweepAt {
		for key := range g.entries {
			g.current(key)
		}
		g.sweepAt = max(64, 2*len(g.entries))
	}
	ctx, e.op = g.rec.Start(context.WithoutCancel(ctx), g.name, e.key)
	ctx, e.cancel = context.WithCancelCause(ctx)
	if prev != nil {
		prev.superseded = true
		prev.cancel(ErrSuperseded)
		prev.disarm()
	}
	g.entries[e.key] = e
	g.running.Go(func() { g.run(ctx, prev, e) })
	return e
}

// run is the goroutine of operation e.
func (g *Group[T]) run(ctx context.Context, prev, e *entry[T]) {
	var result T
	err := Protect(func() (err error) {
		if err = g.replace(ctx, prev, e); err == nil {
			err = context.Cause(ctx)
		}
		if err == nil {
			result, err = e.work.Start(ctx)
		}
		return err
	})
	if err != nil && errors.Is(context.Cause(ctx), ErrSuperseded) && !errors.Is(err, ErrSuperseded) {
		err = fmt.Errorf("%w: %w", ErrSuperseded, err)
	}
	e.op.End(err)
	e.cancel(nil)

	g.mu.Lock()
	defer g.mu.Unlock()
	var p *PanicError
	if errors.As(err, &p) && e.waiters == 0 { // else a caller reports it
		g.log.Error("operation panicked", "operation", g.name, "subject", e.key, "panic", p.Value, "stack", string(p.Stack))
	}
	e.result, e.err = result, err
	close(e.done)
	switch {
	case err == nil && e.work.Valid != nil:
		g.expire(e)
	case g.entries[e.key] != e: // the one that superseded e finds what e owes
	case e.owed != nil:
		g.entries[e.key] = e.owed
	default:
		delete(g.entries, e.key)
	}
}

// replace waits for the end of prev, which e supersedes, and undoes its result or what it owed itself.
func (g *Group[T]) replace(ctx context.Context, prev, e *entry[T]) error {
	if prev == nil {
		return nil
	}
	return Run(ctx, "undo the older request", 0, func(ctx context.Context) error {
		<-prev.done // its context is cancelled, and its stages are bounded
		if prev.err != nil {
			prev = prev.owed
		}
		if prev == nil {
			return nil
		}
		e.owed = prev
		if err := g.undo(ctx, prev); err != nil {
			return err
		}
		e.owed = nil
		return nil
	})
}

// expire starts the clock of the result of an ended operation that nobody has claimed or waits for. g.mu is held.
func (g *Group[T]) expire(e *entry[T]) {
	if e.ended() && e.err == nil && !e.claimed && e.waiters == 0 && !e.superseded {
		g.arm(e)
	}
}

// arm lets the result of e be undone in claimBound unless it is disarmed before. g.mu is held.
func (g *Group[T]) arm(e *entry[T]) {
	if g.closed || e.expiry != nil {
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(claimBound, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.closed || e.expiry != timer || g.current(e.key) != e {
			return
		}
		e.superseded, e.expiry = true, nil
		g.running.Go(func() { g.abandon(e) })
	})
	e.expiry = timer
}

// abandon undoes the unclaimed result of e, and sees to it that it is tried again later if that fails.
func (g *Group[T]) abandon(e *entry[T]) {
	ctx, op := g.rec.Start(context.Background(), "undo unclaimed "+g.name, e.key)
	err := Run(ctx, "undo", 0, func(ctx context.Context) error { return g.undo(ctx, e) })
	op.End(err)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.entries[e.key] != e {
		return // a new request took over
	}
	if err == nil {
		delete(g.entries, e.key)
		return
	}
	g.log.Error("cannot undo an unclaimed result, trying again later", "operation", g.name, "subject", e.key, "error", err)
	g.arm(e)
}

// undo undoes the result of e once, however many ask for it at a time.
func (g *Group[T]) undo(ctx context.Context, e *entry[T]) error {
	g.mu.Lock()
	for e.undoing != nil {
		other := e.undoing
		g.mu.Unlock()
		<-other
		g.mu.Lock()
	}
	if e.undone {
		g.mu.Unlock()
		return nil
	}
	ended := make(chan struct{})
	e.undoing = ended
	g.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoBound)
	defer cancel()
	err := Protect(func() error { return e.work.Undo(ctx, e.result) })
	g.mu.Lock()
	defer g.mu.Unlock()
	e.undoing, e.undone = nil, err == nil
	close(ended)
	return err
}
