package command

import (
	"cmp"
	"context"
	"errors"
	"io"
	"os/exec"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Linger is how long the output of a program that has ended is read on, while processes that it left behind hold it open.
const Linger = time.Second

// A program may be written while it is wanted (ETXTBSY): tried that often, so far apart.
const (
	busyTries = 10
	busyPause = 100 * time.Millisecond
)

// Command is a program with what it is given.
type Command struct {
	Path           string
	Args           []string  // with its name as the first; nil: only that
	Env            []string  // nil: that of criserver
	Dir            string    // "": /
	Stdin          io.Reader // nil: empty
	Stdout, Stderr *Output   // nil: thrown away; they may be the same
	Leaves         bool      // what it started and left behind lives on if it succeeds
}

// Run runs the program to its end. When ctx ends before, the program is killed with all of its group, and the error is ctx's cause;
// one that failed by itself is an *exec.ExitError. What a program that fails leaves behind is always killed.
func (c *Command) Run(ctx context.Context) error {
	runtime.LockOSThread() // PDEATHSIG fires when the thread that forked ends, so it must not end before the program
	defer runtime.UnlockOSThread()
	cmd, err := c.start(ctx)
	if err != nil {
		return err
	}
	// Until it is reaped nobody else can have its pid, which is the number of the group.
	kill := func() { _ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	killed := make(chan struct{})
	disarm := context.AfterFunc(ctx, func() {
		defer close(killed)
		kill()
	})
	succeeded := waitEnd(cmd.Process.Pid)
	late := !disarm()
	if late {
		<-killed
	}
	if !succeeded || !c.Leaves {
		kill()
	}
	err = cmd.Wait()
	switch {
	case succeeded && errors.Is(err, exec.ErrWaitDelay): // somebody holds its output still
		return nil
	case late && !succeeded:
		return context.Cause(ctx)
	}
	return err
}

func (c *Command) start(ctx context.Context) (*exec.Cmd, error) {
	for try := 1; ; try++ {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		cmd := c.prepare()
		err := cmd.Start()
		if err == nil {
			return cmd, nil
		}
		if !errors.Is(err, unix.ETXTBSY) || try == busyTries {
			return nil, err
		}
		select {
		case <-time.After(busyPause):
		case <-ctx.Done():
		}
	}
}

func (c *Command) prepare() *exec.Cmd {
	cmd := &exec.Cmd{Path: c.Path, Args: c.Args, Env: c.Env, Dir: cmp.Or(c.Dir, "/"), Stdin: c.Stdin, WaitDelay: Linger,
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}}
	if len(cmd.Args) == 0 {
		cmd.Args = []string{c.Path}
	}
	if c.Stdout != nil { // a nil *Output would not be a nil Writer
		cmd.Stdout = c.Stdout
	}
	if c.Stderr != nil {
		cmd.Stderr = c.Stderr
	}
	return cmd
}

// childEnd is unix.Siginfo as waitid fills it. The union behind the code is aligned like a pointer.
type childEnd struct {
	signo, errno, code int32
	union              struct {
		_                [0]uintptr
		pid, uid, status int32
	}
}

const exitedByItself = 1 // CLD_EXITED, a code of childEnd

// waitEnd waits for the end of a child, which stays to be reaped, and says whether that was exit status 0.
func waitEnd(pid int) (succeeded bool) {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		end := (*childEnd)(unsafe.Pointer(&info))
		return err == nil && end.code == exitedByItself && end.union.status == 0
	}
}
