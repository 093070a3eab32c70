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

// gpuFiles makes what a vendor brings: a library and a hook, which is linked dynamically.
func gpuFiles(t *testing.T) (library, hook string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o711); err != nil { // hooks of user namespaces must get there
		t.Fatal(err)
	}
	library, hook = filepath.Join(dir, "gpu"), filepath.Join(dir, "ldcache")
	if err := os.Mkdir(library, 0o755); err != nil {
		t.Fatal(err)
	}
	source := write(t, filepath.Join(dir, "gpu.c"), "int gpu(void) { return 1; }\n")
	for _, args := range [][]string{
		{"-shared", "-fPIC", "-Wl,-soname,libgpu.so.1", "-o", library + "/libgpu.so.1.2", source},
		{"-o", hook, filepath.Join(repo, "ociruntime/testdata/ldcache.c")},
	} {
		if out, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
			t.Skipf("no C compiler: %v\n%s", err, out)
		}
	}
	return library, hook
}

// What a GPU vendor's CDI file asks for: libraries, links to them and the loader's cache, made by a hook in the root.
func TestCDIHooks(t *testing.T) {
	d := use(t)
	library, hook := gpuFiles(t)
	after := t.TempDir()
	describe(t, d, "hooks.yaml", `
cdiVersion: "0.6.0"
kind: critest.io/hooks
devices:
- name: gpu
  containerEdits:
    mounts: [{hostPath: `+library+`, containerPath: /usr/lib/gpu, options: [rbind, nosuid]}]
    hooks:
    - {hookName: createContainer, path: `+hook+`, args: [ldcache, ../usr/lib/gpu/libgpu.so.1, etc/libgpu.so]}
- name: fails
  containerEdits:
    hooks:
    - {hookName: createContainer, path: /bin/sh, args: [sh, -c, "echo no GPU here >&2; exit 3"]}
    - {hookName: poststop, path: /bin/sh, args: [sh, -c, "echo undone >`+after+`/undone"]}
`)
	script := "readlink /etc/libgpu.so; readlink /usr/lib/gpu/libgpu.so.1; grep -c libgpu.so.1 /etc/ld.so.cache; touch /x 2>/dev/null || echo read-only"
	_, inUserNS := userNamespace(6 << 20)
	for _, row := range []struct {
		name string
		pod  func(*cri.PodSandboxConfig)
	}{{"host's users", func(*cri.PodSandboxConfig) {}}, {"user namespace", inUserNS}} {
		t.Run(row.name, func(t *testing.T) {
			p := runPod(t, d, row.pod)
			p.prints(t, "../usr/lib/gpu/libgpu.so.1\nlibgpu.so.1.2\n1\nread-only\n", script, cdiDevices("critest.io/hooks=gpu"),
				security(func(c *cri.LinuxContainerSecurityContext) { c.ReadonlyRootfs = true }))
			if err := os.Remove(library + "/libgpu.so.1"); err != nil { // ldconfig made it in the volume
				t.Error(err)
			}
		})
	}
	t.Run("fails", func(t *testing.T) {
		p := runPod(t, d)
		c := p.create(t, idle, cdiDevices("critest.io/hooks=fails"))
		refused(t, c.tryStart(t), codes.Unknown, "createContainer hook /bin/sh: exit status 3: no GPU here")
		if s := c.status(t); s.GetState() != cri.ContainerState_CONTAINER_EXITED || s.GetReason() != "StartError" || !strings.Contains(s.GetMessage(), "no GPU here") {
			t.Errorf("status %v", s)
		}
		c.remove(t)
		if _, err := os.Stat(after + "/undone"); err != nil {
			t.Errorf("the poststop hook did not run: %v", err)
		}
	})
}
