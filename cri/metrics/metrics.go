package metrics

import (
	"sync"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/sandbox"
	"github.com/criserver/criserver/sandbox/stats"
)

// base are the labels that every metric has.
var base = []string{"container", "id", "image", "name", "namespace", "pod"}

// Descriptors describe all metrics.
func Descriptors() []*runtimev1.MetricDescriptor {
	var all []*runtimev1.MetricDescriptor
	for _, d := range descriptions() {
		all = append(all, &runtimev1.MetricDescriptor{Name: d.name, Help: d.help, LabelKeys: append(base[:len(base):len(base)], d.labels...)})
	}
	return all
}

// descriptions are those of both tables.
func descriptions() []description {
	var all []description
	for i := range containerRows {
		all = append(all, containerRows[i].description)
	}
	for i := range networkRows {
		all = append(all, networkRows[i].description)
	}
	return all
}

// description is what a metric is.
type description struct {
	name   string
	kind   runtimev1.MetricType
	labels []string // besides base
	help   string
}

// A Translator makes the metrics of pods that are measured at about the same time. Several goroutines may use it.
type Translator struct {
	layers stats.FileSystem
	names  sync.Map // of block devices: [2]uint32 to string
}

// NewTranslator makes a Translator for containers whose writable layers are on a file system.
func NewTranslator(layers stats.FileSystem) *Translator {
	return &Translator{layers: layers}
}

// Pod translates what was measured of a pod. A container that has ended has no metrics. Metrics are in the messages as they are
// on the wire, and seen by those who receive them.
func (t *Translator) Pod(p sandbox.PodStats) *runtimev1.PodSandboxMetrics {
	m := &runtimev1.PodSandboxMetrics{PodSandboxId: string(p.ID)}
	if p.Network != nil {
		w := newWriter([]string{"", p.Cgroup, "", string(p.ID), p.Metadata.GetNamespace(), p.Metadata.GetName()}, len(networkRows)*len(p.Network.Interfaces))
		for i := range networkRows {
			w.head = networkHeads[i]
			for j := range p.Network.Interfaces {
				w.add(networkRows[i].value(&p.Network.Interfaces[j]), p.Network.Interfaces[j].Name)
			}
		}
		m.ProtoReflect().SetUnknown(w.text)
	}
	for i := range p.Containers {
		if c := &p.Containers[i]; c.Usage != nil {
			m.ContainerMetrics = append(m.ContainerMetrics, t.container(p.PodStatus, c))
		}
	}
	return m
}

func (t *Translator) container(p *sandbox.PodStatus, c *sandbox.ContainerStats) *runtimev1.ContainerMetrics {
	labels := []string{c.Metadata.GetName(), c.Cgroup, imageName(c.Image), string(c.ID), p.Metadata.GetNamespace(), p.Metadata.GetName()}
	m := &runtimev1.ContainerMetrics{ContainerId: string(c.ID)}
	m.ProtoReflect().SetUnknown(t.values(c, labels))
	return m
}

// values are all metrics of a container, with these values of base, as they are on the wire.
func (t *Translator) values(c *sandbox.ContainerStats, labels []string) []byte {
	s := source{ContainerStats: c, t: t, now: time.Now()}
	w := newWriter(labels, len(containerRows)+severalValues)
	emit := w.add
	for i := range containerRows {
		w.head, w.at = containerHeads[i], 0
		if c.Layer != nil && containerRows[i].name == layerUsage {
			w.at = c.Layer.At.UnixNano()
		}
		containerRows[i].values(&s, emit)
	}
	return w.text
}

// severalValues is for how many values more than one of a row there is room.
const severalValues = 8

// imageName is the image as its user named it.
func imageName(s *runtimev1.ImageSpec) string {
	if name := s.GetUserSpecifiedImage(); name != "" {
		return name
	}
	return s.GetImage()
}

// source is where the rows of a container find their values.
type source struct {
	*sandbox.ContainerStats
	t   *Translator
	now time.Time
}

// devices gives each block device that the container has used with its name, or that of its root where it has used none.
func (s *source) devices(each func(name string, d *stats.DeviceIO)) {
	io := s.Usage.Counters.IO
	for i := range io {
		each(s.t.device(io[i].Major, io[i].Minor), &io[i])
	}
	if len(io) == 0 {
		each(s.t.layers.Device, &stats.DeviceIO{Major: s.t.layers.Major, Minor: s.t.layers.Minor})
	}
}

// device is the name of a block device, which is looked up once.
func (t *Translator) device(major, minor uint32) string {
	key := [2]uint32{major, minor}
	if name, known := t.names.Load(key); known {
		return name.(string)
	}
	name := stats.DeviceName(major, minor)
	t.names.Store(key, name)
	return name
}
