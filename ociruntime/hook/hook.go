package hook

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/command"
)

// Kind is when a hook runs, in the words of the OCI runtime specification.
type Kind string

// Kinds of hooks.
const (
	Prestart        Kind = "prestart"
	CreateRuntime   Kind = "createRuntime"
	CreateContainer Kind = "createContainer"
	StartContainer  Kind = "startContainer"
	Poststart       Kind = "poststart"
	Poststop        Kind = "poststop"
)

// Any says whether there is a hook at all.
func Any(h *specs.Hooks) bool {
	//lint:ignore SA1019 it still has to run
	return h != nil && len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer)+len(h.StartContainer)+len(h.Poststart)+len(h.Poststop) > 0
}

// Error says which hook failed, and how.
type Error struct {
	Kind   Kind
	Path   string
	Cause  error  // "exit status 3", or why it could not run
	Output string // what it wrote, shortened
}

func (e *Error) Error() string {
	text := fmt.Sprintf("%s hook %s: %v", e.Kind, e.Path, e.Cause)
	if e.Output != "" {
		text += ": " + e.Output
	}
	return text
}

func (e *Error) Unwrap() error { return e.Cause }

// outputMax is how many bytes of a hook's output are told.
const outputMax = 4 << 10

// Limit is ctx with the hook's own time limit, if it has one.
func Limit(ctx context.Context, h specs.Hook) (context.Context, context.CancelFunc) {
	if h.Timeout == nil {
		return context.WithCancel(ctx)
	}
	bound := time.Duration(*h.Timeout) * time.Second
	return context.WithTimeoutCause(ctx, bound, fmt.Errorf("killed, it has not ended in %s", bound))
}

// Run runs a hook in the directory dir, with state as its standard input. Processes that it leaves behind live on if it succeeds.
func Run(ctx context.Context, kind Kind, h specs.Hook, dir string, state *os.File) error {
	ctx, cancel := Limit(ctx, h)
	defer cancel()
	kept := command.Output{Max: outputMax}
	program := command.Command{Path: h.Path, Args: h.Args, Env: append([]string{}, h.Env...), Dir: dir, Stdin: state, Stdout: &kept, Stderr: &kept, Leaves: true}
	if err := program.Run(ctx); err != nil {
		return &Error{Kind: kind, Path: h.Path, Cause: err, Output: kept.Excerpt(outputMax)}
	}
	return nil
}

// Output takes what a hook writes that pause runs.
type Output struct {
	Write *os.File // the hook's end
	read  *os.File
	text  chan string
}

// NewOutput makes an Output; Verdict ends it.
func NewOutput() (*Output, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	o := &Output{Write: write, read: read, text: make(chan string, 1)}
	go func() {
		kept := command.Output{Max: outputMax}
		_, _ = io.Copy(&kept, read)
		o.text <- kept.Excerpt(outputMax)
	}()
	return o, nil
}

// Verdict gives up the output and turns the cause of a failure into an *Error; ctx is that of Limit.
func (o *Output) Verdict(ctx context.Context, kind Kind, path string, cause error) error {
	_ = o.Write.Close()
	_ = o.read.SetReadDeadline(time.Now().Add(command.Linger))
	text := <-o.text
	_ = o.read.Close()
	if cause == nil {
		return nil
	}
	if ctx.Err() != nil {
		cause = context.Cause(ctx)
	}
	return &Error{Kind: kind, Path: path, Cause: cause, Output: text}
}
