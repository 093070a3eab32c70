package critest

import (
	"path"
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
	before := d.descriptors(t)
	t.Cleanup(func() {
		t.Helper()
		for _, line := range settleDescriptors(t, d, before) {
			t.Errorf("leak: descriptor of criserver: %s", line)
		}
	})
	leak.Check(t, leak.Only(leak.Cgroup), leak.Within(settleBound), leak.Match(regexp.QuoteMeta(suite.cgroups)+"/"))
	leak.Check(t, leak.Without(leak.Cgroup, leak.Goroutine, leak.Descriptor), leak.Processes(programs()...),
		leak.Ignore(serving), leak.Ignore(leak.PortmapResidue), leak.Ignore(leak.Footings), leak.Within(settleBound),
		leak.Files(d.state(), d.root(), d.cniDir(), d.plugins(), d.certs(), "/var/lib/cni"), leak.Files(runDirs()...))
}

// descriptors is what those of the daemon lead to, without the mounts and directories of layers: each that was used once is
// kept until it is removed. One a layer is left out, more are not.
func (d *daemon) descriptors(t testing.TB) []string {
	t.Helper()
	lines, err := leak.DescriptorsOf(d.cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := filepath.Glob(filepath.Join(d.root(), "layers", "layers", "*"))
	if err != nil {
		t.Fatal(err)
	}
	layer, left := leak.MountOf(unix.EROFS_SUPER_MAGIC_V1), len(layers)
	return slices.DeleteFunc(lines, func(line string) bool {
		// Go's runtime holds the CPU limit of the group that the daemon began in, which systemd moves with cgroup v1.
		if strings.HasPrefix(filepath.Base(line), "cpu.") && !strings.Contains(line, suite.cgroups) {
			return true
		}
		if line != layer && !isLayer(line, layers) || left == 0 {
			return false
		}
		left--
		return true
	})
}

// isLayer says whether a descriptor's target is the directory of a layer, or its place in criserver's namespace of layers.
func isLayer(target string, layers []string) bool {
	return strings.HasPrefix(target, "/l/") || path.Base(target) == "fs" && slices.Contains(layers, path.Dir(target))
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
		more = leak.Surplus(d.descriptors(t), before)
		return len(more) == 0
	})
	if settled {
		return nil
	}
	return more
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
