package critest

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/test/leak"
)

// programs are what may be left: in a pid namespace of the suite's own whatever it is, on systemd's machine what containers
// of these tests run, by the names of their binaries.
func programs() []string {
	if suite.driver == driverSystemd {
		return []string{"busybox", "bash", "dash", "sleep", "cat", "sh"}
	}
	return []string{leak.AnyProgram}
}

// serving matches the process of a daemon, which tests may replace.
const serving = `/bin/criserver --config \S+ serve$`

// check asks after the test whether everything is as it was before: in the namespaces of the suite, in its cgroups, in the
// directories of the daemon, and in the descriptors of the daemon. Tests call it (through use) before anything else.
func check(t *testing.T, d *daemon) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("criserver's last messages:\n%s", d.lastLog())
		}
	})
	before := withoutLayers(t, d, daemonDescriptors(t, d.cmd.Process.Pid))
	t.Cleanup(func() {
		t.Helper()
		for _, line := range settleDescriptors(t, d, before) {
			t.Errorf("leak: descriptor of criserver: %s", line)
		}
	})
	leak.Check(t, leak.Only(leak.Cgroup), leak.Within(settleBound), leak.Match(regexp.QuoteMeta(suite.cgroups)+"/"))
	leak.Check(t, leak.Without(leak.Cgroup, leak.Goroutine, leak.Descriptor), leak.Processes(programs()...),
		leak.Ignore(serving), leak.Ignore(leak.PortmapResidue), leak.Within(settleBound),
		leak.Files(d.state(), d.root(), d.cniDir(), d.plugins(), d.certs(), "/var/lib/cni"), leak.Files(runDirs()...))
}

var number = regexp.MustCompile(`\d+`)

// daemonDescriptors is what the descriptors of a process lead to, with numbers of sockets and the like left out, so that
// one process can be compared with its successor.
func daemonDescriptors(t testing.TB, pid int) []string {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, e := range entries {
		target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, e.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		if !filepath.IsAbs(target) || strings.HasPrefix(target, "/proc/") {
			target = number.ReplaceAllString(target, "N")
		}
		if target == "/" { // of a detached mount; what file system it is tells which
			var fs unix.Statfs_t
			if unix.Statfs(fmt.Sprintf("/proc/%d/fd/%s", pid, e.Name()), &fs) == nil {
				target = fmt.Sprintf("%s%#x", mountOfType, fs.Type)
			}
		}
		lines = append(lines, target)
	}
	slices.Sort(lines)
	return lines
}

// mountOfType begins the line of a detached mount.
const mountOfType = "/ of a file system of type "

// withoutLayers leaves out the mounts of layers: each that was used once is kept until it is removed. One mount a layer is
// left out, more are not.
func withoutLayers(t testing.TB, d *daemon, lines []string) []string {
	t.Helper()
	layers, err := filepath.Glob(filepath.Join(d.root(), "layers", "layers", "*"))
	if err != nil {
		t.Fatal(err)
	}
	layer := fmt.Sprintf("%s%#x", mountOfType, unix.EROFS_SUPER_MAGIC_V1)
	left := len(layers)
	return slices.DeleteFunc(lines, func(line string) bool {
		if line != layer || left == 0 {
			return false
		}
		left--
		return true
	})
}

// settleDescriptors waits a while until the daemon has no more descriptors of any sort than before, and returns those that
// are too many.
func settleDescriptors(t testing.TB, d *daemon, before []string) []string {
	t.Helper()
	if d.cmd == nil {
		return []string{"criserver does not run"}
	}
	var more []string
	settled := within(settleBound, func() bool {
		more = surplus(withoutLayers(t, d, daemonDescriptors(t, d.cmd.Process.Pid)), before)
		return len(more) == 0
	})
	if settled {
		return nil
	}
	return more
}

// surplus is the lines of now that are not in before, each as often as now has more of them.
func surplus(now, before []string) []string {
	rest := slices.Clone(before)
	var more []string
	for _, line := range now {
		if i := slices.Index(rest, line); i >= 0 {
			rest = slices.Delete(rest, i, i+1)
		} else {
			more = append(more, line)
		}
	}
	return more
}

// The kinds of package leak are proven by its own tests; this is the one that is added here.
func TestOracleDescriptors(t *testing.T) {
	before := daemonDescriptors(t, os.Getpid())
	f, err := os.CreateTemp(t.TempDir(), "leaked")
	if err != nil {
		t.Fatal(err)
	}
	if more := surplus(daemonDescriptors(t, os.Getpid()), before); !slices.Contains(more, f.Name()) {
		t.Errorf("an open file is not reported, but %q", more)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if more := surplus(daemonDescriptors(t, os.Getpid()), before); len(more) != 0 {
		t.Errorf("with nothing open: %q", strings.Join(more, ", "))
	}
}

// within asks again and again until done says yes, at most as long as bound.
func within(bound time.Duration, done func() bool) bool {
	deadline := time.NewTimer(bound)
	defer deadline.Stop()
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		if done() {
			return true
		}
		select {
		case <-deadline.C:
			return done()
		case <-time.After(pause):
		}
	}
}

// eventually fails the test unless done says yes within bound.
func eventually(t testing.TB, bound time.Duration, what string, done func() bool) {
	t.Helper()
	if !within(bound, done) {
		t.Fatalf("not within %v: %s", bound, what)
	}
}
