package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// script is a shell that runs the text in a directory of its own.
func script(t *testing.T, text string) (c *Command, stdout *Output) {
	t.Helper()
	stdout = &Output{Max: 1 << 10}
	return &Command{Path: "/bin/sh", Args: []string{"sh", "-c", text}, Dir: t.TempDir(), Stdout: stdout}, stdout
}

func TestWhatAProgramIsGiven(t *testing.T) {
	dir := t.TempDir()
	c, stdout := script(t, `echo "$0 $(cat) $A in $(pwd)"; echo err >&2`)
	c.Args, c.Env, c.Dir, c.Stdin, c.Stderr = append(c.Args, "zero"), []string{"A=b", "PATH=/usr/bin:/bin"}, dir, strings.NewReader("input"), stdout
	if err := c.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, want := stdout.Excerpt(100), "zero input b in "+dir+"\nerr"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	stdout = &Output{Max: 100}
	if err := (&Command{Path: "/bin/pwd", Stdout: stdout}).Run(t.Context()); err != nil || stdout.Excerpt(100) != "/" {
		t.Errorf("%q, %v", stdout.Excerpt(100), err)
	}
}

func TestHowAProgramFails(t *testing.T) {
	for text, want := range map[string]string{
		"exit 3":        "exit status 3",
		"kill -TERM $$": "signal: terminated",
	} {
		c, _ := script(t, text)
		var exit *exec.ExitError
		if err := c.Run(t.Context()); !errors.As(err, &exit) || err.Error() != want {
			t.Errorf("%s: %v", text, err)
		}
	}
	if err := (&Command{Path: "/no/such/program"}).Run(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
	c, stdout := script(t, "echo started")
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("nobody waits")
	cancel(gone)
	if err := c.Run(ctx); !errors.Is(err, gone) || stdout.Excerpt(100) != "" {
		t.Errorf("a context that has ended: %v, %q", err, stdout.Excerpt(100))
	}
}

// The program and its child are told to end and do not; both are gone when their time is up, and what they wrote is there.
func TestLatePrograms(t *testing.T) {
	late := errors.New("late")
	for name, text := range map[string]string{
		"waits for its child": `trap "" TERM; sleep 1000 & echo $!; echo >ready; wait`,
		"writes on and on":    `trap "" PIPE; sleep 1000 & echo $!; echo >ready; while :; do echo more; done 2>/dev/null`,
	} {
		t.Run(name, func(t *testing.T) {
			c, stdout := script(t, text)
			ctx, cancel := context.WithCancelCause(t.Context())
			ready := fifo(t, filepath.Join(c.Dir, "ready"))
			go func() {
				<-ready
				cancel(late)
			}()
			if err := c.Run(ctx); !errors.Is(err, late) {
				t.Errorf("got %v", err)
			}
			waitGone(t, firstPid(t, stdout))
		})
	}
}

// Nothing that a program leaves behind holds up its end, whether it is to live on or not.
func TestWhatIsLeftBehind(t *testing.T) {
	const (
		stays   = `sleep 1000 & echo $!; exit %d`
		without = `sleep 1000 </dev/null >/dev/null & echo $!; exit %d`
		leaves  = `setsid sh -c 'echo >ready; exec sleep 1000' & echo $!; read line <ready; exit %d`
	)
	for _, row := range []struct {
		name, text string
		leaves     bool
		exit       int
		lives      bool
	}{
		{"is killed", stays, false, 0, false},
		{"is killed though it has no output of ours", without, false, 0, false},
		{"lives on", stays, true, 0, true},
		{"is killed, since it failed", stays, true, 1, false},
		{"is killed, since it failed, though it has no output of ours", without, true, 1, false},
		{"has left the group", leaves, false, 0, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			c, stdout := script(t, fmt.Sprintf(row.text, row.exit))
			c.Leaves = row.leaves
			if err := unix.Mkfifo(filepath.Join(c.Dir, "ready"), 0o600); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			if err := c.Run(t.Context()); (err != nil) != (row.exit != 0) {
				t.Error(err)
			}
			if took := time.Since(begin); took > Linger+30*time.Second {
				t.Errorf("it took %s", took)
			}
			pid := firstPid(t, stdout)
			if !row.lives {
				waitGone(t, pid)
			} else if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Errorf("what it left behind has ended: %v", err)
			}
		})
	}
}

func TestOutput(t *testing.T) {
	for _, row := range []struct {
		name, text string
		limit      int
		want       string
	}{
		{"all", "echo a; echo b", 100, "a\nb"},
		{"nothing", "", 100, ""},
		{"more than is kept", "head -c 1000000 /dev/zero | tr '\\0' x", 2000, strings.Repeat("x", 1<<10) + "..."},
		{"more than is told", "echo abcdef", 3, "abc..."},
		{"no text", `printf 'a\377b'`, 100, "a?b"},
		{"a character that is cut", `printf 'ab\303\244'`, 3, "ab..."},
	} {
		t.Run(row.name, func(t *testing.T) {
			c, stdout := script(t, row.text)
			full := 0
			stdout.Full = func() { full++ }
			if err := c.Run(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := stdout.Excerpt(row.limit); got != row.want {
				t.Errorf("got %.100q, want %.100q", got, row.want)
			}
			if cut := len(row.want) > 1<<10; stdout.Cut() != cut || cut != (full == 1) || len(stdout.Bytes()) > 1<<10 {
				t.Errorf("cut %v, told %d times, %d bytes", stdout.Cut(), full, len(stdout.Bytes()))
			}
		})
	}
}

// fifo makes a named pipe; the channel is closed when somebody has written into it.
func fifo(t *testing.T, path string) <-chan struct{} {
	t.Helper()
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		_, _ = os.ReadFile(path)
	}()
	return written
}

func firstPid(t *testing.T, output *Output) int {
	t.Helper()
	var pid int
	if _, err := fmt.Sscan(output.Excerpt(100), &pid); err != nil || pid < 2 {
		t.Fatalf("no pid in %q: %v", output.Excerpt(100), err)
	}
	return pid
}

// waitGone waits until a process that is no child of ours has ended.
func waitGone(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // gone already
	}
	defer func() { _ = unix.Close(fd) }()
	ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
	if ready != 1 || err != nil {
		t.Errorf("process %d lives on: %v", pid, err)
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}
