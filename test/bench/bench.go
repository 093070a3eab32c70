package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/cgroup"
)

// insideEnv says that the process is already in the namespaces that reexec makes.
const insideEnv = "CRISERVER_BENCH_INSIDE"

// reexec runs this program again in private mount and network namespaces, and returns its exit code.
func reexec() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	if err := cmd.Start(); err != nil {
		fail(err)
	}
	go func() {
		for range signals { // there it stops what runs and cleans up
			_ = cmd.Process.Signal(unix.SIGTERM)
		}
	}()
	if err := cmd.Wait(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return exit.ExitCode()
		}
		fail(err)
	}
	return 0
}

// bench is one run: where it works, whom it measures, and what it has to remove.
type bench struct {
	options
	dir     string // of this run; everything is below it
	parent  string // cgroup parent of this run
	cgroups *cgroup.Hierarchies
	peers   []ociPeer
	missing []string // peers that are not here, and why
	undo    []func() error
	ratios  []ratio

	insecure []string // registries that CRI-O is told to speak plain HTTP with
	networks int      // bridges that were configured
}

func newBench(o options) (_ *bench, err error) {
	b := &bench{options: o}
	if err := isolate(); err != nil {
		return nil, err
	}
	for _, p := range []*string{&b.criserver, &b.pause, &b.plugins} {
		if *p, err = filepath.Abs(*p); err != nil {
			return nil, err
		}
		if _, err := os.Stat(*p); err != nil {
			return nil, fmt.Errorf("%w; make build makes it", err)
		}
	}
	if b.cgroups, err = cgroup.Detect(); err != nil {
		return nil, err
	}
	if b.dir, err = os.MkdirTemp("/var/tmp", "criserver-bench-"); err != nil {
		return nil, err
	}
	b.parent = "/" + filepath.Base(b.dir)
	for _, p := range []*string{&b.runc, &b.containerd, &b.crio, &b.conmon, &b.pinns, &b.beside} {
		if path, err := exec.LookPath(*p); err == nil { // one that is missing is told later
			if *p, err = filepath.Abs(path); err != nil {
				return nil, err
			}
		}
	}
	b.findPeers()
	return b, nil
}

// later registers what undoes a step of the running part.
func (b *bench) later(f func() error) { b.undo = append(b.undo, f) }

// cleanPart undoes what a part left, in reverse.
func (b *bench) cleanPart() error {
	var errs []error
	for i := len(b.undo) - 1; i >= 0; i-- {
		errs = append(errs, b.undo[i]())
	}
	b.undo = nil
	return errors.Join(errs...)
}

func (b *bench) close() error {
	return errors.Join(b.cleanPart(), b.removeCgroups(), b.cgroups.Close(), os.RemoveAll(b.dir))
}

// removeCgroups removes this run's parent and what peers left empty below it.
func (b *bench) removeCgroups() error {
	var errs []error
	for _, h := range b.cgroups.List() {
		var dirs []string
		err := filepath.WalkDir(h.MountPoint+b.parent, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil // what is gone meanwhile need not be removed
		})
		errs = append(errs, err)
		for i := len(dirs) - 1; i >= 0; i-- {
			if err := unix.Rmdir(dirs[i]); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, &os.PathError{Op: "rmdir", Path: dirs[i], Err: err})
			}
		}
	}
	return errors.Join(errs...)
}

// mkdir makes a directory of this run.
func (b *bench) mkdir(name string) (string, error) {
	dir := filepath.Join(b.dir, name)
	return dir, os.MkdirAll(dir, 0o755)
}

// rounds is n, or a tenth of it in a quick run.
func (b *bench) rounds(n int) int {
	if b.quick {
		return max(n/10, 3)
	}
	return n
}

// many is rounds, as many times as was asked for: of what is short.
func (b *bench) many(n int) int { return b.rounds(n) * b.times }

// cleanContext is for undoing, which must happen also when time is up.
func cleanContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 30*time.Second)
}

func randomID() string {
	var id [32]byte
	_, _ = rand.Read(id[:])
	return hex.EncodeToString(id[:])
}
