package trust

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

const (
	maxOutput = 32 << 10               // bytes of a verifier's output that are read, the rest is thrown away
	maxReason = 512                    // bytes of it that an error has
	pipeDelay = 500 * time.Millisecond // for what a verifier has left behind to close its pipes, before it is killed
)

// Verifiers are the programs in a directory.
type Verifiers struct {
	Dir     string
	Max     int           // of them; -1: any number
	Timeout time.Duration // of each
	Log     *slog.Logger  // gets what they say on standard error, at level debug
}

// Check asks all verifiers, one after another in the order of their names, until one does not accept. The error is
// ErrRefused unless ctx has ended.
func (v *Verifiers) Check(ctx context.Context, img Image) error {
	if img.Name == nil {
		return fmt.Errorf("%w: image verifiers: the image has no name to be asked about", ErrRefused)
	}
	entries, err := os.ReadDir(v.Dir)
	if err != nil {
		return fmt.Errorf("%w: image verifiers: %w", ErrRefused, err)
	}
	if v.Max >= 0 && len(entries) > v.Max {
		return fmt.Errorf("%w: image verifiers: %s has %d files, %d verifiers are allowed", ErrRefused, v.Dir, len(entries), v.Max)
	}
	for _, e := range entries {
		if err := v.ask(ctx, e.Name(), img); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("%w: image verifier %s: %w", ErrRefused, e.Name(), err)
		}
	}
	return nil
}

// ask runs one verifier; nil means that it accepts.
func (v *Verifiers) ask(ctx context.Context, name string, img Image) error {
	desc := img.Chain[0]
	input, err := json.Marshal(desc)
	if err != nil {
		return err
	}
	timed, cancel := context.WithTimeout(ctx, v.Timeout)
	defer cancel()
	var out, said clipped
	cmd := exec.CommandContext(timed, filepath.Join(v.Dir, name),
		"-name", img.Name.String(), "-digest", desc.Digest.String(), "-stdin-media-type", ocispec.MediaTypeDescriptor)
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &out, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) } // before it is waited for, so the group is its own
	cmd.WaitDelay = pipeDelay
	if err := cmd.Start(); err != nil {
		return err
	}
	killRest(cmd.Process.Pid)
	err = cmd.Wait()
	v.log(name, &said)
	var exit *exec.ExitError
	switch {
	case timed.Err() != nil && ctx.Err() == nil:
		return fmt.Errorf("has not answered within %v", v.Timeout)
	case errors.As(err, &exit):
		return fmt.Errorf("%v: %q", exit.ProcessState, out.reason())
	case errors.Is(err, exec.ErrWaitDelay) && cmd.ProcessState.Success():
		return nil // what it has left behind is dead
	}
	return err
}

// killRest waits until a process has ended, without reaping it, and kills what is left of its group.
func killRest(pid int) {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	_ = unix.Kill(-pid, unix.SIGKILL) // nothing may be left; the dead leader keeps the number
}

func (v *Verifiers) log(name string, said *clipped) {
	if v.Log == nil {
		return
	}
	for lines := bufio.NewScanner(said); lines.Scan(); {
		v.Log.Debug("image verifier", "name", name, "says", lines.Text())
	}
}

// clipped keeps the begin of what is written to it.
type clipped struct{ bytes.Buffer }

func (c *clipped) Write(p []byte) (int, error) {
	c.Buffer.Write(p[:min(len(p), maxOutput-c.Len())]) // never fails
	return len(p), nil
}

// ReadFrom hides the buffer's, which would take everything.
func (c *clipped) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{c}, r)
}

func (c *clipped) reason() string {
	text := strings.TrimSpace(strings.ToValidUTF8(c.String(), "?"))
	if len(text) > maxReason {
		text = strings.ToValidUTF8(text[:maxReason], "") + "..."
	}
	return text
}
