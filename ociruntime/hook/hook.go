package hook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
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

const (
	// outputMax is how much of a hook's output is told.
	outputMax = 4 << 10
	// drainBound is how long the output of a hook that has ended is read on, while children of it hold it open.
	drainBound = time.Second
)

// Limit is ctx with the hook's own time limit, if it has one.
func Limit(ctx context.Context, h specs.Hook) (context.Context, context.CancelFunc) {
	if h.Timeout == nil {
		return context.WithCancel(ctx)
	}
	bound := time.Duration(*h.Timeout) * time.Second
	return context.WithTimeoutCause(ctx, bound, fmt.Errorf("killed, it has not ended in %s", bound))
}

// Run runs a hook in the directory dir, with state as its standard input.
func Run(ctx context.Context, kind Kind, h specs.Hook, dir string, state *os.File) error {
	ctx, cancel := Limit(ctx, h)
	defer cancel()
	output, err := NewOutput()
	if err != nil {
		return err
	}
	args := h.Args
	if len(args) == 0 {
		args = []string{h.Path}
	}
	cmd := exec.Cmd{Path: h.Path, Args: args, Env: append([]string{}, h.Env...), Dir: dir, Stdin: state, Stdout: output.Write, Stderr: output.Write,
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true}}
	if err = cmd.Start(); err == nil {
		err = wait(ctx, &cmd)
	}
	return output.Verdict(ctx, kind, h.Path, err)
}

// wait waits for the end of cmd, which is killed with its children when ctx ends. It is reaped last, so that nobody else can
// have its pid when that happens.
func wait(ctx context.Context, cmd *exec.Cmd) error {
	killed := make(chan struct{})
	disarm := context.AfterFunc(ctx, func() {
		defer close(killed)
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	})
	for {
		err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if !disarm() {
		<-killed
	}
	return cmd.Wait()
}

// Output takes what a hook writes.
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
		var kept strings.Builder
		_, _ = io.CopyN(&kept, read, outputMax)
		_, _ = io.Copy(io.Discard, read) // a hook that writes more is not to wait
		o.text <- strings.TrimSpace(kept.String())
	}()
	return o, nil
}

// Verdict gives up the output and turns the cause of a failure into an *Error; ctx is that of Limit.
func (o *Output) Verdict(ctx context.Context, kind Kind, path string, cause error) error {
	_ = o.Write.Close()
	_ = o.read.SetReadDeadline(time.Now().Add(drainBound))
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
