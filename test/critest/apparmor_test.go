package critest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// hasAppArmor says whether this kernel confines with AppArmor.
func hasAppArmor() bool {
	enabled, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && strings.HasPrefix(string(enabled), "Y")
}

func appArmor(kind cri.SecurityProfile_ProfileType, name string) func(*cri.ContainerConfig) {
	return security(func(c *cri.LinuxContainerSecurityContext) {
		c.Apparmor = &cri.SecurityProfile{ProfileType: kind, LocalhostRef: name}
	})
}

// oldAppArmor sets the deprecated field.
func oldAppArmor(value string) func(*cri.ContainerConfig) {
	//lint:ignore SA1019 old clients set it
	return security(func(c *cri.LinuxContainerSecurityContext) { c.ApparmorProfile = value })
}

const (
	appArmorDefault    = cri.SecurityProfile_RuntimeDefault
	appArmorUnconfined = cri.SecurityProfile_Unconfined
	appArmorLocal      = cri.SecurityProfile_Localhost
)

// loadProfile gives the kernel a profile of the test's own, under which nothing below /tmp can be written.
func loadProfile(t *testing.T, name string) {
	t.Helper()
	parse := func(verb string) {
		cmd := exec.Command("apparmor_parser", verb, "--skip-cache", "--quiet")
		cmd.Stdin = strings.NewReader("profile " + name + " flags=(attach_disconnected) { file, capability, network, signal, ptrace, umount, mount, deny /tmp/** w, }\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("apparmor_parser %s: %v: %s", verb, err, out)
		}
	}
	parse("--replace")
	t.Cleanup(func() { parse("--remove") })
}

func TestAppArmor(t *testing.T) {
	if !hasAppArmor() {
		t.Skip("this kernel has no AppArmor")
	}
	d := use(t)
	p := runPod(t, d)
	const mine = "critest-mine"
	loadProfile(t, mine)
	const confined, free = "criserver-default (enforce)\n", "unconfined\n"
	for _, row := range []struct {
		name    string
		profile func(*cri.ContainerConfig)
		want    string
	}{
		{"nothing said", func(*cri.ContainerConfig) {}, confined},
		{"runtime default", appArmor(appArmorDefault, ""), confined},
		{"runtime default, old field", oldAppArmor("runtime/default"), confined},
		{"unconfined", appArmor(appArmorUnconfined, ""), free},
		{"unconfined, old field", oldAppArmor("unconfined"), free},
		{"local", appArmor(appArmorLocal, mine), mine + " (enforce)\n"},
		{"local, old field", oldAppArmor("localhost/" + mine), mine + " (enforce)\n"},
		{"new field wins", security(func(c *cri.LinuxContainerSecurityContext) {
			//lint:ignore SA1019 old clients set it
			c.ApparmorProfile, c.Apparmor = "localhost/nosuch", &cri.SecurityProfile{ProfileType: appArmorUnconfined}
		}), free},
		{"no new privileges", security(func(c *cri.LinuxContainerSecurityContext) { c.NoNewPrivs, c.RunAsUser = true, id(1000) }), confined},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := p.start(t, "cat /proc/self/attr/current; "+idle, row.profile)
			c.waitOutput(t, row.want)
			if got := c.exec(t, "cat /proc/self/attr/current"); got != row.want {
				t.Errorf("exec: %q instead of %q", got, row.want)
			}
			c.stop(t, 0)
		})
	}
	for _, row := range []struct{ name, profile string }{{"not loaded", "nosuch"}, {"prefix of a loaded one", mine[:5]}} {
		t.Run(row.name, func(t *testing.T) {
			_, err := p.tryCreate(t, containerConfig(idle, appArmor(appArmorLocal, row.profile)))
			refused(t, err, codes.InvalidArgument, "apparmor", "not loaded")
			_, err = p.tryCreate(t, containerConfig(idle, oldAppArmor("localhost/"+row.profile)))
			refused(t, err, codes.InvalidArgument, "apparmor_profile", "not loaded")
		})
	}
	t.Run("privileged", func(t *testing.T) {
		p := runPod(t, d, func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
		p.prints(t, free, "cat /proc/self/attr/current", security(func(c *cri.LinuxContainerSecurityContext) { c.Privileged = true }))
	})
}

// What the default profile denies, and what it lets a container do, each beside the same without a profile.
func TestAppArmorDefault(t *testing.T) {
	if !hasAppArmor() {
		t.Skip("this kernel has no AppArmor")
	}
	d := use(t)
	p := runPod(t, d)
	const denied = "denied\n"
	for _, row := range []struct {
		name, script   string
		confined, free string
	}{
		{"mount", "mkdir /tmp/m && mount -t tmpfs none /tmp/m 2>/dev/null && echo mounted || echo denied", denied, "mounted\n"},
		{"bind", "mkdir /tmp/m && mount --bind /etc /tmp/m 2>/dev/null && echo mounted || echo denied", denied, "mounted\n"},
		{"write a sysctl", "{ echo 65 >/proc/sys/net/ipv4/ip_default_ttl; } 2>/dev/null && echo written || echo denied", denied, "written\n"},
		{"write to shared memory's limits", "{ echo 4096 >/proc/sys/kernel/shmmni; } 2>/dev/null && echo written || echo denied", "written\n", "written\n"},
		{"write to its own proc", "{ echo me >/proc/self/comm; echo 100 >/proc/self/oom_score_adj; } 2>/dev/null && echo written || echo denied", "written\n", "written\n"},
		{"read /proc/kcore", "dd if=/proc/kcore of=/dev/null bs=64 count=1 2>/dev/null && echo read || echo denied", denied, "read\n"},
		{"write files, pipes and signals", "echo x >/f && cat /f | cat; sleep 1000 & { kill $!; wait $!; } 2>/dev/null; echo $?", "x\n143\n", "x\n143\n"},
		{"unmount", "umount /dev/mqueue && echo unmounted || echo denied", "unmounted\n", "unmounted\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			powerful := security(func(c *cri.LinuxContainerSecurityContext) {
				c.Capabilities = &cri.Capability{AddCapabilities: []string{"SYS_ADMIN", "SYS_RAWIO", "NET_ADMIN"}}
			})
			p.prints(t, row.confined, row.script, powerful)
			p.prints(t, row.free, row.script, powerful, appArmor(appArmorUnconfined, ""))
		})
	}
	t.Run("is stopped by signals", func(t *testing.T) {
		c := p.start(t, "trap 'exit 7' TERM; echo ready; while :; do sleep 1 & wait $!; done")
		c.waitOutput(t, "ready\n")
		c.stop(t, 60)
		if s := c.status(t); s.ExitCode != 7 {
			t.Errorf("exit code %d", s.ExitCode)
		}
	})
}

// A profile whose text is another than the one that was loaded is replaced when criserver starts, under containers that run.
func TestAppArmorReload(t *testing.T) {
	if !hasAppArmor() {
		t.Skip("this kernel has no AppArmor")
	}
	d := use(t)
	p := runPod(t, d)
	admin := security(func(c *cri.LinuxContainerSecurityContext) {
		c.Capabilities = &cri.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
	})
	c := p.start(t, idle, admin)
	const mount = "mount -t tmpfs none /tmp 2>/dev/null && echo mounted || echo denied"
	lax := exec.Command("apparmor_parser", "--replace", "--skip-cache", "--quiet")
	lax.Stdin = strings.NewReader("profile criserver-default flags=(attach_disconnected) { file, capability, network, signal, ptrace, mount, umount, }\n")
	if out, err := lax.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	write(t, filepath.Join(d.state(), "apparmor-loaded"), "an older text")
	if got := c.exec(t, mount+"; umount /tmp"); got != "mounted\n" {
		t.Errorf("with a lax profile: %q", got)
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	if got := c.exec(t, mount); got != "denied\n" {
		t.Errorf("after the restart: %q", got)
	}
	p.prints(t, "x\n", "echo x") // the new criserver has the layer mounted, as the old one had
}

// Without AppArmor a profile that is asked for by name is refused, and the runtime's default is none.
func TestWithoutAppArmor(t *testing.T) {
	if hasAppArmor() {
		t.Skip("this kernel has AppArmor")
	}
	d := use(t)
	p := runPod(t, d)
	_, err := p.tryCreate(t, containerConfig(idle, appArmor(appArmorLocal, "any")))
	refused(t, err, codes.InvalidArgument, "apparmor", "no AppArmor")
	p.prints(t, "ran\n", "echo ran", appArmor(appArmorDefault, ""))
	p.prints(t, "ran\n", "echo ran", appArmor(appArmorUnconfined, ""))
}
