package critest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/ociruntime/kernel"
)

// userNamespace gives a pod ids of its own, from first on.
func userNamespace(first uint32) (mapping []*cri.IDMapping, pod func(*cri.PodSandboxConfig)) {
	mapping = []*cri.IDMapping{{HostId: first, ContainerId: 0, Length: 65536}}
	return mapping, func(c *cri.PodSandboxConfig) {
		podNetwork(c)
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: mapping, Gids: mapping}
	}
}

// ownedBy is the owner of a file as the host sees it.
func ownedBy(t *testing.T, path string) string {
	t.Helper()
	st, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	own := st.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%d:%d", own.Uid, own.Gid)
}

// volume makes a directory in which files belong to root, to a user and to ids of the first pod.
func volume(t *testing.T, dir string, first int) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	for name, id := range map[string]int{".": 0, "root": 0, "user": 1000, "mapped": first} {
		path := filepath.Join(dir, name)
		if name != "." {
			write(t, path, name)
		}
		if err := os.Chown(path, id, id); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// What an image's files and a volume's files belong to, seen from inside and from the host.
func TestUserNamespaceOwners(t *testing.T) {
	const first = 2 << 20
	eachStore(t, func(t *testing.T, d *daemon) {
		mapping, inUserNS := userNamespace(first)
		disk := volume(t, t.TempDir(), first)
		memory := t.TempDir()
		mountTmpfs(t, memory, 0)
		volume(t, memory, first)
		p := runPod(t, d, inUserNS)
		const owners = "cd /mnt; stat -c '%n %u:%g' root user mapped; "
		for _, row := range []struct {
			name, script string
			volume       *cri.Mount // nil: none
			user         int64
			want         string
			host         map[string]string // who owns what the script made, on the host
		}{
			{"root of the image", "stat -c '%u:%g' / /etc/passwd /home/bob /root /dev/shm /dev/pts /dev/null | tr '\\n' ' '; touch /etc/passwd /new; chown 1000:1001 /new; stat -c '%u:%g' /etc/passwd /new | tr '\\n' ' '",
				nil, 0, "0:0 0:0 1000:1001 0:0 0:0 0:0 0:0 0:0 1000:1001 ", nil},
			{"files of the pod", "cd /etc; stat -c '%u:%g' hostname hosts resolv.conf; echo '# mine' >>resolv.conf && tail -n 1 resolv.conf",
				nil, 0, "0:0\n0:0\n0:0\n# mine\n", nil},
			{"mapped", owners + "touch a; chown 7:8 a; mkdir b", &cri.Mount{HostPath: disk, UidMappings: mapping, GidMappings: mapping}, 0,
				"root 0:0\nuser 1000:1000\nmapped 65534:65534\n", map[string]string{"a": "7:8", "b": "0:0"}},
			{"mapped, written by a user", owners + "touch a || echo refused; cp user /tmp/x && cat /tmp/x", &cri.Mount{HostPath: disk, UidMappings: mapping, GidMappings: mapping}, 1000,
				"root 0:0\nuser 1000:1000\nmapped 65534:65534\ntouch: a: Permission denied\nrefused\nuser", nil},
			{"mapped, in memory", owners + "touch a; mkdir b; chown 1000 b", &cri.Mount{HostPath: memory, UidMappings: mapping, GidMappings: mapping}, 0,
				"root 0:0\nuser 1000:1000\nmapped 65534:65534\n", map[string]string{"a": "0:0", "b": "1000:0"}},
			{"mapped, read-only", owners + "touch a; touch root", &cri.Mount{HostPath: disk, Readonly: true, UidMappings: mapping, GidMappings: mapping}, 0,
				"root 0:0\nuser 1000:1000\nmapped 65534:65534\ntouch: a: Read-only file system\ntouch: root: Read-only file system\n", nil},
			{"mapped, recursively read-only", owners + "touch a", &cri.Mount{HostPath: memory, Readonly: true, RecursiveReadOnly: true, UidMappings: mapping, GidMappings: mapping}, 0,
				"root 0:0\nuser 1000:1000\nmapped 65534:65534\ntouch: a: Read-only file system\n", nil},
			{"as it is", owners + "touch a; cat mapped; echo x >mapped && echo written", &cri.Mount{HostPath: disk}, 0,
				"root 65534:65534\nuser 65534:65534\nmapped 0:0\ntouch: a: Permission denied\nmappedwritten\n", nil},
			{"one file, mapped", "stat -c '%u:%g' /mnt; echo x >/mnt", &cri.Mount{HostPath: filepath.Join(disk, "user"), UidMappings: mapping, GidMappings: mapping}, 0,
				"1000:1000\n", nil},
		} {
			t.Run(row.name, func(t *testing.T) {
				if row.volume.GetHostPath() == memory && !kernel.IDMappedTmpfs.Has() {
					t.Skip("this kernel cannot mount a tmpfs idmapped")
				}
				c := p.start(t, "exec 2>&1; "+row.script, func(c *cri.ContainerConfig) {
					if row.volume != nil {
						row.volume.ContainerPath = "/mnt"
						c.Mounts = []*cri.Mount{row.volume}
					}
				}, security(func(c *cri.LinuxContainerSecurityContext) { c.RunAsUser = id(row.user) }))
				c.wait(t)
				c.wrote(t, row.want)
				for name, want := range row.host {
					path := filepath.Join(row.volume.HostPath, name)
					if got := ownedBy(t, path); got != want {
						t.Errorf("on the host %s belongs to %s instead of %s", name, got, want)
					}
					if err := os.Remove(path); err != nil {
						t.Error(err)
					}
				}
			})
		}
	})
}

// Pods with different ids share a volume, and see the same owners.
func TestUserNamespacesShareVolume(t *testing.T) {
	eachStore(t, func(t *testing.T, d *daemon) {
		dir := t.TempDir()
		var all []*container
		for _, first := range []uint32{3 << 20, 4 << 20} {
			mapping, inUserNS := userNamespace(first)
			c := runPod(t, d, inUserNS).start(t, idle, mounts(&cri.Mount{HostPath: dir, ContainerPath: "/mnt", UidMappings: mapping, GidMappings: mapping}))
			c.waitOutput(t, "ready")
			all = append(all, c)
		}
		all[0].exec(t, "umask 077; echo secret >/mnt/x; chown 5:6 /mnt/x")
		if got := all[1].exec(t, "cat /mnt/x; stat -c %u:%g /mnt/x; echo more >>/mnt/x"); got != "secret\n5:6\n" {
			t.Errorf("the other pod sees %q", got)
		}
		if got := ownedBy(t, filepath.Join(dir, "x")); got != "5:6" {
			t.Errorf("on the host it belongs to %s", got)
		}
		for i, c := range all { // none of them is anybody on the host
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.pid(t)))
			if err != nil {
				t.Fatal(err)
			}
			if uid := uint32(3+i) << 20; !strings.Contains(string(text), fmt.Sprintf("\nUid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", uid)) {
				t.Errorf("the process is not of the user %d:\n%s", uid, text)
			}
		}
	})
}

// pid is that of the container's first process, as the verbose status has it.
func (c *container) pid(t *testing.T) int {
	t.Helper()
	r, err := c.p.d.runtime.ContainerStatus(bounded(t), &cri.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	return infoPid(t, r.GetInfo())
}

// A file system that cannot be mounted idmapped is named, and so is what to do.
func TestUserNamespaceNotMappable(t *testing.T) {
	d := use(t)
	mapping, inUserNS := userNamespace(5 << 20)
	dir := t.TempDir()
	if err := unix.Mount("critest", dir, "ramfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	p := runPod(t, d, inUserNS)
	c := p.create(t, idle, mounts(&cri.Mount{HostPath: dir, ContainerPath: "/mnt", UidMappings: mapping, GidMappings: mapping}))
	err := c.tryStart(t)
	if err == nil {
		t.Fatal("no error")
	}
	for _, part := range []string{dir, "/mnt", "ramfs", "idmapped"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in: %v", part, err)
		}
	}
	if s := c.status(t); s.GetReason() != "StartError" {
		t.Errorf("reason %q", s.GetReason())
	}
}
