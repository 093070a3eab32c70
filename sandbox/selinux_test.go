package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/ociruntime/selinux"
	"github.com/criserver/criserver/ociruntime/specgen"
)

// labelling makes the machine's criserver one on a host with SELinux and three categories: three pairs of them. Kernels
// without it keep labels of files all the same, if root sets them.
func (m *machine) labelling() {
	m.t.Helper()
	if os.Geteuid() != 0 {
		m.t.Skip("labels are root's to change")
	}
	host, err := selinux.NewHost("", "", func(label string) error {
		if strings.Contains(label, "nosuch_t") {
			return errors.New("invalid argument")
		}
		return nil
	})
	must(m.t, err)
	m.s.config.SELinux, m.s.levels = host, selinux.NewLevels(3)
}

// level is that of a pod.
func (m *machine) level(id ID) string {
	m.t.Helper()
	p, err := m.s.pod(id)
	must(m.t, err)
	return p.level
}

func otherPod(name string, options *runtimev1.SELinuxOption) *runtimev1.PodSandboxConfig {
	c := podConfig()
	c.Metadata.Name, c.Linux.SecurityContext.SelinuxOptions = name, options
	return c
}

func labelOf(t *testing.T, path string) string {
	t.Helper()
	buf := make([]byte, 256)
	n, err := unix.Lgetxattr(path, "security.selinux", buf)
	must(t, err)
	return string(buf[:n])
}

func TestLevels(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		m.labelling()
		pods := map[string]ID{}
		run := func(name string, options *runtimev1.SELinuxOption) (ID, error) {
			id, err := m.s.RunPod(t.Context(), otherPod(name, options), "")
			pods[name] = id
			return id, err
		}
		first, err := run("first", nil)
		must(t, err)
		level := m.level(first)
		p, err := m.s.pod(first)
		must(t, err)
		for _, name := range []string{HostnameFile, HostsFile, ResolvFile} {
			want(t, "label of "+name, labelOf(t, filepath.Join(p.dir(), name)), "system_u:object_r:container_file_t:"+level)
		}
		same, err := run("asks for the same", &runtimev1.SELinuxOption{Level: level})
		must(t, err)
		want(t, "level that was asked for", m.level(same), level)
		must(t, m.s.RemovePod(t.Context(), first))
		delete(pods, "first")
		for _, name := range []string{"second", "third"} {
			id, err := run(name, nil)
			must(t, err)
			want(t, "a level that is taken", m.level(id) == level, false)
		}
		_, err = run("one too many", nil)
		want(t, "no level is left", err != nil, true)
		delete(pods, "one too many")
		_, err = run("unknown", &runtimev1.SELinuxOption{Type: "nosuch_t", Level: level})
		want(t, "a type that the policy does not know is invalid", errors.Is(err, ErrInvalid), true)
		delete(pods, "unknown")

		before := map[string]string{}
		for name, id := range pods {
			before[name] = m.level(id)
		}
		m.crash()
		m.s = m.service(nil)
		m.labelling()
		must(t, m.s.recover(t.Context()))
		<-m.s.Recovered()
		for name, id := range pods {
			want(t, "level after a restart of "+name, m.level(id), before[name])
		}
		_, err = run("one too many", nil)
		want(t, "levels are remembered", err != nil, true)
		delete(pods, "one too many")
		for _, id := range pods {
			must(t, m.s.RemovePod(t.Context(), id))
		}
		for range 3 {
			_, err := m.s.levels.Take()
			must(t, err)
		}
		m.clean()
	})
}

func TestContainerLabels(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		m.labelling()
		pod, err := m.s.RunPod(t.Context(), podConfig(), "")
		must(t, err)
		var seen specgen.Labels
		plan := m.s.plan
		m.s.plan = func(ctx context.Context, b *building) error { seen = b.labels; return plan(ctx, b) }
		volume := t.TempDir()
		create := func(name string, change func(*runtimev1.ContainerConfig)) error {
			c := containerConfig()
			c.Metadata.Name, c.Linux = name, &runtimev1.LinuxContainerConfig{SecurityContext: &runtimev1.LinuxContainerSecurityContext{}}
			change(c)
			_, err := m.s.CreateContainer(t.Context(), pod, c, podConfig())
			return err
		}
		mount := func(path string) []*runtimev1.Mount {
			return []*runtimev1.Mount{{ContainerPath: "/v", HostPath: path, SelinuxRelabel: true}}
		}
		must(t, create("plain", func(c *runtimev1.ContainerConfig) { c.Mounts = mount(volume) }))
		level := m.level(pod)
		want(t, "process", seen.Process, "system_u:system_r:container_t:"+level)
		want(t, "mounts", seen.Mount, "system_u:object_r:container_file_t:"+level)
		want(t, "volume", labelOf(t, volume), seen.Mount)
		copies, err := filepath.Glob(filepath.Join(m.s.volumesDir(), "*", "0"))
		must(t, err)
		want(t, "volume of the image", labelOf(t, copies[0]), seen.Mount)
		must(t, unix.Setxattr(volume, "security.selinux", []byte("other"), 0))
		must(t, create("unconfined", func(c *runtimev1.ContainerConfig) {
			c.Mounts, c.Linux.SecurityContext.SelinuxOptions = mount(volume), &runtimev1.SELinuxOption{Type: selinux.PrivilegedType}
		}))
		want(t, "volume of a container that is not separated", labelOf(t, volume), "other")
		for name, change := range map[string]func(*runtimev1.ContainerConfig){
			"system directory": func(c *runtimev1.ContainerConfig) { c.Mounts = mount("/usr") },
			"no level": func(c *runtimev1.ContainerConfig) {
				c.Linux.SecurityContext.SelinuxOptions = &runtimev1.SELinuxOption{Level: "s0,c1"}
			},
		} {
			want(t, name+" is invalid", errors.Is(create(name, change), ErrInvalid), true)
		}
	})
}
