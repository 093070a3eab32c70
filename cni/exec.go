package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
)

const (
	maxStdout = 4 << 20 // bytes of a result that are read; the rest is dropped and the result then is no JSON
	maxStderr = 4 << 10 // bytes of complaints that go into an error

	// A plugin may be written while it is wanted (ETXTBSY): tried that often, so far apart.
	busyTries = 10
	busyPause = 100 * time.Millisecond

	// pipeGrace is how long the output of an ended plugin may be held open by processes that it left behind.
	pipeGrace = time.Second
)

// pluginExec runs plugins for libcni: each in a process group of its own, which is killed as a whole when the bound
// is reached or ctx ends, and with criserver itself, so that no ADD of an earlier life races with the DEL of the next.
type pluginExec struct {
	version.PluginDecoder
	bound time.Duration // of one call of one plugin
}

var _ invoke.Exec = (*pluginExec)(nil)

// FindInPath returns the path of a plugin and says where it was looked for if there is none.
func (e *pluginExec) FindInPath(plugin string, dirs []string) (string, error) {
	path, err := findPlugin(plugin, dirs)
	if err != nil {
		return "", err
	}
	return path, nil
}

func findPlugin(plugin string, dirs []string) (string, error) {
	if plugin == "" || strings.ContainsRune(plugin, os.PathSeparator) {
		return "", fmt.Errorf("plugin name %q: must be the name of a file in a plugin directory", plugin)
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, plugin)
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fmt.Errorf("plugin %s: not found in %s", plugin, strings.Join(dirs, ", "))
}

// ExecPlugin runs one plugin once and returns what it wrote to stdout.
func (e *pluginExec) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	name, verb := filepath.Base(path), verbOf(env)
	bounded, cancel := context.WithTimeoutCause(ctx, e.bound, errBound)
	defer cancel()
	begin := time.Now()
	for try := 1; ; try++ {
		stdout, stderr, err := runGroup(bounded, path, stdin, env)
		if err == nil {
			if err := checkNoNull(stdout); err != nil {
				return nil, fmt.Errorf("plugin %s: answer to %s: %w", name, verb, err)
			}
			return stdout, nil
		}
		if cause := context.Cause(bounded); cause != nil {
			return nil, stoppedError(name, verb, cause, time.Since(begin), stderr)
		}
		if !errors.Is(err, unix.ETXTBSY) || try == busyTries {
			return nil, failedError(name, verb, err, stdout, stderr)
		}
		select {
		case <-time.After(busyPause):
		case <-bounded.Done():
		}
	}
}

// errBound is the cause of a context that ended because of the plugin's own bound, not the caller's.
var errBound = errors.New("bound of one plugin call reached")

func stoppedError(name, verb string, cause error, took time.Duration, stderr []byte) error {
	if errors.Is(cause, errBound) || errors.Is(cause, context.DeadlineExceeded) {
		return fmt.Errorf("plugin %s: no answer to %s after %s (killed)%s", name, verb, seconds(took), complaint(stderr))
	}
	return fmt.Errorf("plugin %s: %s given up after %s (killed): %w%s", name, verb, seconds(took), cause, complaint(stderr))
}

// failedError makes a sentence of what the plugin says of its failure: a CNI error on stdout, else stderr.
func failedError(name, verb string, err error, stdout, stderr []byte) error {
	var told types.Error
	if json.Unmarshal(stdout, &told) == nil && (told.Msg != "" || told.Code != 0) {
		return fmt.Errorf("plugin %s: %s failed: %w (code %d)%s", name, verb, &told, told.Code, complaint(stderr))
	}
	if out := bytes.TrimSpace(stdout); len(stderr) == 0 && len(out) > 0 {
		stderr = out[:min(len(out), maxStderr)]
	}
	return fmt.Errorf("plugin %s: %s failed: %w%s", name, verb, err, complaint(stderr))
}

func complaint(stderr []byte) string {
	text := strings.TrimSpace(strings.ToValidUTF8(string(stderr), "?"))
	if text == "" {
		return ""
	}
	return fmt.Sprintf("; it wrote %q", text)
}

func seconds(d time.Duration) string {
	if d >= 10*time.Second {
		return fmt.Sprintf("%.0fs", d.Seconds())
	}
	return fmt.Sprintf("%.1fs", d.Seconds())
}

func verbOf(env []string) string {
	for _, kv := range env {
		if verb, ok := strings.CutPrefix(kv, "CNI_COMMAND="); ok {
			return verb
		}
	}
	return "a call"
}

// runGroup runs path in a new process group until it ends or ctx does.
func runGroup(ctx context.Context, path string, stdin []byte, env []string) (stdout, stderr []byte, err error) {
	runtime.LockOSThread() // PDEATHSIG fires when the thread that forked ends, so it must not end before the plugin
	defer runtime.UnlockOSThread()
	out, complaints := &limitedBuffer{max: maxStdout}, &limitedBuffer{max: maxStderr}
	pidfd := -1
	cmd := exec.CommandContext(ctx, path)
	cmd.Env, cmd.Dir = env, "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), out, complaints
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, PidFD: &pidfd}
	cmd.Cancel = func() error { return killGroup(pidfd, cmd.Process.Pid) }
	cmd.WaitDelay = pipeGrace
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	defer func() { _ = unix.Close(pidfd) }()
	err = cmd.Wait()
	if errors.Is(err, exec.ErrWaitDelay) { // ended well, but left a process behind that holds its output
		err = nil
	}
	if err != nil { // what a failing plugin left behind works on something that is being undone
		_ = killGroup(pidfd, cmd.Process.Pid)
	}
	return out.data, complaints.data, err
}

// killGroup kills the process group of a child whose pidfd is given. The pidfd names the group even after its leader
// was reaped (since Linux 6.9). Before, the number is used, and only while the leader is not reaped.
func killGroup(pidfd, pid int) error {
	err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, unix.PIDFD_SIGNAL_PROCESS_GROUP)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		if err = unix.PidfdSendSignal(pidfd, 0, nil, 0); err == nil || errors.Is(err, unix.ENOSYS) {
			err = unix.Kill(-pid, unix.SIGKILL)
		}
	}
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// limitedBuffer keeps the first max bytes and swallows the rest, so that a chatty plugin neither blocks nor eats memory.
type limitedBuffer struct {
	data []byte
	max  int
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	b.data = append(b.data, p[:min(len(p), b.max-len(b.data))]...)
	return len(p), nil
}
