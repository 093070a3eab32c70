package sandbox

import (
	"context"
	"fmt"
	"runtime"
	"testing"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestMemoryOfAnIdlePod holds what this package keeps of a pod with one container, as large as the kubelet makes them.
// The node's part is in it, so the true figure is smaller.
func TestMemoryOfAnIdlePod(t *testing.T) {
	const pods, bytesEach, goroutinesEach = 200, 24 << 10, 1
	m := newMachine(t)
	defer m.s.Close(context.Background())
	<-m.s.Recovered()
	heap, goroutines := inUse(), runtime.NumGoroutine()
	for i := range pods {
		config := large(fmt.Sprintf("pod-%d", i))
		pod, err := m.s.RunPod(t.Context(), config, "")
		must(t, err)
		id, err := m.s.CreateContainer(t.Context(), pod, largeContainer(), config)
		must(t, err)
		must(t, m.s.StartContainer(t.Context(), id))
	}
	perPod := (inUse() - heap) / pods
	more := runtime.NumGoroutine() - goroutines
	t.Logf("%d bytes and %.2f goroutines a pod", perPod, float64(more)/pods)
	if perPod > bytesEach {
		t.Errorf("%d bytes of heap and stack a pod, want at most %d", perPod, bytesEach)
	}
	if more > pods*goroutinesEach+10 {
		t.Errorf("%d goroutines for %d pods", more, pods)
	}
	for _, p := range m.s.ListPods() {
		must(t, m.s.RemovePod(t.Context(), p.ID))
	}
	m.clean()
}

// inUse is heap and stacks in bytes.
func inUse() int {
	runtime.GC()
	runtime.GC()
	var st runtime.MemStats
	runtime.ReadMemStats(&st)
	return int(st.HeapAlloc + st.StackInuse)
}

// large is a pod as the kubelet asks for it.
func large(name string) *runtimev1.PodSandboxConfig {
	c := podConfig()
	c.Metadata.Name = name
	c.LogDirectory = ""
	c.Labels = map[string]string{"app": "web", "io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": newID()[:36]}
	c.Annotations = map[string]string{"kubernetes.io/config.seen": "2026-08-01T00:00:00Z", "kubernetes.io/config.source": "api"}
	return c
}

func largeContainer() *runtimev1.ContainerConfig {
	c := containerConfig()
	for i := range 30 {
		c.Envs = append(c.Envs, &runtimev1.KeyValue{Key: fmt.Sprintf("KUBERNETES_SERVICE_PORT_%d", i), Value: []byte("tcp://10.96.0.1:443")})
	}
	for i := range 5 {
		c.Mounts = append(c.Mounts, &runtimev1.Mount{ContainerPath: fmt.Sprintf("/mnt/%d", i), HostPath: fmt.Sprintf("/var/lib/kubelet/pods/%s/volumes/%d", newID()[:36], i)})
	}
	c.Annotations = map[string]string{"io.kubernetes.container.hash": "abc", "io.kubernetes.container.restartCount": "0",
		"io.kubernetes.container.terminationMessagePath": "/dev/termination-log", "io.kubernetes.pod.terminationGracePeriod": "30"}
	return c
}

func BenchmarkListContainers(b *testing.B) {
	s := &Service{}
	t := &table{}
	for range 1000 {
		c := &container{id: ContainerID(newID())}
		c.status.Store(&ContainerStatus{ID: c.id})
		t.containers = with(t.containers, c)
	}
	s.table.Store(t)
	b.ReportAllocs()
	for b.Loop() {
		if len(s.ListContainers()) != 1000 {
			b.Fatal("some are missing")
		}
	}
}
