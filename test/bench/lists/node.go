package lists

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// node is what was made on the server.
type node struct {
	runtime cri.RuntimeServiceClient
	options Options

	mu         sync.Mutex
	pods       []string
	containers []string
}

// makers is how many pods are made or removed at the same time.
const makers = 4

// fill makes all pods and containers.
func (n *node) fill(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(makers)
	for i := range n.options.Pods {
		share := n.options.Containers / n.options.Pods
		if i < n.options.Containers%n.options.Pods {
			share++
		}
		g.Go(func() error { return n.makePod(ctx, i, share) })
	}
	return g.Wait()
}

func (n *node) makePod(ctx context.Context, i, containers int) error {
	config := n.podConfig(i)
	r, err := n.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		return fmt.Errorf("make pod %d: %w", i, err)
	}
	n.mu.Lock()
	n.pods = append(n.pods, r.GetPodSandboxId())
	n.mu.Unlock()
	for j := range containers {
		c, err := n.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: r.GetPodSandboxId(), Config: n.containerConfig(config, j), SandboxConfig: config})
		if err != nil {
			return fmt.Errorf("make container %d of pod %d: %w", j, i, err)
		}
		n.mu.Lock()
		n.containers = append(n.containers, c.GetContainerId())
		n.mu.Unlock()
		if !n.options.Stats {
			continue
		}
		if _, err := n.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: c.GetContainerId()}); err != nil {
			return fmt.Errorf("start container %d of pod %d: %w", j, i, err)
		}
	}
	return nil
}

// remove removes the pods, and with them the containers. Without a kill CRI-O gives each ten seconds to end, though none was started.
func (n *node) remove(ctx context.Context) error {
	var kill, g errgroup.Group
	kill.SetLimit(makers)
	for _, id := range n.containers {
		kill.Go(func() error {
			_, err := n.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id})
			return err
		})
	}
	_ = kill.Wait() // what cannot be killed is stopped with its pod
	g.SetLimit(makers)
	for _, id := range n.pods {
		g.Go(func() error {
			_, stopped := n.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
			_, removed := n.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
			return errors.Join(stopped, removed)
		})
	}
	return g.Wait()
}

func (n *node) podConfig(i int) *cri.PodSandboxConfig {
	name := fmt.Sprintf("bench-%d-%d", os.Getpid(), i)
	return &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "bench", Uid: uid(name)},
		Labels: map[string]string{"app": "bench", "pod-template-hash": "5d8f9c7b6d", "io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "bench",
			"io.kubernetes.pod.uid": uid(name)},
		Annotations: map[string]string{"kubernetes.io/config.seen": "2026-08-01T00:00:00.000000000Z", "kubernetes.io/config.source": "api"},
		DnsConfig:   &cri.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"bench.svc.cluster.local", "svc.cluster.local", "cluster.local"}, Options: []string{"ndots:5"}},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: n.options.Parent + "/pod" + uid(name),
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER},
				Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
			},
		},
	}
}

// uid has the length of Kubernetes'.
func uid(name string) string {
	return fmt.Sprintf("%-36.36s", strings.ReplaceAll(name, "-", "")+strings.Repeat("0", 36))
}

// containerConfig is as large as the kubelet makes it: services in the environment, a few volumes, labels and annotations.
func (n *node) containerConfig(pod *cri.PodSandboxConfig, j int) *cri.ContainerConfig {
	name := fmt.Sprintf("container-%d", j)
	c := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name},
		Image:    &cri.ImageSpec{Image: n.options.Image, UserSpecifiedImage: n.options.Image},
		Command:  []string{"sleep", "1000000"},
		Labels: map[string]string{"io.kubernetes.container.name": name, "io.kubernetes.pod.name": pod.Metadata.Name,
			"io.kubernetes.pod.namespace": "bench", "io.kubernetes.pod.uid": pod.Metadata.Uid},
		Annotations: map[string]string{"io.kubernetes.container.hash": "a1b2c3d4", "io.kubernetes.container.restartCount": "0",
			"io.kubernetes.container.terminationMessagePath": "/dev/termination-log", "io.kubernetes.container.terminationMessagePolicy": "File",
			"io.kubernetes.pod.terminationGracePeriod": "30"},
		Linux: &cri.LinuxContainerConfig{
			Resources:       &cri.LinuxContainerResources{CpuShares: 2, OomScoreAdj: 1000},
			SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: pod.Linux.SecurityContext.NamespaceOptions, Seccomp: pod.Linux.SecurityContext.Seccomp},
		},
	}
	for i := range 30 {
		c.Envs = append(c.Envs, &cri.KeyValue{Key: fmt.Sprintf("KUBERNETES_SERVICE_PORT_%d", i), Value: []byte("tcp://10.96.0.1:443")})
	}
	for i := range 4 {
		c.Mounts = append(c.Mounts, &cri.Mount{ContainerPath: fmt.Sprintf("/mnt/%d", i), HostPath: "/tmp", Readonly: true})
	}
	return c
}
