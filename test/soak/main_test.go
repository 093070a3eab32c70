package soak

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var (
	lasting  = flag.Duration("soak", 0, "how long to go on; 0 skips the soak")
	epoch    = flag.Duration("soak.epoch", 20*time.Second, "how long until everything is removed and looked at")
	workers  = flag.Int("soak.workers", 6, "lives at the same time")
	killMin  = flag.Duration("soak.kill-min", 200*time.Millisecond, "shortest time between two kills of criserver; 0: none is killed")
	killMax  = flag.Duration("soak.kill-max", 3*time.Second, "longest time between two kills of criserver")
	seed     = flag.Uint64("soak.seed", 0, "seed of the choices; 0: the time")
	binaries = flag.String("soak.bin", "", "directory with criserver, pause and cni/; empty: they are built")
	only     = flag.String("soak.only", "", "the one kind of life to live; empty: all")
	store    = flag.String("soak.store", "auto", "images.store of criserver: auto, erofs or overlay")
	keep     = flag.Bool("soak.keep", false, "keep the directory, with criserver's log")
)

// The program starts itself twice more: as the init of new namespaces, which reaps, and below it as the test.
const (
	stageEnv   = "SOAK_STAGE"
	dirEnv     = "SOAK_DIR"
	stageInit  = "init"
	stageTests = "tests"
)

// place is where everything of the soak is.
var place struct {
	dir     string
	cgroups string // parent of the cgroups of all pods, in every hierarchy
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

// repo is the root of the source tree, from where tests run.
const repo = "../.."

func run(m *testing.M) int {
	if *lasting == 0 || os.Getuid() != 0 {
		return m.Run() // which skips
	}
	place.dir = os.Getenv(dirEnv)
	place.cgroups = "/" + filepath.Base(place.dir)
	switch os.Getenv(stageEnv) {
	case "":
		return outside()
	case stageInit:
		return beInit()
	}
	return m.Run()
}

// outside does what must happen however the soak ends: it makes the directory and the cgroups, and removes them.
func outside() (code int) {
	dir, err := os.MkdirTemp("", "soak-") // short, for the sockets in it
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	place.dir, place.cgroups = dir, "/"+filepath.Base(dir)
	defer func() {
		err := eachHierarchy(func(point string) error { return removeTree(point + place.cgroups) })
		if *keep {
			fmt.Fprintln(os.Stderr, "soak: kept", dir)
		} else {
			err = errors.Join(err, os.RemoveAll(dir))
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "soak: clean up: %v\n", err)
			code = max(code, 1)
		}
	}()
	if err := errors.Join(eachHierarchy(func(point string) error { return os.Mkdir(point+place.cgroups, 0o755) }), build()); err != nil {
		fmt.Fprintf(os.Stderr, "soak: prepare: %v\n", err)
		return 1
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), stageEnv+"="+stageInit, dirEnv+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID,
		Pdeathsig:  unix.SIGKILL, // and the whole pid namespace with it
	}
	if err := cmd.Run(); cmd.ProcessState == nil {
		fmt.Fprintf(os.Stderr, "soak: enter new namespaces: %v\n", err)
		return 2
	}
	return cmd.ProcessState.ExitCode()
}

func eachHierarchy(do func(point string) error) error {
	text, err := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); f[2] == "cgroup" || f[2] == "cgroup2" {
			err = errors.Join(err, do(f[1]))
		}
	}
	return err
}

// removeTree removes a cgroup with what is below it; the processes have died with their pid namespace.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, removeTree(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(err, os.Remove(dir))
}

func bin(name string) string { return filepath.Join(place.dir, "bin", name) }

func build() error {
	if *binaries != "" {
		return os.CopyFS(bin(""), os.DirFS(*binaries))
	}
	for _, command := range []string{
		"go build -o " + bin("criserver") + " ./cmd/criserver",
		"make -s -C pause/src all BIN=" + bin(""),
		"go build -o " + bin("cni") + "/ $(go list tool | grep ^github.com/containernetworking/plugins/)",
	} {
		cmd := exec.Command("sh", "-c", command)
		cmd.Dir, cmd.Env = repo, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", command, err, out)
		}
	}
	return nil
}

// beInit prepares the namespaces, starts the test and reaps whatever is left to it until that ends.
func beInit() int {
	err := prepareNamespaces()
	if err == nil {
		err = os.Setenv(stageEnv, stageTests)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "soak: %v\n", err)
		return 2
	}
	test, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{Env: os.Environ(), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		fmt.Fprintf(os.Stderr, "soak: start the test: %v\n", err)
		return 2
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			fmt.Fprintf(os.Stderr, "soak: reap: %v\n", err)
			return 2
		case pid == test.Pid && status.Signaled():
			return 128 + int(status.Signal())
		case pid == test.Pid:
			return status.ExitStatus()
		}
	}
}

// prepareNamespaces cuts the mount namespace off from the host's, and gives it a /proc and a /run of its own.
func prepareNamespaces() error {
	for _, m := range []struct {
		source, target, fsType string
		flags                  uintptr
	}{
		{"none", "/", "", unix.MS_REC | unix.MS_PRIVATE},
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV},
	} {
		if err := unix.Mount(m.source, m.target, m.fsType, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll("/run/netns", 0o755), netlink.LinkSetUp(lo))
}
