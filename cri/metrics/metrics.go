package metrics

import (
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

// A Translator makes the metrics of pods that are measured at about the same time.
type Translator struct {
	layers stats.FileSystem
	names  map[[2]uint32]string // of block devices
}

// NewTranslator makes a Translator for containers whose writable layers are on a file system.
func NewTranslator(layers stats.FileSystem) *Translator {
	return &Translator{layers: layers, names: map[[2]uint32]string{}}
}

// Pod translates what was measured of a pod. A container that has ended has no metrics.
func (t *Translator) Pod(p sandbox.PodStats) *runtimev1.PodSandboxMetrics {
	m := &runtimev1.PodSandboxMetrics{PodSandboxId: string(p.ID)}
	if p.Network != nil {
		w := writer{base: []string{"", p.Cgroup, "", string(p.ID), p.Metadata.GetNamespace(), p.Metadata.GetName()}}
		for i := range networkRows {
			w.row = &networkRows[i].description
			for j := range p.Network.Interfaces {
				w.add(networkRows[i].value(&p.Network.Interfaces[j]), p.Network.Interfaces[j].Name)
			}
		}
		m.Metrics = w.metrics
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
	return &runtimev1.ContainerMetrics{ContainerId: string(c.ID), Metrics: t.values(c, labels)}
}

// values are all metrics of a container, with these values of base.
func (t *Translator) values(c *sandbox.ContainerStats, labels []string) []*runtimev1.Metric {
	s := source{ContainerStats: c, t: t, now: time.Now()}
	w := writer{base: labels, metrics: make([]*runtimev1.Metric, 0, len(containerRows)+16)}
	for i := range containerRows {
		w.row = &containerRows[i].description
		containerRows[i].values(&s, w.add)
	}
	if c.Layer != nil {
		w.stamp(c.Layer.At.UnixNano(), layerUsage)
	}
	return w.metrics
}

// imageName is the image as its user named it.
func imageName(s *runtimev1.ImageSpec) string {
	if name := s.GetUserSpecifiedImage(); name != "" {
		return name
	}
	return s.GetImage()
}

// writer collects metrics of one container, or of one pod.
type writer struct {
	base    []string // shared by all that have no labels of their own
	row     *description
	metrics []*runtimev1.Metric
}

// add adds a value of row.
func (w *writer) add(value uint64, labels ...string) {
	values := w.base
	if len(labels) > 0 {
		values = append(values[:len(values):len(values)], labels...)
	}
	m := &struct {
		metric runtimev1.Metric
		value  runtimev1.UInt64Value
	}{} // one piece of memory, of thousands
	m.metric.Name, m.metric.MetricType, m.metric.LabelValues, m.metric.Value = w.row.name, w.row.kind, values, &m.value
	m.value.Value = value
	w.metrics = append(w.metrics, &m.metric)
}

// stamp says that the metrics of this name are of another time than now.
func (w *writer) stamp(at int64, name string) {
	for _, m := range w.metrics {
		if m.Name == name {
			m.Timestamp = at
		}
	}
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
		key := [2]uint32{io[i].Major, io[i].Minor}
		name, known := s.t.names[key]
		if !known {
			name = stats.DeviceName(key[0], key[1])
			s.t.names[key] = name
		}
		each(name, &io[i])
	}
	if len(io) == 0 {
		each(s.t.layers.Device, &stats.DeviceIO{Major: s.t.layers.Major, Minor: s.t.layers.Minor})
	}
}
