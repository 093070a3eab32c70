package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/criserver/criserver/command"
)

const (
	maxStdout = 4 << 20 // bytes that a result may have
	maxStderr = 4 << 10 // bytes of complaints that go into an error
)

// pluginExec runs plugins for libcni, within bounds. What a plugin that fails left behind works on something that is being
// undone and is killed; what one that succeeds leaves behind may be meant to stay, as a DHCP client is.
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
	stdout, stderr := command.Output{Max: maxStdout}, command.Output{Max: maxStderr}
	plugin := command.Command{Path: path, Env: env, Stdin: bytes.NewReader(stdin), Stdout: &stdout, Stderr: &stderr, Leaves: true}
	switch err := plugin.Run(bounded); {
	case err != nil && bounded.Err() != nil:
		return nil, stoppedError(name, verb, context.Cause(bounded), time.Since(begin), &stderr)
	case err != nil:
		return nil, failedError(name, verb, err, &stdout, &stderr)
	case stdout.Cut() && verb == "ADD": // the other answers are not read
		return nil, fmt.Errorf("plugin %s: answer to %s: more than %d bytes", name, verb, maxStdout)
	}
	if err := checkNoNull(stdout.Bytes()); err != nil {
		return nil, fmt.Errorf("plugin %s: answer to %s: %w", name, verb, err)
	}
	return stdout.Bytes(), nil
}

// errBound is the cause of a context that ended because of the plugin's own bound, not the caller's.
var errBound = errors.New("bound of one plugin call reached")

func stoppedError(name, verb string, cause error, took time.Duration, stderr *command.Output) error {
	if errors.Is(cause, errBound) || errors.Is(cause, context.DeadlineExceeded) {
		return fmt.Errorf("plugin %s: no answer to %s after %s (killed)%s", name, verb, seconds(took), complaint(stderr))
	}
	return fmt.Errorf("plugin %s: %s given up after %s (killed): %w%s", name, verb, seconds(took), cause, complaint(stderr))
}

// failedError makes a sentence of what the plugin says of its failure: a CNI error on stdout, else stderr, else stdout.
func failedError(name, verb string, err error, stdout, stderr *command.Output) error {
	var told types.Error
	if json.Unmarshal(stdout.Bytes(), &told) == nil && (told.Msg != "" || told.Code != 0) {
		return fmt.Errorf("plugin %s: %s failed: %w (code %d)%s", name, verb, &told, told.Code, complaint(stderr))
	}
	if len(stderr.Bytes()) == 0 {
		stderr = stdout
	}
	return fmt.Errorf("plugin %s: %s failed: %w%s", name, verb, err, complaint(stderr))
}

func complaint(output *command.Output) string {
	text := output.Excerpt(maxStderr)
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
