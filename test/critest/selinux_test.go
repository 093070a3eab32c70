package critest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// useSELinux skips the test without SELinux, and says whether it is enforced.
func useSELinux(t *testing.T) (d *daemon, enforcing bool) {
	t.Helper()
	enforce, err := os.ReadFile("/sys/fs/selinux/enforce")
	if err != nil {
		t.Skip("this kernel has no SELinux")
	}
	return use(t), string(enforce) == "1"
}

func seLinux(o *cri.SELinuxOption) func(*cri.ContainerConfig) {
	return security(func(c *cri.LinuxContainerSecurityContext) { c.SelinuxOptions = o })
}

// Labels of a container with the categories of its pod.
var (
	processLabel = regexp.MustCompile(`^system_u:system_r:container_t:(s0:c\d+,c\d+)$`)
	rootOptions  = regexp.MustCompile(` / / .* - overlay .*,context="?system_u:object_r:container_file_t:(s0:c\d+,c\d+)"?[, ]`)
)

// processLabel is that of an exec in the container, which must be that of its first process.
func (c *container) processLabel(t *testing.T) string {
	t.Helper()
	labels := strings.Split(c.exec(t, "tr '\\0' '\\n' </proc/1/attr/current; tr '\\0' '\\n' </proc/self/attr/current"), "\n")
	if labels[0] != labels[1] {
		t.Errorf("the first process has %q, an exec %q", labels[0], labels[1])
	}
	return labels[0]
}

// level is that of the container's processes and of its root, which must be the same.
func (c *container) level(t *testing.T) string {
	t.Helper()
	label := c.processLabel(t)
	process, root := processLabel.FindStringSubmatch(label), rootOptions.FindStringSubmatch(c.exec(t, "cat /proc/self/mountinfo"))
	if process == nil || root == nil || process[1] != root[1] {
		t.Fatalf("process %q, root %q", label, root)
	}
	return process[1]
}

func fileLabel(t *testing.T, path string) string {
	t.Helper()
	buf := make([]byte, 256)
	n, err := unix.Lgetxattr(path, "security.selinux", buf)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimRight(string(buf[:n]), "\x00")
}

func TestSELinux(t *testing.T) {
	d, _ := useSELinux(t)
	p, other := runPod(t, d), runPod(t, d)
	first, second, foreign := p.start(t, idle), p.start(t, idle), other.start(t, idle)
	level := first.level(t)
	if got := second.level(t); got != level {
		t.Errorf("containers of a pod have the levels %s and %s", level, got)
	}
	if got := foreign.level(t); got == level {
		t.Errorf("two pods have the level %s", got)
	}
	if table := first.exec(t, "grep -E ' /dev(/shm|/pts)? ' /proc/self/mountinfo"); strings.Count(table, "container_file_t:"+level) != 3 {
		t.Errorf("not every file system of the container has its level:\n%s", table)
	}
	for name, use := range map[string]string{
		"streams":        "echo out >/dev/stdout; echo err >/dev/stderr",
		"message queues": "touch /dev/mqueue/q && rm /dev/mqueue/q",
		"shared memory":  "echo x >/dev/shm/x && rm /dev/shm/x",
		"its own files":  "echo x >/file && cat /etc/hosts /etc/resolv.conf /etc/hostname >/dev/null",
	} {
		if r, err := first.tryExec(t, execBound, "sh", "-c", use); err != nil || r.GetExitCode() != 0 {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
	for _, row := range []struct {
		name    string
		options *cri.SELinuxOption
		want    string
	}{
		{"level", &cri.SELinuxOption{Level: "s0"}, "system_u:system_r:container_t:s0"},
		{"everything", &cri.SELinuxOption{User: "system_u", Role: "system_r", Type: "container_t", Level: "s0:c4,c5"}, "system_u:system_r:container_t:s0:c4,c5"},
		{"an unconfined type", &cri.SELinuxOption{Type: "spc_t"}, "system_u:system_r:spc_t:" + level},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := p.start(t, idle, seLinux(row.options))
			if got := c.processLabel(t); got != row.want {
				t.Errorf("%q instead of %q", got, row.want)
			}
			c.exec(t, "touch /foo")
		})
	}
	for name, options := range map[string]*cri.SELinuxOption{"level with a comma": {Level: "s0,c4,c5"}, "unknown type": {Type: "nosuch_t"}} {
		t.Run(name, func(t *testing.T) {
			_, err := p.tryCreate(t, containerConfig(idle, seLinux(options)))
			refused(t, err, codes.InvalidArgument, "selinux_options")
		})
	}
	t.Run("privileged", func(t *testing.T) {
		p := runPod(t, d, func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
		c := p.start(t, idle, security(func(c *cri.LinuxContainerSecurityContext) { c.Privileged = true }))
		if got := c.processLabel(t); got != "system_u:system_r:spc_t:s0" {
			t.Errorf("%q", got)
		}
	})
	t.Run("processes of the host", func(t *testing.T) {
		c := p.start(t, "cat /proc/self/attr/current", security(func(c *cri.LinuxContainerSecurityContext) {
			c.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_NODE}
		}))
		c.waitOutput(t, "system_u:system_r:spc_t:s0")
	})
}

// A level is the pod's for as long as there is the pod.
func TestSELinuxRestart(t *testing.T) {
	d, _ := useSELinux(t)
	p := runPod(t, d)
	level := p.start(t, idle).level(t)
	if err := d.kill(); err != nil {
		t.Fatal(err)
	}
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	if got := p.start(t, idle).level(t); got != level {
		t.Errorf("level %s instead of %s", got, level)
	}
}

// A volume that asks for it gets the pod's level, and is then out of reach for other pods.
func TestSELinuxVolume(t *testing.T) {
	d, enforcing := useSELinux(t)
	p, other := runPod(t, d), runPod(t, d)
	dir := t.TempDir()
	file := write(t, filepath.Join(dir, "file"), "mine\n")
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	volume := func(relabel bool) func(*cri.ContainerConfig) {
		return func(c *cri.ContainerConfig) {
			c.Mounts = []*cri.Mount{{ContainerPath: "/v", HostPath: dir, SelinuxRelabel: relabel}}
		}
	}
	c := p.start(t, idle, volume(true))
	want := "system_u:object_r:container_file_t:" + c.level(t)
	for _, path := range []string{dir, file} {
		if got := fileLabel(t, path); got != want {
			t.Errorf("%s has %q instead of %q", path, got, want)
		}
	}
	c.exec(t, "cat /v/file; echo x >/v/new")
	reach := "cat /v/file 2>/dev/null || echo denied"
	if enforcing {
		other.prints(t, "denied\n", reach, volume(false))
	}
	other.prints(t, "mine\n", reach, volume(false), seLinux(&cri.SELinuxOption{Type: "spc_t"}))
	_, err := p.tryCreate(t, containerConfig(idle, func(c *cri.ContainerConfig) {
		c.Mounts = []*cri.Mount{{ContainerPath: "/v", HostPath: "/usr", SelinuxRelabel: true}}
	}))
	refused(t, err, codes.InvalidArgument, "/usr", "must not be relabelled")
}
