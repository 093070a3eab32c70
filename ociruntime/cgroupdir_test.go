package ociruntime

import (
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/ociruntime/cgroup"
)

func TestHierarchyPlaces(t *testing.T) {
	got := hierarchyPlaces([]cgroup.Hierarchy{
		{MountPoint: "/c/cpu,cpuacct", Controllers: []string{"cpuacct", "cpu"}},
		{MountPoint: "/c/systemd", Controllers: []string{"name=systemd"}},
		{MountPoint: "/c/unified", Controllers: []string{"hugetlb"}, Unified: true},
	})
	want := []hierarchyPlace{
		{name: "unified"},
		{name: "cpu", controller: "cpu"},
		{name: "cpuacct", controller: "cpuacct", link: "cpu"},
		{name: "hugetlb", controller: "hugetlb", link: "unified"},
		{name: "systemd", controller: "name=systemd"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("places\n%v, want\n%v", got, want)
	}
}

// newFixtureV1 is newFixture on a host with v1 hierarchies; one more controller seems to be mounted together with cpu.
func newFixtureV1(t *testing.T) *fixture {
	t.Helper()
	host, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	if host.Mode() == cgroup.V2 {
		t.Skip("no v1 hierarchy is mounted")
	}
	list := host.List()
	for i, h := range list {
		if slices.Contains(h.Controllers, "cpu") {
			list[i].Controllers = append(h.Controllers, "together")
		}
	}
	hierarchies, err := cgroup.New(list)
	if err != nil {
		t.Fatal(err)
	}
	return newFixtureOn(t, hierarchies)
}

func withSysAdmin(s *specs.Spec) {
	caps := append(slices.Clone(s.Process.Capabilities.Bounding), "CAP_SYS_ADMIN")
	s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
}

// Containers show one directory of hierarchies, unless somebody could change it or it would look different; all look the same but for
// the order of their mount tables.
func TestCgroupDirIsShared(t *testing.T) {
	f := newFixtureV1(t)
	maps := []specs.LinuxIDMapping{{HostID: 200000, Size: 65536}}
	const script = `stat -c %d /sys/fs/cgroup
busybox awk '$5 ~ "^/sys/fs/cgroup" { $1 = $2 = $3 = ""; sub("/critest-[^ ]*", "LEAF"); print }' /proc/self/mountinfo | busybox sort
cd /sys/fs/cgroup; stat -c '%a %F' .; for x in *; do echo $x $(readlink $x); done; (mkdir x || touch x) 2>&1 | head -n 1`
	show := func(t *testing.T, p *Pod, change func(*specs.Spec), of func(*ContainerConfig)) (device, rest string) {
		t.Helper()
		spec := DefaultSpec("sh", "-c", script)
		if change != nil {
			change(spec)
		}
		c, log := f.create(t, p, spec, of)
		if err := c.Start(testContext(t)); err != nil {
			t.Fatal(err)
		}
		waitExit(t, c)
		device, rest, _ = strings.Cut(logText(t, log), "\n")
		return device, rest
	}
	shared, want := show(t, f.pod(t, nil), nil, nil)
	for _, part := range []string{" / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - tmpfs tmpfs rw,size=64k,mode=755", "\n755 directory\n", "\ncpu\n", "\ntogether cpu\n", "\nfreezer\n", "Read-only file system\n"} {
		if !strings.Contains(want, part) {
			t.Errorf("the container does not see %q but\n%s", part, want)
		}
	}
	for _, row := range []struct {
		name   string
		pod    func(*PodConfig)
		change func(*specs.Spec)
		of     func(*ContainerConfig)
		shares bool
		other  bool // it looks different
	}{
		{name: "plain", shares: true},
		{name: "CAP_SYS_ADMIN", change: withSysAdmin},
		{name: "CAP_SYS_ADMIN to be got", change: func(s *specs.Spec) {
			s.Process.Capabilities.Bounding = append(slices.Clone(s.Process.Capabilities.Bounding), "CAP_SYS_ADMIN")
		}},
		{name: "shared pid namespace", pod: func(c *PodConfig) { c.SharedPID = true }, of: func(c *ContainerConfig) { c.SharedPID = true }},
		{name: "writable", other: true, change: func(s *specs.Spec) {
			i := slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return m.Type == "cgroup" })
			s.Mounts[i].Options = []string{"rw"}
		}},
		{name: "user namespace", other: true, pod: func(c *PodConfig) { c.HostNetwork, c.UserNS = false, &IDMap{UIDs: maps, GIDs: maps} }},
	} {
		t.Run(row.name, func(t *testing.T) {
			device, rest := show(t, f.pod(t, row.pod), row.change, row.of)
			if (device == shared) != row.shares {
				t.Errorf("device %s, that of others is %s", device, shared)
			}
			if !row.other && rest != want {
				t.Errorf("the container sees\n%s, want\n%s", rest, want)
			}
		})
	}
	t.Run("adopted", func(t *testing.T) { // the minimal namespace of an earlier criserver need not have the same
		_, config := f.adoptable(t)
		p := f.adopt(t, config)
		p.stopAfter(t)
		if device, rest := show(t, p, nil, nil); device == shared || rest != want {
			t.Errorf("device %s, that of others is %s; it sees\n%s", device, shared, rest)
		}
	})
}

// What a container can remount is its own: another sees nothing of what it does to what covers its masked paths.
func TestRemount(t *testing.T) {
	f := newFixture(t)
	masked := func(script string) *specs.Spec {
		s := DefaultSpec("sh", "-c", script)
		s.Linux.MaskedPaths = []string{"/root", "/etc/passwd"}
		return s
	}
	const look = "ls /root; stat -c '%a %t %T' /etc/passwd; ls -d /sys/fs/cgroup/mine 2>/dev/null; true"
	evil := masked(`for x in /root /etc/passwd /sys/fs/cgroup; do mount -o remount,rw,nr_inodes=99 none $x || echo $x; done
touch /root/mine && chmod 600 /etc/passwd && busybox mkdir /sys/fs/cgroup/mine; ` + look)
	withSysAdmin(evil)
	want := "mine\n600 1 3\n/sys/fs/cgroup/mine\n"
	if f.runtime.Unified() {
		want = "mine\n600 1 3\n"
	}
	if out, _ := f.run(t, f.pod(t, nil), evil); !strings.HasSuffix(out, want) {
		t.Errorf("the container with CAP_SYS_ADMIN could not remount: %q", out)
	}
	if out, _ := f.run(t, f.pod(t, nil), masked(look)); out != "666 1 3\n" {
		t.Errorf("another container sees %q", out)
	}
	refused := masked("for x in /root /etc/passwd /sys/fs/cgroup; do mount -o remount,rw none $x 2>/dev/null && echo $x; done; true")
	if out, _ := f.run(t, f.pod(t, nil), refused); out != "" {
		t.Errorf("without CAP_SYS_ADMIN it can remount %q", out)
	}
}
