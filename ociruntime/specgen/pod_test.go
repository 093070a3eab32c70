package specgen

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func podWith(o *runtimev1.NamespaceOption, sysctls map[string]string) *runtimev1.PodSandboxConfig {
	return &runtimev1.PodSandboxConfig{Linux: &runtimev1.LinuxPodSandboxConfig{Sysctls: sysctls,
		SecurityContext: &runtimev1.LinuxSandboxSecurityContext{NamespaceOptions: o}}}
}

func TestPodSysctls(t *testing.T) {
	const port, ping = "net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range"
	for _, c := range []struct {
		name          string
		ns            *runtimev1.NamespaceOption
		asked, wanted map[string]string
	}{
		{"defaults", nil, nil, map[string]string{port: "0", ping: "0 2147483647"}},
		{"host network", &runtimev1.NamespaceOption{Network: runtimev1.NamespaceMode_NODE}, map[string]string{"kernel.shmmax": "1"}, map[string]string{"kernel.shmmax": "1"}},
		{"user namespace", &runtimev1.NamespaceOption{UsernsOptions: userNS(0, 1, 1)}, nil, map[string]string{port: "0"}},
		{"host users", &runtimev1.NamespaceOption{UsernsOptions: &runtimev1.UserNamespace{Mode: runtimev1.NamespaceMode_NODE}}, nil, map[string]string{port: "0", ping: "0 2147483647"}},
		{"asked wins", nil, map[string]string{"net/ipv4/ip_unprivileged_port_start": "80"}, map[string]string{port: "80", ping: "0 2147483647"}},
		{"dots in names", nil, map[string]string{"net/ipv4/conf/eth0.1/rp_filter": "0", "net.ipv4.conf.eth0/2.rp_filter": "1", "fs.mqueue.msg_max": "9"},
			map[string]string{port: "0", ping: "0 2147483647", "net/ipv4/conf/eth0.1/rp_filter": "0", "net/ipv4/conf/eth0.2/rp_filter": "1", "fs.mqueue.msg_max": "9"}},
	} {
		got, err := PodSysctls(podWith(c.ns, c.asked), plainHandler())
		if err != nil || !maps.Equal(got, c.wanted) {
			t.Errorf("%s: %v, %v; want %v", c.name, got, err, c.wanted)
		}
	}
}

func TestPodSysctlsRefused(t *testing.T) {
	hostNet := &runtimev1.NamespaceOption{Network: runtimev1.NamespaceMode_NODE}
	hostIPC := &runtimev1.NamespaceOption{Ipc: runtimev1.NamespaceMode_NODE}
	for _, c := range []struct {
		ns         *runtimev1.NamespaceOption
		key, value string
		want       string
	}{
		{hostNet, "net.core.somaxconn", "1", "belongs to the host's network"},
		{hostNet, "net/core/somaxconn", "1", "belongs to the host's network"},
		{hostIPC, "kernel.shmmax", "1", "belongs to the host's IPC"},
		{hostIPC, "fs/mqueue/msg_max", "1", "belongs to the host's IPC"},
		{nil, "vm.swappiness", "1", "belongs to no namespace"},
		{nil, "kernel.core_pattern", "|/x", "belongs to no namespace"},
		{nil, "net/../kernel/core_pattern", "|/x", "is not the name"},
		{nil, "net..x", "1", "is not the name"},
		{nil, "net.ipv4.//.x", "1", "is not the name"},
		{nil, "net", "1", "is not the name"},
		{nil, "", "1", "is not the name"},
		{nil, "net.x", "1\n2", "is not one line"},
	} {
		_, err := PodSysctls(podWith(c.ns, map[string]string{c.key: c.value}), plainHandler())
		var bad *InvalidError
		if !errors.As(err, &bad) || bad.Field != "linux.sysctls" || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.key, err, c.want)
		}
	}
	if _, err := PodSysctls(podWith(nil, map[string]string{"net.a": "1", "net/a": "2"}), plainHandler()); err == nil || !strings.Contains(err.Error(), "are the same") {
		t.Errorf("two spellings: error %v", err)
	}
}

func TestStopSignal(t *testing.T) {
	for _, c := range []struct {
		asked runtimev1.Signal
		image string
		want  unix.Signal
	}{
		{0, "", unix.SIGTERM}, {0, "SIGQUIT", unix.SIGQUIT}, {0, "quit", unix.SIGQUIT}, {0, "3", unix.SIGQUIT}, {0, "SIGRTMIN+3", 37}, {0, "rtmax-1", 63},
		{0, "SIGRTMIN", 34}, {0, "SIGRTMAX", 64}, {0, "SIGPOLL", unix.SIGIO}, {0, "SIGNAL_SIGHUP", unix.SIGHUP}, {0, "SIGRTMIN+30", 64},
		{runtimev1.Signal_SIGNAL_SIGTERM, "SIGQUIT", unix.SIGTERM}, {runtimev1.Signal_SIGNAL_SIGRTMINPLUS15, "", 49}, {runtimev1.Signal_SIGNAL_SIGRTMAXMINUS14, "", 50},
	} {
		got, err := StopSignal(&runtimev1.ContainerConfig{StopSignal: c.asked}, ocispec.Image{Config: ocispec.ImageConfig{StopSignal: c.image}})
		if err != nil || got != c.want {
			t.Errorf("%v, image %q: %v, %v; want %v", c.asked, c.image, got, err, c.want)
		}
	}
	for n, name := range runtimev1.Signal_name { // every signal of the CRI is one of the kernel
		if _, err := StopSignal(&runtimev1.ContainerConfig{StopSignal: runtimev1.Signal(n)}, ocispec.Image{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, image := range []string{"SIGWHAT", "0", "65", "-9", "SIGRTMIN+31", "SIGRTMIN-1", "SIGRTMAX-31", "SIGRTMAX+1", "SIGRTMIN+", "SIG"} {
		if got, err := StopSignal(&runtimev1.ContainerConfig{}, ocispec.Image{Config: ocispec.ImageConfig{StopSignal: image}}); err == nil {
			t.Errorf("image signal %q is %v, want an error", image, got)
		}
	}
	var bad *InvalidError
	if _, err := StopSignal(&runtimev1.ContainerConfig{StopSignal: 99}, ocispec.Image{}); !errors.As(err, &bad) {
		t.Errorf("unknown enum value: error %v", err)
	}
}

func TestHostDevices(t *testing.T) {
	dir := t.TempDir()
	for _, sub := range []string{"sub", "pts"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, minor := range map[string]uint32{"null": 3, "sub/zero": 5, "pts/0": 7} {
		if err := unix.Mknod(filepath.Join(dir, name), unix.S_IFCHR|0o640, int(unix.Mkdev(1, minor))); err != nil {
			t.Skipf("cannot make device nodes: %v", err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"link": "null", "dirlink": "sub"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string][]string{
		"null": {"null c 1:3 -rw-r-----"}, "link": {"link c 1:3 -rw-r-----"}, "dirlink": {"dirlink/zero c 1:5 -rw-r-----"},
		".": {"null c 1:3 -rw-r-----", "sub/zero c 1:5 -rw-r-----"},
	} {
		found, err := HostDevices(filepath.Join(dir, path))
		if err != nil {
			t.Errorf("%s: %v", path, err)
		}
		var got []string
		for _, d := range found {
			rel, err := filepath.Rel(dir, d.Path)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, strings.Join([]string{rel, d.Type, text(d.Major) + ":" + text(d.Minor), d.FileMode.String()}, " "))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
	for path, want := range map[string]string{"file": "is not a device", "none": "no such file"} {
		if _, err := HostDevices(filepath.Join(dir, path)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", path, err, want)
		}
	}
}

func text(n int64) string { return string(rune('0' + n)) }
