package critest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// mounts gives a container volumes.
func mounts(list ...*cri.Mount) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) { c.Mounts = append(c.Mounts, list...) }
}

// mountTmpfs mounts a tmpfs for the length of the test, with propagation as given.
func mountTmpfs(t *testing.T, path string, propagation uintptr) {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("critest", path, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", path, err)
		}
	})
	if propagation != 0 {
		if err := unix.Mount("", path, "", propagation, ""); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMounts(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	host := t.TempDir()
	write(t, filepath.Join(host, "file"), "from the host")
	if err := os.Symlink(filepath.Join(host, "file"), filepath.Join(host, "link")); err != nil {
		t.Fatal(err)
	}
	mountTmpfs(t, filepath.Join(host, "sub"), 0)
	for _, row := range []struct {
		name   string
		mounts []*cri.Mount
		script string
		want   string
	}{
		{"directory", []*cri.Mount{{HostPath: host, ContainerPath: "/mnt"}}, "cat /mnt/file; echo new >/mnt/new; cat /mnt/new; rm /mnt/new", "from the hostnew\n"},
		{"file", []*cri.Mount{{HostPath: host + "/file", ContainerPath: "/etc/deep/er/file"}}, "cat /etc/deep/er/file", "from the host"},
		{"symbolic link", []*cri.Mount{{HostPath: host + "/link", ContainerPath: "/x"}}, "cat /x", "from the host"},
		{"read-only", []*cri.Mount{{HostPath: host, ContainerPath: "/mnt", Readonly: true}}, "touch /mnt/x 2>&1; touch /mnt/sub/x && echo sub; rm /mnt/sub/x", "touch: /mnt/x: Read-only file system\nsub\n"},
		{"recursively read-only", []*cri.Mount{{HostPath: host, ContainerPath: "/mnt", Readonly: true, RecursiveReadOnly: true}}, "touch /mnt/x 2>&1; touch /mnt/sub/x 2>&1", "touch: /mnt/x: Read-only file system\ntouch: /mnt/sub/x: Read-only file system\n"},
		{"options", []*cri.Mount{{HostPath: host, ContainerPath: "/mnt", MountOptions: []string{"noexec", "nodev", "nosuid"}}}, "grep ' /mnt ' /proc/mounts | cut -d' ' -f4 | tr , '\\n' | grep -c '^no\\(exec\\|dev\\|suid\\)$'", "3\n"},
		{"over the image's directory", []*cri.Mount{{HostPath: host, ContainerPath: "/etc"}}, "ls /etc", "file\nhostname\nhosts\nlink\nresolv.conf\nsub\n"},
		{"parents first", []*cri.Mount{{HostPath: host + "/file", ContainerPath: "/a/b"}, {HostPath: host + "/sub", ContainerPath: "/a"}}, "cat /a/b", "from the host"},
		{"the later of two", []*cri.Mount{{HostPath: host + "/sub", ContainerPath: "/a"}, {HostPath: host, ContainerPath: "/a"}}, "cat /a/file", "from the host"},
		{"resolv.conf of one's own", []*cri.Mount{{HostPath: host + "/file", ContainerPath: "/etc/resolv.conf"}}, "cat /etc/resolv.conf", "from the host"},
		{"/dev/shm of one's own", []*cri.Mount{{HostPath: host, ContainerPath: "/dev/shm"}}, "cat /dev/shm/file", "from the host"},
		{"source that is not there", []*cri.Mount{{HostPath: host + "/made", ContainerPath: "/mnt"}}, "echo x >/mnt/y && echo made; rm /mnt/y", "made\n"},
		{"name with spaces", []*cri.Mount{{HostPath: host, ContainerPath: "/a b/c d"}}, "cat '/a b/c d/file'", "from the host"},
		{"same source twice", []*cri.Mount{{HostPath: host, ContainerPath: "/one"}, {HostPath: host, ContainerPath: "/two", Readonly: true}}, "cat /one/file /two/file; touch /two/x 2>&1", "from the hostfrom the hosttouch: /two/x: Read-only file system\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := p.start(t, row.script, mounts(row.mounts...))
			c.wait(t)
			c.wrote(t, row.want)
			got := c.status(t).GetMounts()
			if len(got) != len(row.mounts) || got[0].GetHostPath() != row.mounts[0].GetHostPath() || got[0].GetContainerPath() != row.mounts[0].GetContainerPath() {
				t.Errorf("status has the mounts %v", got)
			}
		})
	}
}

func TestMountPropagation(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	host := t.TempDir()
	mountTmpfs(t, host, unix.MS_SHARED)
	for _, row := range []struct {
		name                string
		propagation         cri.MountPropagation
		toContainer, toHost bool
	}{
		{"private", cri.MountPropagation_PROPAGATION_PRIVATE, false, false},
		{"host to container", cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, true, false},
		{"bidirectional", cri.MountPropagation_PROPAGATION_BIDIRECTIONAL, true, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			check(t, d)
			for _, dir := range []string{"/in", "/out"} {
				if err := os.MkdirAll(host+dir, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			c := p.start(t, idle, mounts(&cri.Mount{HostPath: host, ContainerPath: "/mnt", Propagation: row.propagation}),
				security(func(c *cri.LinuxContainerSecurityContext) {
					c.Capabilities = &cri.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
				}))
			defer c.remove(t)
			mountTmpfs(t, host+"/in", 0)
			write(t, host+"/in/file", "x")
			if got := c.exec(t, "[ -e /mnt/in/file ] && echo seen; mount -t tmpfs x /mnt/out && touch /mnt/out/file"); (got == "seen\n") != row.toContainer {
				t.Errorf("a mount of the host in the container: %q", got)
			}
			_, err := os.Stat(host + "/out/file")
			if (err == nil) != row.toHost {
				t.Errorf("a mount of the container on the host: %v", err)
			}
			c.exec(t, "umount /mnt/out")
		})
	}
}

func TestMountsRefused(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	host := t.TempDir()
	file := write(t, filepath.Join(host, "file"), "x")
	private := filepath.Join(host, "private")
	mountTmpfs(t, private, unix.MS_PRIVATE)
	loop := filepath.Join(host, "loop")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	const rro, slave, shared = cri.MountPropagation_PROPAGATION_PRIVATE, cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, cri.MountPropagation_PROPAGATION_BIDIRECTIONAL
	for _, row := range []struct {
		name  string
		mount *cri.Mount
		texts []string
	}{
		{"relative source", &cri.Mount{HostPath: "a/b", ContainerPath: "/a"}, []string{"config.mounts[0].host_path", "absolute"}},
		{"no destination", &cri.Mount{HostPath: host}, []string{"config.mounts[0].container_path"}},
		{"relative destination", &cri.Mount{HostPath: host, ContainerPath: "a"}, []string{"config.mounts[0].container_path", "absolute"}},
		{"destination is the root", &cri.Mount{HostPath: host, ContainerPath: "/"}, []string{"config.mounts[0].container_path"}},
		{"unknown propagation", &cri.Mount{HostPath: host, ContainerPath: "/a", Propagation: 9}, []string{"config.mounts[0].propagation"}},
		{"recursive without read-only", &cri.Mount{HostPath: host, ContainerPath: "/a", RecursiveReadOnly: true, Propagation: rro}, []string{"config.mounts[0].recursive_read_only"}},
		{"recursive, slave", &cri.Mount{HostPath: host, ContainerPath: "/a", Readonly: true, RecursiveReadOnly: true, Propagation: slave}, []string{"config.mounts[0].recursive_read_only"}},
		{"recursive, shared", &cri.Mount{HostPath: host, ContainerPath: "/a", Readonly: true, RecursiveReadOnly: true, Propagation: shared}, []string{"config.mounts[0].recursive_read_only"}},
		{"unknown option", &cri.Mount{HostPath: host, ContainerPath: "/a", MountOptions: []string{"sync"}}, []string{"config.mounts[0].mount_options[0]", "sync"}},
		{"image volume that is writable", &cri.Mount{Image: &cri.ImageSpec{Image: suite.busybox}, ContainerPath: "/a"}, []string{"config.mounts[0].readonly"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := p.tryCreate(t, containerConfig(idle, mounts(row.mount)))
			refused(t, err, codes.InvalidArgument, row.texts...)
		})
	}
	for _, row := range []struct {
		name  string
		mount *cri.Mount
		texts []string
	}{
		{"source is a loop", &cri.Mount{HostPath: loop, ContainerPath: "/a"}, []string{loop, "too many levels"}},
		{"source below a file", &cri.Mount{HostPath: file + "/x", ContainerPath: "/a"}, []string{file + "/x", "not a directory"}},
		{"directory on a file", &cri.Mount{HostPath: host, ContainerPath: "/etc/passwd"}, []string{"/etc/passwd"}},
		{"source that is not shared", &cri.Mount{HostPath: private, ContainerPath: "/a", Propagation: shared}, []string{private}},
	} {
		t.Run(row.name, func(t *testing.T) {
			check(t, d)
			c, err := p.tryCreate(t, containerConfig(idle, mounts(row.mount)))
			if err == nil { // what is wrong shows when the volume is opened, at the start
				defer c.remove(t)
				err = c.tryStart(t)
			}
			if err == nil {
				t.Fatal("no error")
			}
			for _, text := range row.texts {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("%q is not in: %v", text, err)
				}
			}
		})
	}
}

func TestDevices(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	device := func(list ...*cri.Device) func(*cri.ContainerConfig) {
		return func(c *cri.ContainerConfig) { c.Devices = list }
	}
	for _, row := range []struct {
		name, script string
		device       *cri.Device
		want         string
	}{
		{"device", "stat -c '%t %T' /dev/loop-control; true </dev/loop-control && echo readable", &cri.Device{HostPath: "/dev/loop-control", ContainerPath: "/dev/loop-control", Permissions: "rwm"}, "a ed\nreadable\n"},
		{"renamed", "stat -c '%t %T' /dev/log/messages", &cri.Device{HostPath: "/dev/loop-control", ContainerPath: "/dev/log/messages", Permissions: "r"}, "a ed\n"},
		{"may be read only", "(true >/dev/loop-control) 2>&1 | grep -c permitted", &cri.Device{HostPath: "/dev/loop-control", ContainerPath: "/dev/loop-control", Permissions: "r"}, "1\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p.prints(t, row.want, row.script, device(row.device))
		})
	}
	_, err := p.tryCreate(t, containerConfig(idle, device(&cri.Device{HostPath: "/dev/no-such", ContainerPath: "/dev/x", Permissions: "r"})))
	if err == nil || !strings.Contains(err.Error(), "/dev/no-such") {
		t.Errorf("missing device: %v", err)
	}
	_, err = p.tryCreate(t, containerConfig(idle, device(&cri.Device{HostPath: "/dev/null", ContainerPath: "/dev/x", Permissions: "rx"})))
	refused(t, err, codes.InvalidArgument, "config.devices[0].permissions")
}
