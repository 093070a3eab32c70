package critest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/registry"
)

const (
	private       = cri.MountPropagation_PROPAGATION_PRIVATE
	toContainer   = cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	bidirectional = cri.MountPropagation_PROPAGATION_BIDIRECTIONAL
)

// What a mount of the host must be, for mounts to travel.
func TestPropagationNeeds(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	host := t.TempDir()
	for name, kind := range map[string]uintptr{"private": unix.MS_PRIVATE, "shared": unix.MS_SHARED} {
		mountTmpfs(t, filepath.Join(host, name), kind)
	}
	slave := filepath.Join(host, "slave")
	if err := os.Mkdir(slave, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		from  string
		flags uintptr
	}{{filepath.Join(host, "shared"), unix.MS_BIND}, {"", unix.MS_SLAVE}} {
		if err := unix.Mount(step.from, slave, "", step.flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = unix.Unmount(slave, unix.MNT_DETACH) })
	for _, row := range []struct {
		source      string
		propagation cri.MountPropagation
		want        string // of the mount in the container, or in the error
	}{
		{"private", private, "-"}, {"private", toContainer, "not a shared or slave mount"}, {"private", bidirectional, "not a shared mount"},
		{"slave", private, "-"}, {"slave", toContainer, "master"}, {"slave", bidirectional, "not a shared mount"},
		{"shared", private, "-"}, {"shared", toContainer, "master"}, {"shared", bidirectional, "shared"},
	} {
		t.Run(row.source+" "+row.propagation.String(), func(t *testing.T) {
			check(t, d)
			c := p.create(t, "grep ' /mnt ' /proc/self/mountinfo | cut -d' ' -f7 | cut -d: -f1; grep ' / / ' /proc/self/mountinfo | cut -d' ' -f7 | cut -d: -f1",
				mounts(&cri.Mount{HostPath: filepath.Join(host, row.source), ContainerPath: "/mnt", Propagation: row.propagation}))
			defer c.remove(t)
			err := c.tryStart(t)
			if strings.HasPrefix(row.want, "not ") {
				if err == nil || !strings.Contains(err.Error(), filepath.Join(host, row.source)+" is mounted, but it is "+row.want) {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			c.wait(t)
			root := "-" // its own mounts travel only if it asked for that
			if row.propagation == bidirectional {
				root = "shared"
			}
			c.wrote(t, row.want+"\n"+root+"\n")
		})
	}
}

// A mount point below a link of the image is made inside the container, whatever the link says.
func TestMountPointsStayInside(t *testing.T) {
	d := use(t)
	outside := t.TempDir()
	ref := pullNew(t, d, "links", ocispec.ImageConfig{}, registry.Layer{Files: []registry.File{
		symlink("abs", outside), symlink("up", "../../../../../.."+outside), symlink("proc-root", "/proc/1/root"+outside), symlink("dangling", "nowhere/yet"), symlink("etc/resolv.conf", "../run/resolve/stub.conf"), symlink("loop", "loop")}})
	p := runPod(t, d)
	host := t.TempDir()
	write(t, filepath.Join(host, "file"), "from the host")
	image := func(c *cri.ContainerConfig) { c.Image.Image = ref }
	for _, link := range []string{"abs", "up"} {
		t.Run(link, func(t *testing.T) {
			p.prints(t, "from the host", "cat "+outside+"/sub/file", image, mounts(&cri.Mount{HostPath: host, ContainerPath: "/" + link + "/sub"}))
			if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
				t.Errorf("on the host there is %v, %v", left, err)
			}
		})
	}
	t.Run("dangling", func(t *testing.T) {
		p.prints(t, "from the host", "cat /nowhere/yet/sub/file", image, mounts(&cri.Mount{HostPath: host, ContainerPath: "/dangling/sub"}))
		p.prints(t, "from the host", "cat /nowhere/yet/file", image, mounts(&cri.Mount{HostPath: host, ContainerPath: "/dangling"}))
		p.prints(t, "1\n", "grep -c ' /run/resolve/stub.conf ' /proc/mounts", image)
	})
	for _, link := range []string{"proc-root", "loop"} {
		t.Run(link, func(t *testing.T) {
			check(t, d)
			c := p.create(t, idle, image, mounts(&cri.Mount{HostPath: host, ContainerPath: "/" + link + "/sub"}))
			defer c.remove(t)
			if err := c.tryStart(t); err == nil || !strings.Contains(err.Error(), "/"+link+"/sub") {
				t.Errorf("error %v", err)
			}
			if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
				t.Errorf("on the host there is %v, %v", left, err)
			}
		})
	}
}

// A source that is missing is not made where the configuration forbids it.
func TestAbsentSource(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	for _, path := range []string{"/etc/critest-absent", "/etc/./critest-absent/"} {
		_, err := p.tryCreate(t, containerConfig(idle, mounts(&cri.Mount{HostPath: path, ContainerPath: "/mnt"})))
		refused(t, err, codes.InvalidArgument, path, "must not be made a directory")
	}
	if _, err := os.Lstat("/etc/critest-absent"); err == nil {
		t.Error("it was made")
	}
}

// Whole trees of the request's take the place of the default ones.
func TestMountsOverDefaults(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	host := t.TempDir()
	for _, name := range []string{"null", "mine"} {
		write(t, filepath.Join(host, name), "a file of the host\n")
	}
	for _, row := range []struct {
		name, path, script, want string
	}{
		{"/dev", "/dev", "cat /dev/null; ls /dev", "a file of the host\nmine\nnull\n"},
		{"/sys", "/sys", "ls /sys; ls /proc/self >/dev/null && echo proc", "mine\nnull\nproc\n"},
		{"/sys/fs/cgroup", "/sys/fs/cgroup", "ls /sys/fs/cgroup; ls -d /sys/kernel", "mine\nnull\n/sys/kernel\n"},
		{"/dev/mqueue", "/dev/mqueue", "ls /dev/mqueue; ls /dev/pts", "mine\nnull\nptmx\n"},
		{"/tmp", "/tmp/../tmp/", "ls /tmp", "mine\nnull\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p.prints(t, row.want, row.script, mounts(&cri.Mount{HostPath: host, ContainerPath: row.path}))
		})
	}
}

// The spec that agents read says whose container it is, in containerd's words, and where what it mounts comes from.
func TestRuntimeSpec(t *testing.T) {
	d := use(t)
	ref := pullNew(t, d, "odd-volumes", ocispec.ImageConfig{Volumes: map[string]struct{}{"/test_dir": {}, "/:colon": {}, "C:/weird": {}}},
		registry.Layer{Files: []registry.File{dir("test_dir/", 0o755), file("test_dir/file", "content\n", 0o644), dir(":colon/", 0o755), file(":colon/file", "colon\n", 0o644),
			dir("C:/", 0o755), dir("C:/weird/", 0o755), file("C:/weird/file", "weird\n", 0o644)}})
	p := runPod(t, d, podNetwork)
	c := p.start(t, idle, func(c *cri.ContainerConfig) { c.Image.Image = ref })
	r, err := d.runtime.ContainerStatus(bounded(t), &cri.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var info struct {
		RuntimeSpec specs.Spec `json:"runtimeSpec"`
	}
	if err := json.Unmarshal([]byte(r.GetInfo()["info"]), &info); err != nil {
		t.Fatal(err)
	}
	m := p.config.GetMetadata()
	for key, want := range map[string]string{
		"container-type": "container", "sandbox-id": p.id, "sandbox-namespace": m.GetNamespace(), "sandbox-uid": m.GetUid(), "sandbox-name": m.GetName(),
		"container-name": c.config.GetMetadata().GetName(), "image-name": ref, "sandbox-log-directory": p.config.GetLogDirectory(),
	} {
		if got := info.RuntimeSpec.Annotations["io.kubernetes.cri."+key]; got != want {
			t.Errorf("annotation %s is %q, want %q", key, got, want)
		}
	}
	var kinds []string
	for _, n := range info.RuntimeSpec.Linux.Namespaces {
		kinds = append(kinds, string(n.Type))
	}
	if text := strings.Join(kinds, " "); !strings.Contains(text, "network") || !strings.Contains(text, "mount") || !strings.Contains(text, "ipc") {
		t.Errorf("namespaces %v", kinds)
	}
	for path, text := range map[string]string{"/test_dir": "content\n", "/:colon": "colon\n", "/C:/weird": "weird\n"} {
		source := ""
		for _, m := range info.RuntimeSpec.Mounts {
			if m.Destination == path {
				source = m.Source
			}
		}
		if got, err := os.ReadFile(filepath.Join(source, "file")); err != nil || string(got) != text {
			t.Errorf("volume %s has on the host %q, %v", path, got, err)
		}
		c.exec(t, fmt.Sprintf("echo changed >%s/file", path))
		if got, err := os.ReadFile(filepath.Join(source, "file")); err != nil || string(got) != "changed\n" {
			t.Errorf("volume %s has on the host after a change %q, %v", path, got, err)
		}
	}
}

func TestDeviceRules(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	host := t.TempDir()
	for i, name := range []string{"one", "sub/two"} {
		path := filepath.Join(host, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mknod(path, unix.S_IFCHR|0o640, int(unix.Mkdev(1, uint32(5+2*i)))); err != nil { // zero and full
			t.Fatal(err)
		}
		if err := os.Chown(path, 7, 8); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mknod(filepath.Join(host, "disk"), unix.S_IFBLK|0o600, int(unix.Mkdev(7, 200))); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("sub/two", filepath.Join(host, "link")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(host, "file"), "no device")
	devices := func(list ...*cri.Device) func(*cri.ContainerConfig) {
		return func(c *cri.ContainerConfig) { c.Devices = list }
	}
	for _, row := range []struct {
		name, script, want string
		device             *cri.Device
	}{
		{"directory", "cd /dev/many; find . -type c -o -type b | sort; stat -c '%t:%T %a %u:%g' one sub/two", "./disk\n./one\n./sub/two\n1:5 640 7:8\n1:7 640 7:8\n", &cri.Device{HostPath: host, ContainerPath: "/dev/many"}},
		{"symbolic link", "stat -c '%t:%T' /dev/link", "1:7\n", &cri.Device{HostPath: host + "/link", ContainerPath: "/dev/link", Permissions: "r"}},
		{"block device", "stat -c '%F %t:%T' /dev/disk", "block special file 7:c8\n", &cri.Device{HostPath: host + "/disk", ContainerPath: "/dev/disk", Permissions: "rwm"}},
		{"outside /dev", "stat -c '%t:%T' /opt/dev/one", "1:5\n", &cri.Device{HostPath: host + "/one", ContainerPath: "/opt/dev/one"}},
		{"no container path", "stat -c '%t:%T' " + host + "/one", "1:5\n", &cri.Device{HostPath: host + "/one"}},
		{"not given: may be made, not used", "mknod /tmp/kmsg c 1 11 && (true </tmp/kmsg) 2>&1 | grep -c permitted", "1\n", &cri.Device{HostPath: host + "/one", ContainerPath: "/dev/one"}},
		{"written only", "(true </dev/ctl) 2>&1 | grep -c permitted; true >/dev/ctl && echo writable", "1\nwritable\n", &cri.Device{HostPath: "/dev/loop-control", ContainerPath: "/dev/ctl", Permissions: "w"}},
		{"instead of a default one", "stat -c '%t:%T' /dev/null", "1:5\n", &cri.Device{HostPath: host + "/one", ContainerPath: "/dev/null", Permissions: "rw"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			p.prints(t, row.want, row.script, devices(row.device))
		})
	}
	for _, row := range []struct {
		name, path, text string
	}{
		{"missing", host + "/none", "config.devices[0].host_path"}, {"a file", host + "/file", "is not a device"}, {"below a file", host + "/file/x", "devices[0].host_path: not a directory"},
	} {
		t.Run(row.name, func(t *testing.T) {
			check(t, d)
			_, err := p.tryCreate(t, containerConfig(idle, devices(&cri.Device{HostPath: row.path, ContainerPath: "/dev/x"})))
			if err == nil || !strings.Contains(err.Error(), strings.TrimPrefix(row.text, "config.")) {
				t.Errorf("error %v", err)
			}
		})
	}
}
