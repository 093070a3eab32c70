package critest

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The suite starts itself twice more: as the init of new namespaces, which reaps, and below it as the tests.
const (
	stageEnv   = "CRITEST_STAGE"
	dirEnv     = "CRITEST_DIR" // what the first stage made for the others
	stageInit  = "init"
	stageTests = "tests"
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Getuid() != 0 {
		unfit = "containers need root"
		return m.Run()
	}
	if flag.Lookup("test.list").Value.String() != "" {
		return m.Run()
	}
	findDir()
	switch os.Getenv(stageEnv) {
	case "":
		return outside()
	case stageInit:
		return beInit()
	}
	return runTests(m)
}

// outside does what needs the machine's network and what must happen however the tests end: it builds, makes the
// directory and the cgroups of the suite, and removes them.
func outside() (code int) {
	if err := makeDir(); err != nil {
		fmt.Fprintf(os.Stderr, "critest: prepare: %v\n", err)
		return 1
	}
	defer func() {
		if err := errors.Join(removeCgroups(), removeDir()); err != nil {
			fmt.Fprintf(os.Stderr, "critest: clean up: %v\n", err)
			code = max(code, 1)
		}
	}()
	for _, do := range []func() error{makeCgroups, build, makeDebian, makeUpstreamRoot} {
		if err := do(); err != nil {
			fmt.Fprintf(os.Stderr, "critest: prepare: %v\n", err)
			return 1
		}
	}
	return enterNamespaces()
}

// enterNamespaces runs the suite in new namespaces and passes on how it ended.
func enterNamespaces() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), stageEnv+"="+stageInit, dirEnv+"="+suite.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID,
		Pdeathsig:  unix.SIGKILL, // and the whole pid namespace with it
	}
	if suite.driver == driverSystemd { // which is told pids
		cmd.SysProcAttr.Cloneflags &^= unix.CLONE_NEWPID
	}
	ignored := make(chan os.Signal, 1)
	signal.Notify(ignored, unix.SIGINT, unix.SIGQUIT) // the terminal sends them to the tests too, which end by them
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintf(os.Stderr, "critest: enter new namespaces: %v\n", err)
		return 2
	}
	return cmd.ProcessState.ExitCode()
}

// beInit prepares the namespaces, starts the tests and reaps whatever is left to it until they end.
func beInit() int {
	if err := prepareNamespaces(); err != nil {
		fmt.Fprintf(os.Stderr, "critest: %v\n", err)
		return 2
	}
	if err := os.Setenv(stageEnv, stageTests); err != nil { // not appended: of two, the first would count
		fmt.Fprintf(os.Stderr, "critest: %v\n", err)
		return 2
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil { // where it is not PID 1
		fmt.Fprintf(os.Stderr, "critest: %v\n", err)
		return 2
	}
	tests, err := os.StartProcess("/proc/self/exe", append([]string{os.Args[0]}, os.Args[1:]...), &os.ProcAttr{
		Env:   os.Environ(),
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
	if err != nil {
		fmt.Fprintf(os.Stderr, "critest: start the tests: %v\n", err)
		return 2
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "critest: reap: %v\n", err)
			return 2
		}
		if pid == tests.Pid {
			if status.Signaled() {
				return 128 + int(status.Signal())
			}
			return status.ExitStatus()
		}
	}
}

// prepareNamespaces cuts the mount namespace off from the host's, and gives it a /proc and a /run of its own; with
// systemd, whose socket is in /run and whose pids count, only a /run/netns.
func prepareNamespaces() error {
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if suite.driver == driverCgroupfs {
		if err := detachOthers(); err != nil {
			return err
		}
		if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("mount /proc: %w", err)
		}
	}
	ours := "/run" // network namespaces, locks of iptables
	if suite.driver == driverSystemd {
		ours = "/run/netns"
	}
	if err := os.MkdirAll(ours, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", ours, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("mount %s: %w", ours, err)
	}
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// detachOthers removes the mounts of programs that run meanwhile, which would vanish from here when they end.
func detachOthers() error {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		point := strings.Fields(line)[1]
		if strings.HasPrefix(point, "/run/") || strings.HasPrefix(point, os.TempDir()+"/") {
			if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
				return fmt.Errorf("detach %s: %w", point, err)
			}
		}
	}
	return nil
}

// runTests sets up what tests share, runs them, and takes it down again.
func runTests(m *testing.M) (code int) {
	s := &setup{}
	defer func() {
		if err := s.end(); err != nil {
			fmt.Fprintf(os.Stderr, "critest: after the tests: %v\n", err)
			code = max(code, 1)
		}
	}()
	if err := s.begin(); err != nil {
		fmt.Fprintf(os.Stderr, "critest: before the tests: %v\n", err)
		return 1
	}
	return m.Run()
}
