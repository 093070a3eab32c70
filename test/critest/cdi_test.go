package critest

import (
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// cdiDevices asks for devices by the field.
func cdiDevices(names ...string) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) {
		for _, name := range names {
			c.CDIDevices = append(c.CDIDevices, &cri.CDIDevice{Name: name})
		}
	}
}

// cdiAnnotation asks for devices by an annotation, as older device plugins do.
func cdiAnnotation(names string) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) { c.Annotations = map[string]string{"cdi.k8s.io/plugin_1": names} }
}

// describe writes a CDI file for the length of the test.
func describe(t *testing.T, d *daemon, name, text string) {
	t.Helper()
	path := write(t, filepath.Join(d.cdiDir(), name), text)
	t.Cleanup(func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	})
}

func TestCDI(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	host := t.TempDir()
	write(t, filepath.Join(host, "libgpu.so"), "library\n")
	describe(t, d, "vendor.yaml", `
cdiVersion: "1.1.0"
kind: critest.io/gpu
containerEdits:
  env: ["ALL=once"]
devices:
- name: one
  containerEdits:
    env: ["GPU=one"]
    deviceNodes: [{path: /dev/gpu/ctl, hostPath: /dev/loop-control, permissions: r}]
    mounts: [{hostPath: `+host+`, containerPath: /opt/gpu, options: [rbind, ro, nosuid]}]
    additionalGids: [4711]
- name: two
  containerEdits:
    env: ["GPU=two"]
- name: net
  containerEdits:
    netDevices: [{hostInterfaceName: lo, name: gpu0}]
- name: rdt
  containerEdits:
    intelRdt: {closID: gold}
- name: gone
  containerEdits:
    deviceNodes: [{path: /dev/no-such-gpu}]
`)
	for _, row := range []struct {
		name, script, want string
		ask                func(*cri.ContainerConfig)
	}{
		{"environment of the device and of its file", "echo $ALL $GPU", "once one\n", cdiDevices("critest.io/gpu=one")},
		{"device node", "stat -c '%t %T' /dev/gpu/ctl; true </dev/gpu/ctl && echo readable; (true >/dev/gpu/ctl) 2>&1 | grep -c permitted", "a ed\nreadable\n1\n", cdiDevices("critest.io/gpu=one")},
		{"mount", "cat /opt/gpu/libgpu.so; touch /opt/gpu/x 2>&1", "library\ntouch: /opt/gpu/x: Read-only file system\n", cdiDevices("critest.io/gpu=one")},
		{"group", "id -G", "0 4711\n", cdiDevices("critest.io/gpu=one")},
		{"annotation", "echo $GPU", "two\n", cdiAnnotation("critest.io/gpu=one,critest.io/gpu=two")},
		{"field and annotation, once each", "grep -c ' /opt/gpu ' /proc/mounts; echo $GPU", "1\ntwo\n", func(c *cri.ContainerConfig) {
			cdiDevices("critest.io/gpu=one")(c)
			cdiAnnotation("critest.io/gpu=one,critest.io/gpu=two")(c)
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := p.start(t, row.script, row.ask)
			c.wait(t)
			c.wrote(t, row.want)
		})
	}
	for _, row := range []struct {
		name  string
		ask   func(*cri.ContainerConfig)
		code  codes.Code
		texts []string
	}{
		{"no name", cdiDevices("critest.io/gpu"), codes.InvalidArgument, []string{"config.CDI_devices[0].name", "critest.io/gpu"}},
		{"no name in an annotation", cdiAnnotation("critest.io/gpu=one,"), codes.InvalidArgument, []string{"cdi.k8s.io/plugin_1"}},
		{"nobody describes it", cdiDevices("critest.io/gpu=one", "critest.io/gpu=nine"), codes.Unknown, []string{"no CDI device critest.io/gpu=nine", d.cdiDir()}},
		{"its node is not there", cdiDevices("critest.io/gpu=gone"), codes.Unknown, []string{"critest.io/gpu=gone", "/dev/no-such-gpu"}},
		{"network device", cdiDevices("critest.io/gpu=net"), codes.Unknown, []string{"linux.netDevices"}},
		{"resource director", cdiDevices("critest.io/gpu=rdt"), codes.Unknown, []string{"linux.intelRdt"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			check(t, d)
			_, err := p.tryCreate(t, containerConfig(idle, row.ask))
			refused(t, err, row.code, row.texts...)
		})
	}
	t.Run("a file that appears and goes", func(t *testing.T) {
		ask := cdiDevices("critest.io/late=x")
		t.Run("there", func(t *testing.T) {
			describe(t, d, "late.json", `{"cdiVersion":"0.6.0","kind":"critest.io/late","devices":[{"name":"x","containerEdits":{"env":["LATE=yes"]}}]}`)
			p.prints(t, "yes\n", "echo $LATE", ask)
		})
		_, err := p.tryCreate(t, containerConfig(idle, ask))
		refused(t, err, codes.Unknown, "no CDI device critest.io/late=x")
	})
}
