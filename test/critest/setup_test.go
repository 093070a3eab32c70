package critest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/criserver/criserver/test/leak"
	"github.com/criserver/criserver/test/registry"
)

// unfit is why this machine cannot run the suite; every test is skipped with it.
var unfit string

// What all tests share, made by setup.begin.
var (
	suite struct {
		dir      string // everything that the suite has on disk
		driver   string // of cgroups
		cgroups  string // parent of all pods' cgroups, in every hierarchy; with systemd a slice
		registry *registry.Registry
		busybox  string // reference
		main     *daemon
	}
	overlay = sync.OnceValues(func() (*daemon, error) { return newDaemon("overlay", storeOverlay) })
)

// setup begins and ends what tests share.
type setup struct {
	tb     *suiteTB
	before leak.State
}

// suiteTB is a testing.TB that ends with the suite. Failures and skips are panics of type stop.
type suiteTB struct {
	testing.TB
	dir      string
	cleanups []func()
	last     int
}

type stop struct {
	skipped bool
	text    string
}

func (tb *suiteTB) Helper()                  {}
func (tb *suiteTB) Context() context.Context { return context.Background() }
func (tb *suiteTB) Cleanup(f func())         { tb.cleanups = append(tb.cleanups, f) }
func (tb *suiteTB) Fatal(args ...any)        { panic(stop{text: fmt.Sprint(args...)}) }
func (tb *suiteTB) Fatalf(format string, args ...any) {
	panic(stop{text: fmt.Sprintf(format, args...)})
}
func (tb *suiteTB) Skip(args ...any) { panic(stop{skipped: true, text: fmt.Sprint(args...)}) }

func (tb *suiteTB) Name() string                      { return "suite" }
func (tb *suiteTB) Errorf(format string, args ...any) { tb.Fatalf(format, args...) }

// cleanUp runs the cleanups, the last one first.
func (tb *suiteTB) cleanUp() {
	slices.Reverse(tb.cleanups)
	for _, f := range tb.cleanups {
		f()
	}
	tb.cleanups = nil
}

func (tb *suiteTB) TempDir() string {
	tb.last++
	dir := filepath.Join(tb.dir, fmt.Sprintf("shared-%d", tb.last))
	if err := os.Mkdir(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	return dir
}

// catch runs f and turns a stop into an error, or into the reason why nothing can be tested here.
func (tb *suiteTB) catch(f func()) (err error) {
	defer func() {
		switch s := recover().(type) {
		case nil:
		case stop:
			if s.skipped {
				unfit = s.text
			} else {
				err = errors.New(s.text)
			}
		default:
			panic(s)
		}
	}()
	f()
	return nil
}

func (s *setup) begin() (err error) {
	s.tb = &suiteTB{dir: suite.dir}
	if s.before, err = leak.Snapshot(s.kinds()...); err != nil {
		return err
	}
	return s.tb.catch(func() {
		suite.registry = registry.Start(s.tb, registry.Options{})
		suite.busybox = pushBusybox(s.tb)
		if suite.main, err = newDaemon("main", cmp.Or(os.Getenv(storeEnv), storeAuto)); err != nil {
			s.tb.Fatal(err)
		}
	})
}

// kinds is what the suite as a whole must leave as it was.
func (*setup) kinds() []leak.Option {
	return []leak.Option{leak.Without(leak.Cgroup, leak.Goroutine, leak.Descriptor), leak.Processes(programs()...), leak.Ignore(leak.PortmapResidue),
		leak.Within(settleBound), leak.Files("/var/lib/cni", "/etc/cni"), leak.Files(runDirs()...), leak.Ignore(`^/run/(xtables.lock|systemd/transient) `)}
}

// runDirs are the directories below /run that are compared. systemd has one that lives.
func runDirs() []string {
	if suite.driver == driverSystemd {
		return []string{"/run/netns", "/run/systemd/transient"}
	}
	return []string{"/run"}
}

// end stops the daemons, removes the networks they made, and looks whether the system is as it was before.
func (s *setup) end() error {
	var errs []error
	for _, d := range daemons {
		errs = append(errs, d.stop())
		errs = append(errs, d.removeNetwork())
	}
	if s.tb != nil {
		s.tb.cleanUp()
	}
	if s.before != nil {
		left, err := leak.Settle(s.before, s.kinds()...)
		errs = append(errs, err)
		for _, d := range left {
			errs = append(errs, fmt.Errorf("leak: %s", d))
		}
	}
	return errors.Join(errs...)
}

// What cgroup_driver may be. The machine's own is not asked for: the suite's pid namespace is not systemd's.
const (
	driverEnv      = "CRITEST_DRIVER"
	driverCgroupfs = "cgroupfs"
	driverSystemd  = "systemd"
)

// findDir says where things are, in every stage.
func findDir() {
	suite.driver = cmp.Or(os.Getenv(driverEnv), driverCgroupfs)
	setDir(os.Getenv(dirEnv))
}

func makeDir() error {
	dir, err := os.MkdirTemp("", "critest") // short, for the sockets in it; without a dash, which would make two slices
	if err != nil {
		return err
	}
	setDir(dir)
	return os.Chmod(dir, 0o711) // as /run is: hooks of user namespaces get through it
}

func setDir(dir string) {
	suite.dir, suite.cgroups = dir, "/"+filepath.Base(dir)
	if suite.driver == driverSystemd {
		suite.cgroups += ".slice"
	}
}

func removeDir() error { return os.RemoveAll(suite.dir) }

// patienceEnv multiplies all bounds, for machines that are emulated.
const patienceEnv = "CRITEST_PATIENCE"

var patience = readPatience()

func readPatience() time.Duration {
	text := os.Getenv(patienceEnv)
	if text == "" {
		return 1
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		panic(fmt.Sprintf("%s=%s is no positive number", patienceEnv, text))
	}
	return time.Duration(n)
}

// storeEnv is the layer store of the main daemon, which is "auto" without it.
const storeEnv = "CRITEST_STORE"

// binEnv names a directory with criserver, pause and cni/ to be tested, instead of what is built from the sources.
const binEnv = "CRITEST_BIN"

// repo is the root of the source tree, from where tests run.
const repo = "../.."

// build builds what is tested, from the sources beside the tests, into the suite's directory.
func build() error {
	if dir := os.Getenv(binEnv); dir != "" {
		return os.CopyFS(filepath.Join(suite.dir, "bin"), os.DirFS(dir))
	}
	for _, args := range [][]string{
		{"go", "build", "-o", filepath.Join(suite.dir, "bin", "criserver"), "./cmd/criserver"},
		{"make", "-s", "-C", "pause/src", "all", "BIN=" + filepath.Join(suite.dir, "bin")},
		{"sh", "-c", "go build -o " + filepath.Join(suite.dir, "bin", "cni") + "/ $(go list tool | grep ^github.com/containernetworking/plugins/)"},
	} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = repo
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// hierarchies are the mount points of the cgroup hierarchies.
func hierarchies() ([]string, error) {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if f[2] == "cgroup" || f[2] == "cgroup2" {
			points = append(points, f[1])
		}
	}
	return points, nil
}

func systemctl(verb string) error {
	out, err := exec.Command("systemctl", verb, filepath.Base(suite.cgroups)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("systemctl %s: %w: %s", verb, err, out)
	}
	return nil
}

func makeCgroups() error {
	if suite.driver == driverSystemd {
		return systemctl("start")
	}
	points, err := hierarchies()
	if err != nil {
		return err
	}
	for _, point := range points {
		if err := os.Mkdir(point+suite.cgroups, 0o755); err != nil {
			return err
		}
	}
	return nil
}

func removeCgroups() error {
	if suite.driver == driverSystemd {
		return systemctl("stop")
	}
	points, err := hierarchies()
	for _, point := range points {
		if removed := os.Remove(point + suite.cgroups); !errors.Is(removed, os.ErrNotExist) {
			err = errors.Join(err, removed)
		}
	}
	return err
}
