package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The tests that call plugins act as a host of their own: the test binary runs itself again in a new network and mount
// namespace, so that the machine's devices, rules and sysctls are never touched.
const inHostEnv = "CRISERVER_CNI_TEST_HOST"

// runPluginEnv makes the test binary a process that only runs the plugin at the path that it holds.
const runPluginEnv = "CRISERVER_CNI_TEST_RUN"

// pluginDir is where the plugins of the pinned module were built, set by TestMain.
var pluginDir string

func TestMain(m *testing.M) {
	if plugin := os.Getenv(runPluginEnv); plugin != "" { // for TestPluginEndsWithUs
		e := &pluginExec{bound: time.Minute}
		_, _ = e.ExecPlugin(context.Background(), plugin, nil, []string{"CNI_COMMAND=ADD"})
		os.Exit(0)
	}
	if os.Geteuid() == 0 && os.Getenv(inHostEnv) == "" {
		os.Exit(runInOwnHost())
	}
	if os.Getenv(inHostEnv) != "" {
		if err := becomeHost(); err != nil {
			fmt.Fprintln(os.Stderr, "set up the test host:", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func runInOwnHost() int {
	dir, err := buildPlugins()
	if err != nil {
		fmt.Fprintln(os.Stderr, "build the plugins:", err)
		return 1
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inHostEnv+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // PDEATHSIG is about this thread
	var exit *exec.ExitError
	if err := cmd.Run(); errors.As(err, &exit) {
		return exit.ExitCode()
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "run the tests in namespaces of their own:", err)
		return 1
	}
	return 0
}

// becomeHost gives this process a /run of its own (iptables' lock file, namespace files) and a loopback device.
func becomeHost() error {
	pluginDir = os.Getenv(inHostEnv)
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	ns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	return SetLoopbackUp(ns)
}

// buildPlugins builds the plugins of the pinned module once, into $CRISERVER_TEST_BIN or the user's cache. Go's build
// cache makes a second time cheap; rename makes it safe against others who do the same.
func buildPlugins() (string, error) {
	dir := os.Getenv("CRISERVER_TEST_BIN")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(cache, "criserver-test-bin")
	}
	dir = filepath.Join(dir, "cni-v1.9.1")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for _, plugin := range []string{"main/bridge", "ipam/host-local", "meta/portmap", "meta/bandwidth"} {
		path := filepath.Join(dir, filepath.Base(plugin))
		if _, err := os.Stat(path); err == nil {
			continue
		}
		fresh := fmt.Sprintf("%s.%d", path, os.Getpid())
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", fresh,
			"github.com/containernetworking/plugins/plugins/"+plugin)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w: %s", plugin, err, out)
		}
		if err := os.Rename(fresh, path); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// needHost skips a test that needs the namespaces that only root can make.
func needHost(t testing.TB) {
	t.Helper()
	if pluginDir == "" {
		t.Skip("needs root: makes network namespaces and devices")
	}
}
