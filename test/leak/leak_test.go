package leak

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The test leaks mounts, devices and rules: in namespaces of its own, into which the test binary runs itself again.
const inHostEnv = "CRISERVER_LEAK_TEST_HOST"

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 || os.Getenv(inHostEnv) != "" {
		os.Exit(m.Run())
	}
	runtime.LockOSThread() // for PDEATHSIG
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inHostEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	var exit *exec.ExitError
	if err := cmd.Run(); errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "run the tests in namespaces of their own:", err)
		os.Exit(1)
	}
}

// recorder is a testing.TB that keeps what Check does with it.
type recorder struct {
	testing.TB
	cleanups []func()
	errors   []string
}

func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Errorf(format string, args ...any) {
	r.errors = append(r.errors, fmt.Sprintf(format, args...))
}

// finish ends the recorded test and returns what Check had to say.
func (r *recorder) finish() []string {
	for _, f := range slices.Backward(r.cleanups) {
		f()
	}
	return r.errors
}

// mine keeps out what others do on this machine: everything that is leaked here has one of these in its line.
const mine = `(?i)leak|192\.0\.2\.|198\.51\.100\.`

type leaking struct {
	kind Kind
	also []Kind // what cannot but differ too
	want string // in the report
	leak func(t *testing.T) (undo func())
}

func TestEveryLeakIsCaught(t *testing.T) {
	if os.Getenv(inHostEnv) == "" {
		t.Skip("needs root: makes mounts, devices, cgroups and rules")
	}
	watched := filepath.Join(t.TempDir(), "watched")
	seen := map[Kind]bool{}
	for _, l := range leaks(watched) {
		seen[l.kind] = true
		t.Run(string(l.kind)+" "+l.want, func(t *testing.T) {
			r := &recorder{TB: t}
			Check(r, Match(mine), Files(watched), Processes("leak-daemon"), Within(50*time.Millisecond))
			undo := l.leak(t)
			report := r.finish()
			undo()
			var hit bool
			for _, line := range report {
				hit = hit || strings.HasPrefix(line, "leak: "+string(l.kind)+" is ") && strings.Contains(line, l.want)
				if !slices.ContainsFunc(append(l.also, l.kind), func(k Kind) bool {
					return strings.HasPrefix(line, "leak: "+string(k)+" is ")
				}) {
					t.Errorf("reported too: %s", line)
				}
			}
			if !hit {
				t.Errorf("not caught: %s with %q; the report is %q", l.kind, l.want, report)
			}
		})
	}
	for _, kind := range Kinds {
		if !seen[kind] {
			t.Errorf("no test leaks a %s", kind)
		}
	}
}

func TestNoLeakIsReportedOfWhatEnds(t *testing.T) {
	if os.Getenv(inHostEnv) == "" {
		t.Skip("needs root: makes mounts, devices, cgroups and rules")
	}
	watched := filepath.Join(t.TempDir(), "watched")
	for _, l := range leaks(watched) {
		t.Run(string(l.kind)+" "+l.want, func(t *testing.T) {
			r := &recorder{TB: t}
			Check(r, Match(mine), Files(watched), Processes("leak-daemon"))
			undo := l.leak(t)
			begun, undone := make(chan struct{}), make(chan struct{})
			time.AfterFunc(30*time.Millisecond, func() { // after the comparison has begun
				defer close(undone)
				close(begun)
				undo()
			})
			if report := r.finish(); len(report) > 0 {
				t.Errorf("reported although undone: %q", report)
			}
			select {
			case <-begun:
			default:
				t.Error("the comparison did not wait for the leak to end")
			}
			<-undone
		})
	}
}

func leaks(watched string) []leaking {
	return []leaking{
		{kind: Process, also: []Kind{Descriptor}, want: "child pid", leak: func(t *testing.T) func() { return start(t, "sleep", "1000") }},
		{kind: Process, want: "leak-daemon", leak: leakDaemon},
		{kind: Mount, want: "(tmpfs of leak", leak: func(t *testing.T) func() {
			dir := t.TempDir()
			must(t, unix.Mount("leak", dir, "tmpfs", 0, ""))
			return func() { must(t, unix.Unmount(dir, 0)) }
		}},
		{kind: NetNS, also: []Kind{Mount, File}, want: "mounted on", leak: leakMountedNS},
		{kind: NetNS, also: []Kind{Descriptor}, want: "of process", leak: leakHeldNS},
		{kind: Cgroup, want: "leak-test", leak: leakCgroup},
		{kind: Link, want: "leak0 (bridge)", leak: func(t *testing.T) func() {
			link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "leak0"}}
			must(t, netlink.LinkAdd(link))
			return func() { must(t, netlink.LinkDel(link)) }
		}},
		{kind: Address, also: []Kind{Route}, want: "192.0.2.77/32 on lo", leak: func(t *testing.T) func() {
			lo, addr := loopback(t), &netlink.Addr{IPNet: netlink.NewIPNet(net.IPv4(192, 0, 2, 77))}
			must(t, netlink.AddrAdd(lo, addr))
			return func() { must(t, netlink.AddrDel(lo, addr)) }
		}},
		{kind: Route, want: "198.51.100.0/24 dev lo table 77", leak: func(t *testing.T) func() {
			_, dst, _ := net.ParseCIDR("198.51.100.0/24")
			route := &netlink.Route{LinkIndex: loopback(t).Attrs().Index, Dst: dst, Table: 77, Scope: netlink.SCOPE_LINK}
			must(t, netlink.RouteAdd(route))
			return func() { must(t, netlink.RouteDel(route)) }
		}},
		{kind: Rule, want: "table inet leaktest chain c: tcp dport 1 counter accept", leak: func(t *testing.T) func() {
			tool(t, "nft", "add table inet leaktest; add chain inet leaktest c; add rule inet leaktest c tcp dport 1 counter accept")
			return func() { tool(t, "nft", "delete table inet leaktest") }
		}},
		{kind: Rule, want: "iptables-legacy nat -A PREROUTING -d 192.0.2.9/32", leak: leakLegacy},
		{kind: File, want: "watched/a (directory)", leak: func(t *testing.T) func() {
			must(t, os.MkdirAll(filepath.Join(watched, "a", "b"), 0o755))
			return func() { must(t, os.RemoveAll(watched)) }
		}},
		{kind: Descriptor, want: "/dev/full", leak: func(t *testing.T) func() {
			f, err := os.Open("/dev/full")
			must(t, err)
			return func() { must(t, f.Close()) }
		}},
		{kind: Goroutine, want: "leak_test.go", leak: func(t *testing.T) func() {
			end := make(chan struct{})
			go func() { <-end }()
			return func() { close(end) }
		}},
	}
}

func start(t *testing.T, name string, args ...string) func() {
	t.Helper()
	cmd := exec.Command(name, args...)
	must(t, cmd.Start())
	return func() {
		must(t, cmd.Process.Kill())
		_ = cmd.Wait()
	}
}

// leakDaemon leaves a process that is nobody's child, as a pause is; only its name tells whose it is.
func leakDaemon(t *testing.T) func() {
	path := filepath.Join(t.TempDir(), "leak-daemon")
	sleep, err := exec.LookPath("sleep")
	must(t, err)
	data, err := os.ReadFile(sleep)
	must(t, err)
	must(t, os.WriteFile(path, data, 0o755))
	out, err := exec.Command("sh", "-c", path+" 1000 >/dev/null 2>&1 & echo $!").Output()
	must(t, err)
	var pid int
	_, err = fmt.Sscan(string(out), &pid)
	must(t, err)
	eventually(t, "the shell's child has become leak-daemon", func() bool {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		return err == nil && string(comm) == "leak-daemon\n"
	})
	return func() {
		must(t, unix.Kill(pid, unix.SIGKILL))
		eventually(t, "leak-daemon is gone", func() bool { return errors.Is(unix.Kill(pid, 0), unix.ESRCH) })
	}
}

func leakMountedNS(t *testing.T) func() {
	path := filepath.Join(t.TempDir(), "ns")
	must(t, os.WriteFile(path, nil, 0o444))
	ns := newNetNS(t)
	must(t, unix.Mount(fmt.Sprintf("/proc/self/fd/%d", ns.Fd()), path, "", unix.MS_BIND, ""))
	must(t, ns.Close())
	return func() { must(t, unix.Unmount(path, unix.MNT_DETACH)) }
}

func leakHeldNS(t *testing.T) func() {
	ns := newNetNS(t)
	return func() { must(t, ns.Close()) }
}

func newNetNS(t *testing.T) *os.File {
	t.Helper()
	made := make(chan *os.File)
	go func() { made <- unshareNetNS() }()
	ns := <-made
	if ns == nil {
		t.Fatal("could not make a network namespace")
	}
	inode, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", ns.Fd()))
	must(t, err)
	eventually(t, "the thread that made the namespace has ended", func() bool {
		tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
		must(t, err)
		return !slices.ContainsFunc(tasks, func(path string) bool {
			to, err := os.Readlink(path)
			return err == nil && to == inode
		})
	})
	return ns
}

// eventually fails the test if what must come does not.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for over := time.Now().Add(time.Minute); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(over) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// unshareNetNS makes a namespace in a thread that ends with its goroutine. The process's first thread never ends, so
// that one asks another.
func unshareNetNS() *os.File {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		defer runtime.UnlockOSThread()
		made := make(chan *os.File)
		go func() { made <- unshareNetNS() }()
		return <-made
	}
	if unix.Unshare(unix.CLONE_NEWNET) != nil {
		return nil
	}
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil
	}
	return ns
}

func leakCgroup(t *testing.T) func() {
	all, err := readMounts()
	must(t, err)
	at := slices.IndexFunc(all, func(m mountLine) bool { return m.fsType == "cgroup" || m.fsType == "cgroup2" })
	if at < 0 {
		t.Skip("no cgroups are mounted")
	}
	dir := filepath.Join(all[at].point, fmt.Sprintf("leak-test-%d", os.Getpid()))
	must(t, os.Mkdir(dir, 0o755))
	return func() { must(t, os.Remove(dir)) }
}

func leakLegacy(t *testing.T) func() {
	tool(t, "iptables-legacy", "-t", "nat", "-A", "PREROUTING", "-d", "192.0.2.9", "-j", "ACCEPT")
	return func() { tool(t, "iptables-legacy", "-t", "nat", "-D", "PREROUTING", "-d", "192.0.2.9", "-j", "ACCEPT") }
}

func tool(t *testing.T, name string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("needs %s", name)
	}
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

func loopback(t *testing.T) netlink.Link {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.LinkSetUp(lo))
	return lo
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestAnyProgramIsLookedFor(t *testing.T) {
	for names, want := range map[string]int{AnyProgram: 1, "another": 0} {
		r := &recorder{TB: t}
		Check(r, Only(Process), Match(mine), Processes(names), Within(50*time.Millisecond))
		undo := leakDaemon(t)
		report := r.finish()
		undo()
		if len(report) != want {
			t.Errorf("looking for %q: the report is %q", names, report)
		}
	}
}

func TestWhatDisappearsIsReportedToo(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "precious")
	must(t, os.WriteFile(file, nil, 0o600))
	r := &recorder{TB: t}
	Check(r, Only(File), Files(dir), Within(time.Millisecond))
	must(t, os.Remove(file))
	if report := r.finish(); len(report) != 1 || report[0] != "leak: file is gone: "+file+" (file)" {
		t.Errorf("report %q", report)
	}
}

// What another process has open is seen: of this one, files, a socket, a namespace and a detached mount.
func TestDescriptorsOf(t *testing.T) {
	if os.Getenv(inHostEnv) == "" {
		t.Skip("needs root: makes a mount")
	}
	look := func() []string {
		lines, err := DescriptorsOf(os.Getpid())
		must(t, err)
		return lines
	}
	for _, row := range []struct {
		name, want string
		open       func() (int, error)
	}{
		{"file", "/dev/full", func() (int, error) { return unix.Open("/dev/full", unix.O_RDONLY|unix.O_CLOEXEC, 0) }},
		{"socket", "socket:[N]", func() (int, error) { return unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0) }},
		{"namespace", "net:[N]", func() (int, error) { return unix.Open("/proc/self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0) }},
		{"detached mount", MountOf(unix.TMPFS_MAGIC), func() (int, error) {
			config, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
			must(t, err)
			defer func() { must(t, unix.Close(config)) }()
			must(t, unix.FsconfigCreate(config))
			return unix.Fsmount(config, unix.FSMOUNT_CLOEXEC, 0)
		}},
	} {
		before := look()
		fd, err := row.open()
		must(t, err)
		more := Surplus(look(), before)
		must(t, unix.Close(fd))
		if !slices.Equal(more, []string{row.want}) {
			t.Errorf("%s: %q are more", row.name, more)
		}
		if more := Surplus(look(), before); len(more) != 0 {
			t.Errorf("%s: %q are more when it is closed", row.name, more)
		}
	}
}

func TestDiff(t *testing.T) {
	before := State{Mount: {"a", "b", "b"}, Process: {"p1"}, Link: {"lo"}}
	after := State{Mount: {"b", "c", "c"}, Process: {"p2"}, File: {"f"}}
	want := []Difference{
		{Kind: Process, Line: "p2"}, // and p1 may end
		{Kind: Mount, Line: "c"}, {Kind: Mount, Line: "c"},
		{Kind: Mount, Line: "a", Gone: true}, {Kind: Mount, Line: "b", Gone: true},
	}
	if got := Diff(before, after); !slices.Equal(got, want) {
		t.Errorf("Diff = %v, want %v", got, want)
	}
}

func TestOptions(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"keep", "ignored"} {
		must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	state, err := Snapshot(Files(dir, filepath.Join(dir, "absent")), Ignore(`/ignored `), Match("no line has this"),
		Without(Descriptor, Goroutine))
	must(t, err)
	if want := []string{dir + " (directory)", filepath.Join(dir, "keep") + " (file)"}; !slices.Equal(state[File], want) {
		t.Errorf("files %q, want %q", state[File], want)
	}
	if lines, looked := state[Mount]; !looked || len(lines) != 0 {
		t.Errorf("mounts %q, want none that match", lines)
	}
	if _, looked := state[Goroutine]; looked {
		t.Error("looked at a kind that was left out")
	}
	only, err := Snapshot(Only(Mount))
	must(t, err)
	if len(only) != 1 || len(only[Mount]) == 0 {
		t.Errorf("only mounts were asked for: %v", only)
	}
}
