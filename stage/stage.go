package stage

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"
)

// Error is the failure of one stage.
type Error struct {
	Stage string        // as given to Run; stages within stages are joined by "/"
	After time.Duration // from the begin of the stage to its failure
	Err   error         // the cause; never nil
}

func (e *Error) Error() string {
	return fmt.Sprintf("stage %s: %v after %s", e.Stage, e.Err, Duration(e.After))
}

func (e *Error) Unwrap() error { return e.Err }

// PanicError is what a panic inside an operation, a step or a handler is turned into.
type PanicError struct {
	Value any    // what was given to panic
	Stack []byte // of the goroutine that panicked
}

func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// Protect calls fn and returns a panic of it as a *PanicError.
func Protect(fn func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{Value: v, Stack: debug.Stack()}
		}
	}()
	return fn()
}

// Run calls fn as the stage name of the operation in ctx, if there is one, for at most bound (0: no bound of its own).
// It returns when fn does; fn must heed its context. A failure comes back as an *Error; that of a stage within the
// stage is passed on as it is, because it says more. A panic of fn is a failure.
func Run(ctx context.Context, name string, bound time.Duration, fn func(context.Context) error) error {
	if outer, ok := ctx.Value(pathKey{}).(string); ok {
		name = outer + "/" + name
	}
	ctx = context.WithValue(ctx, pathKey{}, name)
	if bound > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, bound)
		defer cancel()
	}
	began := time.Now()
	finish := FromContext(ctx).begin(name, began)
	err := Protect(func() error { return fn(ctx) })
	took := time.Since(began)
	finish(took, err)
	if err == nil {
		return nil
	}
	var inner *Error
	if errors.As(err, &inner) {
		return err
	}
	return &Error{Stage: name, After: took, Err: err}
}

// pathKey is the context key of the name of the stage that is running.
type pathKey struct{}

// Duration prints d as people read it in messages: "4.2 s", "12.5 ms".
func Duration(d time.Duration) string {
	if d >= 100*time.Millisecond {
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}
