package cdi

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func newRegistry(t *testing.T, dirs ...string) *Registry {
	t.Helper()
	r, err := New(dirs)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

const full = `
cdiVersion: "0.7.0"
kind: vendor.com/gpu
containerEdits:
  env: ["ALL=1"]
devices:
- name: one
  containerEdits:
    env: ["ONE=1"]
    deviceNodes: [{path: /dev/gpu1, hostPath: /dev/null, permissions: rw}]
    mounts: [{hostPath: /usr/lib/gpu, containerPath: /opt/gpu/lib, options: [ro, rbind]}, {hostPath: /usr/lib/gpu, containerPath: /opt}]
    hooks: [{hookName: createContainer, path: /usr/bin/hook, args: [hook, link], env: ["A=b"], timeout: 3}, {hookName: poststop, path: /usr/bin/after}]
    additionalGids: [44]
- name: two
  containerEdits:
    env: ["TWO=2"]
`

func TestInject(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "vendor.yaml"), full)
	spec := &specs.Spec{Process: &specs.Process{Env: []string{"PATH=/bin"}, User: specs.User{UID: 7}}, Linux: &specs.Linux{Resources: &specs.LinuxResources{}},
		Mounts: []specs.Mount{{Destination: "/proc"}}}
	if err := newRegistry(t, dir).Inject(spec, []string{"vendor.com/gpu=one", "vendor.com/gpu=two"}); err != nil {
		t.Fatal(err)
	}
	major, minor, uid, timeout, mode := int64(1), int64(3), uint32(7), 3, os.FileMode(0o666)
	want := &specs.Spec{
		Process: &specs.Process{Env: []string{"PATH=/bin", "ALL=1", "ONE=1", "TWO=2"}, User: specs.User{UID: 7, AdditionalGids: []uint32{44}}},
		Linux: &specs.Linux{
			Devices:   []specs.LinuxDevice{{Path: "/dev/gpu1", Type: "c", Major: 1, Minor: 3, FileMode: &mode, UID: &uid}},
			Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "rw"}}},
		},
		Mounts: []specs.Mount{{Destination: "/proc"}, {Destination: "/opt", Source: "/usr/lib/gpu"},
			{Destination: "/opt/gpu/lib", Source: "/usr/lib/gpu", Options: []string{"ro", "rbind"}}},
		Hooks: &specs.Hooks{
			CreateContainer: []specs.Hook{{Path: "/usr/bin/hook", Args: []string{"hook", "link"}, Env: []string{"A=b"}, Timeout: &timeout}},
			Poststop:        []specs.Hook{{Path: "/usr/bin/after"}},
		},
	}
	if d := cmp.Diff(want, spec); d != "" {
		t.Error(d)
	}
}

// A file that appears is seen, one that is broken costs nobody else, and of two directories the later wins.
func TestFilesChange(t *testing.T) {
	early, late := t.TempDir(), t.TempDir()
	r := newRegistry(t, early, late)
	inject := func() (*specs.Spec, error) {
		spec := &specs.Spec{}
		return spec, r.Inject(spec, []string{"vendor.com/gpu=two"})
	}
	if _, err := inject(); err == nil || !strings.Contains(err.Error(), "no CDI device vendor.com/gpu=two in "+early) {
		t.Errorf("nothing is there: %v", err)
	}
	write(t, filepath.Join(early, "vendor.yaml"), full)
	broken := filepath.Join(early, "broken.json")
	write(t, broken, "{")
	if _, err := inject(); err != nil {
		t.Error(err)
	}
	if err := r.Inject(&specs.Spec{}, []string{"other.com/gpu=x"}); err == nil || !strings.Contains(err.Error(), "no CDI device other.com/gpu=x in ") || !strings.Contains(err.Error(), broken) {
		t.Errorf("a device that may be in a broken file: %v", err)
	}
	write(t, filepath.Join(late, "vendor.yaml"), strings.ReplaceAll(full, "TWO=2", "TWO=late"))
	spec, err := inject()
	if err != nil || !slices.Contains(spec.Process.Env, "TWO=late") {
		t.Errorf("the later directory: %v, %v", spec.Process, err)
	}
	write(t, filepath.Join(late, "again.yaml"), full)
	if _, err := inject(); err == nil || !strings.Contains(err.Error(), "conflicting device") {
		t.Errorf("two files of one directory: %v", err)
	}
}

func TestAnnotated(t *testing.T) {
	got, err := Annotated(map[string]string{"cdi.k8s.io/b": "v.com/c=2", "cdi.k8s.io/a": "v.com/c=1,v.com/c=2", "other": "x"})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"v.com/c=1", "v.com/c=2", "v.com/c=3"}, Distinct(got, []string{"v.com/c=3", "v.com/c=1"})); d != "" {
		t.Error(d)
	}
	for _, value := range []string{"", "gpu", "v.com/c=1,", "v.com/c"} {
		if _, err := Annotated(map[string]string{"cdi.k8s.io/x": value}); err == nil || !strings.Contains(err.Error(), "cdi.k8s.io/x") {
			t.Errorf("%q: %v", value, err)
		}
	}
}
