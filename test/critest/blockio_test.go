package critest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// disk is a block device of this machine, and its number.
func disk(t *testing.T) (path, number string) {
	t.Helper()
	all, err := filepath.Glob("/dev/[vs]d[a-z]")
	if err != nil || len(all) == 0 {
		t.Skipf("there is no disk: %v", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(all[0], &st); err != nil {
		t.Fatal(err)
	}
	return all[0], fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
}

// rates are what the cgroup says of a device: bytes read and written, operations read and written a second; "-" is no limit.
func (c *container) rates(t *testing.T, number string) string {
	t.Helper()
	if unifiedHost() {
		text := c.cgroupFile(t, "io.max", "io.max")
		_, of, found := strings.Cut(text, number+" ")
		if !found {
			return "- - - -"
		}
		of, _, _ = strings.Cut(of, "\n")
		return strings.NewReplacer("rbps=", "", "wbps=", "", "riops=", "", "wiops=", "", "max", "-").Replace(of)
	}
	var all []string
	for _, name := range []string{"read_bps", "write_bps", "read_iops", "write_iops"} {
		text := c.cgroupFile(t, "blkio.throttle."+name+"_device", "")
		rate, found := strings.CutPrefix(text, number+" ")
		if !found {
			rate = "-"
		}
		all = append(all, rate)
	}
	return strings.Join(all, " ")
}

func blockIOClass(key, class string) func(*cri.PodSandboxConfig) {
	return func(c *cri.PodSandboxConfig) { c.Annotations = map[string]string{key: class} }
}

// classes has the daemon go on with a file of classes, until the test ends.
func (d *daemon) classes(t *testing.T, file string) {
	t.Helper()
	before, err := os.ReadFile(d.config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.rewrite(t, string(before)) })
	d.rewrite(t, fmt.Sprintf("blockio = %q\n%s", file, before))
}

const (
	podBlockIO       = "blockio.resources.beta.kubernetes.io/pod"
	containerBlockIO = "blockio.resources.beta.kubernetes.io/container."
	ownBlockIO       = "io.kubernetes.cri.blockio-class"
)

// Classes of block I/O come from annotations of pods and containers, or of an update, and from a file that is read whenever it is
// needed.
func TestBlockIO(t *testing.T) {
	d := use(t)
	device, number := disk(t)
	file := filepath.Join(t.TempDir(), "classes.yaml")
	refusedClass := func(p *pod, text string) {
		t.Helper()
		_, err := p.tryCreate(t, containerConfig(idle))
		refused(t, err, codes.InvalidArgument, text)
	}
	p := runPod(t, d, blockIOClass(podBlockIO, "slow"))
	refusedClass(p, `class of block I/O "slow" asked for, but none is configured`)

	d.classes(t, file)
	_, err := p.tryCreate(t, containerConfig(idle))
	refused(t, err, codes.Unknown, "read classes of block I/O: open "+file)
	write(t, file, strings.ReplaceAll(`
Classes:
  slow:
    - Devices: [DEVICE]
      ThrottleReadBps: 50M
      ThrottleWriteBps: 10Mi
      ThrottleReadIOPS: 10k
      ThrottleWriteIOPS: 500
  reader:
    - Devices: [DEVICE]
      ThrottleReadBps: 1M
    - Devices: [/dev/nothing*]
      ThrottleReadBps: 1M
  none: []
`, "DEVICE", device))
	slow := p.start(t, idle)
	if got := slow.rates(t, number); got != "50000000 10485760 10000 500" {
		t.Errorf("class slow: %s", got)
	}
	own := p.start(t, idle, func(c *cri.ContainerConfig) { c.Annotations = map[string]string{ownBlockIO: "none"} })
	if got := own.rates(t, number); got != "- - - -" {
		t.Errorf("class none: %s", got)
	}
	named := runPod(t, d, blockIOClass(containerBlockIO+"reader", "reader"))
	reader := named.start(t, idle, func(c *cri.ContainerConfig) { c.Metadata.Name = "reader" })
	if got := reader.rates(t, number); got != "1000000 - - -" {
		t.Errorf("class reader: %s", got)
	}
	if got := named.start(t, idle).rates(t, number); got != "- - - -" {
		t.Errorf("another container of the pod: %s", got)
	}
	refusedClass(runPod(t, d, blockIOClass(podBlockIO, "fast")), `no class of block I/O "fast": there are none, reader, slow`)

	status := slow.status(t)
	update := func(class string) error {
		_, err := d.runtime.UpdateContainerResources(bounded(t), &cri.UpdateContainerResourcesRequest{ContainerId: slow.id, Annotations: map[string]string{ownBlockIO: class}})
		return err
	}
	for _, step := range []struct{ class, want string }{{"reader", "1000000 - - -"}, {"none", "- - - -"}, {"slow", "50000000 10485760 10000 500"}} {
		if err := update(step.class); err != nil {
			t.Fatal(err)
		}
		if got := slow.rates(t, number); got != step.want {
			t.Errorf("another class, %s: %s", step.class, got)
		}
	}
	refused(t, update("fast"), codes.InvalidArgument, `no class of block I/O "fast"`)
	if now := slow.status(t); !proto.Equal(now, status) {
		t.Errorf("status\ngot  %v\nwant %v", now, status)
	}
	write(t, file, "Classes: {slow: [{Weight: 5}]}")
	_, err = p.tryCreate(t, containerConfig(idle))
	refused(t, err, codes.Unknown, "class slow, entry 0: weight 5 is not between 10 and 1000")
}

func TestBlockIOWeight(t *testing.T) {
	d := use(t)
	file := write(t, filepath.Join(t.TempDir(), "classes.yaml"), "Classes: {light: [{Weight: 50}], normal: []}")
	d.classes(t, file)
	p := runPod(t, d, blockIOClass(podBlockIO, "light"))
	c, err := p.tryCreate(t, containerConfig(idle))
	weights := []struct{ file, want, none string }{{"blkio.bfq.weight", "50", "100"}, {"blkio.weight", "50", "500"}, {"io.bfq.weight", "default 50", "default 100"}, {"io.weight", "default 405", "default 100"}}
	for _, w := range weights {
		points, failed := hierarchies()
		if failed != nil {
			t.Fatal(failed)
		}
		for _, point := range points {
			name := filepath.Join(p.cgroup(point, suite.cgroups), c.id, w.file)
			if _, missing := os.Stat(name); missing != nil {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := c.cgroupFile(t, w.file, w.file); got != w.want {
				t.Errorf("%s is %q, want %q", w.file, got, w.want)
			}
			_, err := d.runtime.UpdateContainerResources(bounded(t), &cri.UpdateContainerResourcesRequest{ContainerId: c.id, Annotations: map[string]string{ownBlockIO: "normal"}})
			if err != nil {
				t.Fatal(err)
			}
			if got := c.cgroupFile(t, w.file, w.file); got != w.none {
				t.Errorf("%s is %q, want %q", w.file, got, w.none)
			}
			return
		}
	}
	refused(t, err, codes.InvalidArgument, "block weight", "no such file") // no scheduler of weights
}
