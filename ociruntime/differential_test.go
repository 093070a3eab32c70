package ociruntime

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/seccomp"
)

// probe prints the effective state of a process as the kernel sees it. It is a shell script, because a shell's child
// inherits what the runtime set, while a Go program would first change signals and limits.
const probe = `
echo "[status]"; grep -E '^(Umask|Uid|Gid|Groups|SigBlk|SigIgn|SigCgt|Cap|NoNewPrivs|Seccomp:)' /proc/self/status
echo "[limits]"; cat /proc/self/limits
echo "[oom]"; cat /proc/self/oom_score_adj
echo "[session]"; busybox awk '{print ($5 == $6), $7 }' /proc/self/stat
echo "[cwd]"; pwd; ls -ld . | busybox awk '{print $1,$3,$4}'
echo "[env]"; env | busybox sort
echo "[stdio]"; for i in 1 2; do readlink /proc/self/fd/$i | busybox sed 's/[0-9]*//g'; stat -L -c '%a %u %t' /proc/self/fd/$i; done
echo "[reopen]"; (: > /dev/stdout) && echo stdout; (: > /dev/stderr) && echo stderr
echo "[fds]"; ls /proc/self/fd | busybox wc -l
echo "[dev]"; busybox find /dev ! -type d ! -path '/dev/mqueue/*' | busybox sort | while read f; do echo "$f $(stat -c '%F %a %u %g %t:%T' $f) $(readlink $f)"; done
echo "[ptmx]"; (exec 3<>/dev/ptmx) && ls /dev/pts
echo "[mounts]"; busybox cut -d' ' -f 5- /proc/self/mountinfo | busybox sort
echo "[masks]"; for p in /proc/kcore /proc/keys /proc/timer_list /proc/sys/kernel/domainname /sys/firmware; do busybox head -c 1 $p 2>&1 | busybox sed 's/^[0-9a-f]$/digit/'; (: >> $p) 2>&1; busybox ls $p 2>/dev/null | busybox wc -l; done
echo "[hostname]"; hostname
echo "[keys]"; cat /proc/keys 2>/dev/null | busybox awk '/ _ses\./ {print $5, $8}' | busybox sort -u
echo "[tty]"; tty; stty size 2>/dev/null
echo "[setuid]"; cat /proc/sys/net/ipv4/ip_unprivileged_port_start
`

// normal removes what must differ between two runs: numbers of devices and inodes, names of the test.
var normal = []struct {
	re   *regexp.Regexp
	with string
}{
	{regexp.MustCompile(`(shared|master|propagate_from):\d+ `), ""},
	{regexp.MustCompile(`_ses\.[-0-9a-z]+`), "_ses.ID"},
	{regexp.MustCompile(`(?m)^(/) [^ ]+ - .*$`), "ROOT"},
	{regexp.MustCompile(`(?m)^(/sys/fs/cgroup\S*) .*$`), ""}, // runc mounts each hierarchy anew, we bind the leaf
	// Masked: runc mounts a tmpfs of its own for each directory and binds the container's /dev/null, crun binds an empty
	// directory of the host and the host's /dev/null, we bind ours.
	{regexp.MustCompile(`(?m)^(/proc/\S+|/sys/firmware|/root|/etc/passwd) .* - (tmpfs|devtmpfs|ext4|xfs|btrfs|overlay) .*$`), "$1 masked"},
	{regexp.MustCompile(`/dev/core .*`), ""},
	{regexp.MustCompile(`(?m)^(.*)nr_inodes=\d+,?(.*)$`), "$1$2"},
	{regexp.MustCompile(`\n\n+`), "\n"},
}

func normalise(s string) string {
	for _, n := range normal {
		s = n.re.ReplaceAllString(s, n.with)
	}
	return s
}

type differentialSpec struct {
	name   string
	change func(*specs.Spec)
}

func limit(kind string, soft, hard uint64) func(*specs.Spec) {
	return func(s *specs.Spec) {
		s.Process.Rlimits = append(s.Process.Rlimits, specs.POSIXRlimit{Type: kind, Soft: soft, Hard: hard})
	}
}

func allCaps(names ...string) func(*specs.Spec) {
	return func(s *specs.Spec) {
		s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: names, Effective: names, Permitted: names, Inheritable: names, Ambient: names}
	}
}

func asUser(uid, gid uint32, groups ...uint32) func(*specs.Spec) {
	return func(s *specs.Spec) { s.Process.User = specs.User{UID: uid, GID: gid, AdditionalGids: groups} }
}

func both(changes ...func(*specs.Spec)) func(*specs.Spec) {
	return func(s *specs.Spec) {
		for _, c := range changes {
			c(s)
		}
	}
}

func bindMount(source string, options ...string) func(*specs.Spec) {
	return func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/mnt/volume", Type: "bind", Source: source, Options: options})
	}
}

func tmpfsMount(options ...string) func(*specs.Spec) {
	return func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: options})
	}
}

func withFilter(s *specs.Spec) {
	s.Linux.Seccomp = seccomp.DefaultProfile(s.Process.Capabilities.Bounding)
}

func noNewPrivs(s *specs.Spec) { s.Process.NoNewPrivileges = true }

func differentialSpecs() []differentialSpec {
	mode := os.FileMode(0o640)
	uid, gid := uint32(7), uint32(8)
	umask := uint32(0o077)
	return []differentialSpec{
		{"default", func(*specs.Spec) {}},
		{"user", asUser(1000, 1000)},
		{"user and groups", asUser(1000, 2000, 3000, 10)},
		{"group only", asUser(0, 4000)},
		{"many groups", asUser(5, 5, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12)},
		{"umask", func(s *specs.Spec) { s.Process.User.Umask = &umask }},
		{"umask of a user", both(asUser(1000, 1000), func(s *specs.Spec) { s.Process.User.Umask = &umask })},
		{"no capabilities", allCaps()},
		{"one capability", allCaps("CAP_NET_BIND_SERVICE")},
		{"capabilities of a user", both(asUser(1000, 1000), allCaps("CAP_NET_BIND_SERVICE", "CAP_CHOWN"))},
		{"many capabilities", allCaps("CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_CHROOT", "CAP_MKNOD")},
		{"bounding only", func(s *specs.Spec) {
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_CHOWN", "CAP_KILL"}}
		}},
		{"effective less than permitted", func(s *specs.Spec) { s.Process.Capabilities.Effective = []string{"CAP_CHOWN"} }},
		{"inheritable", func(s *specs.Spec) { s.Process.Capabilities.Inheritable = []string{"CAP_CHOWN"} }},
		{"no new privileges", noNewPrivs},
		{"no new privileges of a user", both(noNewPrivs, asUser(1000, 1000))},
		{"seccomp", withFilter},
		{"seccomp of a user", both(asUser(1000, 1000), withFilter)},
		{"seccomp and no new privileges", both(noNewPrivs, withFilter)},
		{"seccomp, no new privileges, user", both(noNewPrivs, asUser(1000, 1000), withFilter)},
		{"nofile", limit("RLIMIT_CORE", 0, 0)},
		{"core unlimited", limit("RLIMIT_FSIZE", 1<<30, 1<<31)},
		{"nproc", limit("RLIMIT_NPROC", 100, 200)},
		{"stack", limit("RLIMIT_STACK", 1<<20, 1<<22)},
		{"oom score", func(s *specs.Spec) { adj := 500; s.Process.OOMScoreAdj = &adj }},
		{"oom score zero", func(s *specs.Spec) { adj := 0; s.Process.OOMScoreAdj = &adj }},
		{"working directory", func(s *specs.Spec) { s.Process.Cwd = "/etc" }},
		{"working directory missing", func(s *specs.Spec) { s.Process.Cwd = "/a/b/c" }},
		{"working directory as user", both(asUser(1000, 1000), func(s *specs.Spec) { s.Process.Cwd = "/tmp" })},
		{"environment", func(s *specs.Spec) { s.Process.Env = append(s.Process.Env, "A=b c", "EMPTY=", "TERM=vt100") }},
		{"read-only root", func(s *specs.Spec) { s.Root.Readonly = true }},
		{"no masks", func(s *specs.Spec) { s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil }},
		{"other masks", func(s *specs.Spec) {
			s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = []string{"/root", "/etc/passwd", "/none"}, []string{"/tmp", "/none"}
		}},
		{"bind directory", bindMount("/usr/share", "rbind", "rprivate")},
		{"bind read-only", bindMount("/usr/share", "rbind", "ro", "rprivate")},
		{"bind flags", bindMount("/usr/share", "bind", "nosuid", "nodev", "noexec", "noatime")},
		{"bind file", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/mnt/file", Type: "bind", Source: "/etc/hostname", Options: []string{"bind", "ro"}})
		}},
		{"tmpfs", tmpfsMount("size=64k", "mode=1777", "nosuid", "nodev")},
		{"tmpfs read-only", tmpfsMount("ro", "noexec")},
		{"sys writable", func(s *specs.Spec) { s.Mounts[5].Options = []string{"nosuid", "noexec", "nodev"} }},
		{"device", func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x/fuse", Type: "c", Major: 10, Minor: 229, FileMode: &mode, UID: &uid, GID: &gid}}
		}},
		{"host pid namespace", func(s *specs.Spec) {
			s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.CgroupNamespace}}
		}},
		{"terminal", func(s *specs.Spec) {
			s.Process.Terminal, s.Process.ConsoleSize = true, &specs.Box{Height: 20, Width: 70}
		}},
	}
}

// The process state that a container gets from us is the one it gets from runc, for every spec.
func TestDifferentialRunc(t *testing.T) {
	if _, err := exec.LookPath("runc"); err != nil {
		t.Skip("runc is not installed")
	}
	differential(t, []string{"runc"}, "", nil)
}

// differential compares with a peer, which is called by its path and what comes before it, but not a section that says
// nothing of it. Its own ways are specs that it runs otherwise than runc, and how.
func differential(t *testing.T, peer []string, mute string, ownWays map[string]string) {
	f := newFixture(t)
	p := f.pod(t, nil)
	for _, tt := range differentialSpecs() {
		t.Run(tt.name, func(t *testing.T) {
			ours, theirs := probeSpec(tt.change), probeSpec(tt.change)
			out, exit := f.run(t, p, ours)
			if exit.Code != 0 {
				t.Fatalf("exit %+v:\n%s", exit, out)
			}
			want, got := sections(withoutInherited(t, f.peer(t, peer, theirs))), sections(out)
			delete(want, mute)
			delete(got, mute)
			d := cmp.Diff(want, got)
			if way, own := ownWays[tt.name]; own == (d == "") {
				t.Errorf("own way: %q; difference (-peer +ours):\n%s", way, d)
			}
		})
	}
}

// The same with a crun that has been unpacked. It refuses hosts where cgroup2 stands beside v1, so it does not see that.
func TestDifferentialCrun(t *testing.T) {
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip(err)
	}
	root := filepath.Join(cache, "criserver-bench", "crun")
	loaders, err := filepath.Glob(root + "/usr/lib/*/ld-linux-*.so.*")
	if err != nil || len(loaders) != 1 {
		t.Skip("there is no newer crun: test/bench/fetch-crun unpacks one")
	}
	differential(t, []string{"unshare", "--mount", "sh", "-c", `case $(stat -f -c %T /sys/fs/cgroup) in tmpfs) umount $(findmnt -n -o TARGET -t cgroup2) ;; esac; exec "$@"`, "sh",
		loaders[0], "--library-path", filepath.Dir(loaders[0]), root + "/usr/bin/crun"}, "[keys]", map[string]string{ // its session keyring has the container's name
		"tmpfs read-only": "a tmpfs has mode=755 whether or not it stands in the options",
		"terminal":        "/dev/console is a symbolic link to the terminal",
	})
}

// withoutInherited takes out of a peer's answer what it passes on of this process: ignored signals. pause resets them.
func withoutInherited(t *testing.T, out string) string {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	ignored := regexp.MustCompile(`SigIgn:\t([0-9a-f]{16})`)
	mask := func(line string) uint64 {
		n, err := strconv.ParseUint(ignored.FindStringSubmatch(line)[1], 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	ours := mask(string(status))
	return ignored.ReplaceAllStringFunc(out, func(line string) string { return fmt.Sprintf("SigIgn:\t%016x", mask(line)&^ours) })
}

func probeSpec(change func(*specs.Spec)) *specs.Spec {
	s := DefaultSpec("sh", "-c", probe)
	change(s)
	return s
}

// sections splits a probe's output for comparison.
func sections(out string) map[string][]string {
	m := map[string][]string{}
	name := ""
	for line := range strings.Lines(normalise(strings.ReplaceAll(out, "\r", ""))) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]") {
			name = line
			continue
		}
		m[name] = append(m[name], line)
	}
	return m
}

// peer runs the same spec with another runtime in namespaces like those of a pod.
func (f *fixture) peer(t *testing.T, peer []string, s *specs.Spec) string {
	t.Helper()
	bundle := t.TempDir()
	s.Root.Path = f.root
	s.Hostname = "pod"
	s.Linux.CgroupsPath = f.parent + "/peer"
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UTSNamespace}, specs.LinuxNamespace{Type: specs.IPCNamespace})
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	args := append(peer[1:len(peer):len(peer)], "--root", filepath.Join(bundle, "state"), "run", "--bundle", bundle, "probe-"+randomID()[:8])
	cmd := exec.Command(peer[0], args...)
	var out bytes.Buffer
	if s.Process.Terminal {
		return runOnTerminal(t, cmd, s.Process.ConsoleSize)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	_, _ = out.ReadFrom(r)
	_ = r.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out.String())
	}
	return out.String()
}

// runOnTerminal gives a command a terminal of its own, because it passes its size on.
func runOnTerminal(t *testing.T, cmd *exec.Cmd, size *specs.Box) string {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	raw, err := master.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var slave *os.File
	_ = raw.Control(func(fd uintptr) {
		_ = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0)
		_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(size.Height), Col: uint16(size.Width)})
		n, _, _ := unix.Syscall(unix.SYS_IOCTL, fd, unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
		slave = os.NewFile(n, "slave")
	})
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = slave.Close()
	var out bytes.Buffer
	_, _ = out.ReadFrom(master) // ends with EIO when the last slave is closed
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out.String())
	}
	return out.String()
}
