package kernel

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain undoes CRISERVER_REFUSE: these tests are about the probes themselves, and refuse what they want refused.
func TestMain(m *testing.M) {
	if os.Getenv("KERNEL_TEST_REFUSED") == "" {
		clear(refusals.names)
	}
	os.Exit(m.Run())
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// newerThan says whether the running kernel is at least since.
func newerThan(t *testing.T, since string) bool {
	t.Helper()
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		t.Fatal(err)
	}
	number := func(s string) int {
		var major, minor int
		if _, err := fmt.Sscanf(s, "%d.%d", &major, &minor); err != nil {
			t.Fatalf("version %q: %v", s, err)
		}
		return major<<16 | minor
	}
	return number(unix.ByteSliceToString(uts.Release[:])) >= number(since)
}

func TestProbesAgreeWithTheVersion(t *testing.T) {
	needRoot(t)
	for _, f := range All() {
		t.Run(f.Name, func(t *testing.T) {
			has, err := f.Check()
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("since %s: %v", f.Since, has)
			if !has && newerThan(t, f.Since) {
				t.Errorf("the probe says no on a kernel that is not older than %s", f.Since)
			}
			if has && !newerThan(t, f.Since) {
				t.Logf("has it already before %s: backported", f.Since)
			}
			if f.Lost == "" {
				t.Error("nothing is said to be lost without it")
			}
		})
	}
}

// The options of cgroup2 belong to its one superblock: whoever mounts it from the initial cgroup namespace sets them for
// the host, and systemd's nsdelegate and memory_recursiveprot would be gone.
func TestProbesKeepOptionsOfCgroup2(t *testing.T) {
	needRoot(t)
	const option = "memory_recursiveprot"
	if has, err := hostCgroup2Has(option); err != nil {
		t.Skip(err)
	} else if !has {
		mountCgroup2(t, setFlag(option))
		t.Cleanup(func() { mountCgroup2(t) })
	}
	if err := CgroupKill.probe(); err != nil && !errors.Is(err, errAbsent) {
		t.Fatal(err)
	}
	if has, err := hostCgroup2Has(option); !has || err != nil {
		t.Errorf("the host's cgroup2 has %s after the probe: %v, %v", option, has, err)
	}
}

// /proc/self is what others look at: the mount table, and the namespace that volumes are opened in.
func TestProbesKeepNamespaceOfMainThread(t *testing.T) {
	needRoot(t)
	before, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		if err := inPrivateNamespace(func(string) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if after, err := os.Readlink("/proc/self/ns/mnt"); after != before || err != nil {
			t.Fatalf("mount namespace of the process %s, was %s: %v", after, before, err)
		}
	}
}

func mountCgroup2(t *testing.T, options ...func(int) error) {
	t.Helper()
	fd, err := detached("cgroup2", options...)
	if err != nil {
		t.Fatal(err)
	}
	closeFD(fd, nil)
}

func hostCgroup2Has(option string) (bool, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(mounts)) {
		if _, super, ok := strings.Cut(line, " - cgroup2 "); ok {
			return strings.Contains(super, option), nil
		}
	}
	return false, errors.New("no cgroup2 is mounted")
}

func TestProbesLeaveNothing(t *testing.T) {
	needRoot(t)
	t.Setenv("TMPDIR", t.TempDir())
	look := func() string {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		temp, err := os.ReadDir(os.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(len(fds), " ", len(strings.Split(string(mounts), "\n")), " ", temp)
	}
	runAll := func() {
		for _, f := range features {
			if err := f.probe(); err != nil && !errors.Is(err, errAbsent) {
				t.Errorf("%s: %v", f.Name, err)
			}
		}
		if _, err := ErofsFileBacked(os.TempDir()); err != nil {
			t.Error(err)
		}
	}
	runAll() // the Go runtime opens some descriptors once
	before := look()
	runAll()
	if after := look(); after != before {
		t.Errorf("descriptors, mounts and directories before: %s, after: %s", before, after)
	}
	var status unix.Rusage
	if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, &status); !errors.Is(err, unix.ECHILD) {
		t.Errorf("a child is left: %d, %v", pid, err)
	}
}

func TestOnlyConclusiveAnswersAreKept(t *testing.T) {
	var asked atomic.Int32
	answer := errors.New("no idea")
	f := &Feature{Name: "test", probe: func() error { asked.Add(1); return answer }}
	for range 2 {
		if has, err := f.Check(); has || err == nil || err.Error() != "probe test: no idea" {
			t.Errorf("Check = %v, %v", has, err)
		}
	}
	if f.Has() {
		t.Error("Has is true though nobody knows")
	}
	answer = absentIf(unix.ENOSYS, unix.ENOSYS)
	for range 2 {
		if has, err := f.Check(); has || err != nil {
			t.Errorf("Check = %v, %v", has, err)
		}
	}
	answer = nil
	if f.Has() {
		t.Error("no did not stay")
	}
	if n := asked.Load(); n != 4 {
		t.Errorf("probed %d times, want 4", n)
	}
}

func TestAskersAtOnceProbeOnce(t *testing.T) {
	var asked atomic.Int32
	f := &Feature{Name: "test", probe: func() error { asked.Add(1); runtime.Gosched(); return nil }}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if !f.Has() {
				t.Error("Has is false")
			}
		})
	}
	wg.Wait()
	if n := asked.Load(); n != 1 {
		t.Errorf("probed %d times", n)
	}
}

func TestRefuse(t *testing.T) {
	yes := func() error { return nil }
	optional := &Feature{Name: "some-option", probe: yes}
	required := &Feature{Name: "must", Required: true, probe: yes}
	restore := Refuse()
	inner := Refuse("some-option")
	if optional.Has() || !required.Has() {
		t.Errorf("all refused: optional %v, required %v", optional.Has(), required.Has())
	}
	restore()
	restore() // once is enough
	if optional.Has() {
		t.Error("the inner refusal ended with the outer one")
	}
	inner()
	if !optional.Has() {
		t.Error("still refused")
	}
	for list, want := range map[string]string{"": "", "all": "all", " a, b,": "a b"} {
		names := fromEnvironment(list)
		if len(names) != len(strings.Fields(want)) {
			t.Errorf("%q refuses %v", list, names)
		}
		for _, name := range strings.Fields(want) {
			if names[name] == 0 {
				t.Errorf("%q does not refuse %s", list, name)
			}
		}
	}
}

func TestEnvironmentRefuses(t *testing.T) {
	if os.Getenv("KERNEL_TEST_REFUSED") != "" {
		for _, f := range All() {
			fmt.Printf("%s=%v;", f.Name, !f.Required && f.Has())
		}
		return
	}
	needRoot(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestEnvironmentRefuses$")
	cmd.Env = append(os.Environ(), "CRISERVER_REFUSE=all", "KERNEL_TEST_REFUSED=1")
	out, err := cmd.Output()
	if err != nil || !strings.Contains(string(out), "cgroup.kill=false;") || strings.Contains(string(out), "=true") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestErofsFileBacked(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	answer, err := ErofsFileBacked(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", answer)
	if newerThan(t, "6.12") && answer != (Erofs{FileBacked: true, DirectIO: true}) {
		t.Errorf("%+v on a kernel that can", answer)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left in %s: %v, %v", dir, left, err)
	}
	restore := Refuse("erofs-directio")
	if answer, err := ErofsFileBacked(dir); err != nil || answer.DirectIO {
		t.Errorf("directio refused: %+v, %v", answer, err)
	}
	restore()
	defer Refuse()()
	if answer, err := ErofsFileBacked(dir); err != nil || answer.FileBacked {
		t.Errorf("all refused: %+v, %v", answer, err)
	}
	if _, err := ErofsFileBacked(filepath.Join(dir, "missing")); err != nil {
		t.Errorf("refused, yet probed: %v", err)
	}
}

func TestErofsCannotTellWithoutDirectory(t *testing.T) {
	needRoot(t)
	if answer, err := ErofsFileBacked("/nowhere"); !errors.Is(err, unix.ENOENT) || answer.FileBacked {
		t.Errorf("%+v, %v", answer, err)
	}
}

// TestEmptyErofsIsListed sees that the image is what the kernel takes it for: a root with "." and ".." only.
func TestEmptyErofsIsListed(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if answer, err := ErofsFileBacked(dir); err != nil || !answer.FileBacked {
		t.Skip("no file-backed erofs")
	}
	path := filepath.Join(dir, "image")
	if err := os.WriteFile(path, emptyErofs(), 0o600); err != nil {
		t.Fatal(err)
	}
	mount, err := detached("erofs", setString("source", path))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(mount)
	entries, err := os.ReadDir(viaProc(mount))
	if err != nil || len(entries) != 0 {
		t.Errorf("entries %v, %v", entries, err)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(mount, "..", &st, 0); err != nil || st.Mode != unix.S_IFDIR|0o755 || st.Nlink != 2 {
		t.Errorf("stat = %+v, %v", st, err)
	}
}

func TestIDMapped(t *testing.T) {
	needRoot(t)
	if has, err := IDMapped("/proc/sys"); has || err != nil {
		t.Errorf("proc: %v, %v", has, err)
	}
	dir := t.TempDir()
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	has, err := IDMapped(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !has && fs.Type == unix.EXT4_SUPER_MAGIC && newerThan(t, "5.12") {
		t.Error("ext4 is said not to be idmappable")
	}
	if _, err := IDMapped("/nowhere"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("nowhere: %v", err)
	}
}

func TestExitStatus(t *testing.T) {
	needRoot(t)
	if !PidfdExitInfo.Has() {
		t.Skip("no exit information in pidfds")
	}
	pidfd := -1
	cmd := exec.Command("/bin/sh", "-c", "read line; exit 42")
	cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &pidfd}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Dup(pidfd) // os/exec keeps the other
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := ExitStatus(fd); !errors.Is(err, unix.ENODATA) {
		t.Errorf("of a living process: %v", err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	status, err := ExitStatus(fd)
	if err != nil || !status.Exited() || status.ExitStatus() != 42 {
		t.Errorf("ExitStatus = %#x, %v", uint32(status), err)
	}
}
