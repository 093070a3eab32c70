package stage

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Step is one act of an operation on an S and what takes it back.
type Step[S any] struct {
	Name  string
	Bound time.Duration // of Do and of Undo, each; 0: only that of the whole list
	Do    func(S, context.Context) error
	Undo  func(S, context.Context) error // nil: nothing to take back. Idempotent, also when Do never ran or failed half way
}

// Steps are done in order and undone in reverse. The same list serves an operation, its rollback, removal and recovery.
type Steps[S any] []Step[S]

// rollbackBound is how long the undoing of a failed or cancelled list may take altogether.
const rollbackBound = 2 * time.Minute

// Do does every step as a stage. When one fails or ctx ends before it, that step and those before it are undone in
// reverse, on a context that the end of ctx does not touch, and the failure is returned with what could not be undone.
func (l Steps[S]) Do(ctx context.Context, s S) error {
	for i, step := range l {
		err := context.Cause(ctx)
		if err == nil {
			err = Run(ctx, step.Name, step.Bound, func(ctx context.Context) error { return step.Do(s, ctx) })
		} else {
			err = &Error{Stage: step.Name, Err: err}
		}
		if err == nil {
			continue
		}
		fresh, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackBound)
		defer cancel()
		if left := l[:i+1].Undo(fresh, s); left != nil {
			return fmt.Errorf("%w; undoing it: %w", err, left)
		}
		return err
	}
	return nil
}

// Undo undoes every step in reverse. It goes on past failures and returns all of them.
func (l Steps[S]) Undo(ctx context.Context, s S) error {
	var errs []error
	for i := len(l) - 1; i >= 0; i-- {
		step := l[i]
		if step.Undo == nil {
			continue
		}
		errs = append(errs, Run(ctx, "undo "+step.Name, step.Bound, func(ctx context.Context) error { return step.Undo(s, ctx) }))
	}
	return errors.Join(errs...)
}
