package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/ociruntime/cgroup"
)

// network is what a pod's containers see.
type network string

const (
	onHost   network = "host"
	onBridge network = "bridge" // with an address, by plugins that the daemon runs
)

// pod is one pod with one container, as a kubelet would make it.
type pod struct {
	d         *daemon
	id        string
	config    *cri.PodSandboxConfig
	container string
	group     *cgroup.Group // what its cgroups are in, made and removed as by a kubelet, before and after what the daemon is asked
}

func (d *daemon) newPod(net network) (_ *pod, err error) {
	uid := randomID()[:32]
	logs := d.path("logs/" + uid)
	p := &pod{d: d, config: &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "bench-" + uid[:8], Namespace: "bench", Uid: uid},
		LogDirectory: logs,
		DnsConfig:    &cri.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"bench.svc.cluster.local"}, Options: []string{"ndots:5"}},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: d.parent + "/pod" + uid,
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER},
				Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
			},
			Resources: &cri.LinuxContainerResources{CpuShares: 2},
		},
	}}
	if net == onBridge {
		p.config.Hostname = p.config.GetMetadata().GetName()
		p.config.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_POD
	}
	if err := errors.Join(d.makeVolumes(), os.MkdirAll(logs, 0o755)); err != nil {
		return nil, err
	}
	p.group, err = d.cgroups.Create(d.parent, "pod"+uid, nil, nil)
	return p, err
}

// makeVolumes makes what all containers of d have mounted.
func (d *daemon) makeVolumes() error {
	files := filepath.Join(d.dir, "volumes")
	for _, v := range volumes {
		if _, err := os.Stat(filepath.Join(files, v.name)); err == nil {
			continue
		}
		if v.dir {
			if err := os.MkdirAll(filepath.Join(files, v.name), 0o755); err != nil {
				return err
			}
		} else if err := errors.Join(os.MkdirAll(files, 0o755), os.WriteFile(filepath.Join(files, v.name), []byte("x\n"), 0o644)); err != nil {
			return err
		}
	}
	return nil
}

func (p *pod) run(ctx context.Context) error {
	r, err := p.d.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config})
	p.id = r.GetPodSandboxId()
	return err
}

// containerConfig is what a kubelet asks for: five volumes, the default filter, masks, shares.
func (p *pod) containerConfig(command ...string) *cri.ContainerConfig {
	c := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "main"},
		Image:    &cri.ImageSpec{Image: p.d.image, UserSpecifiedImage: p.d.image},
		Command:  command,
		LogPath:  "main.log",
		Envs:     []*cri.KeyValue{{Key: "KUBERNETES_SERVICE_HOST", Value: []byte("10.96.0.1")}, {Key: "KUBERNETES_SERVICE_PORT", Value: []byte("443")}},
		Linux: &cri.LinuxContainerConfig{
			Resources: &cri.LinuxContainerResources{CpuShares: 2, OomScoreAdj: 1000},
			SecurityContext: &cri.LinuxContainerSecurityContext{
				NamespaceOptions: p.config.GetLinux().GetSecurityContext().GetNamespaceOptions(),
				Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
				MaskedPaths: []string{"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
					"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"},
				ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			},
		},
	}
	for _, v := range volumes {
		if v.name == "resolv.conf" || v.name == "hostname" { // the runtime's own
			continue
		}
		c.Mounts = append(c.Mounts, &cri.Mount{ContainerPath: v.destination, HostPath: filepath.Join(p.d.dir, "volumes", v.name), Readonly: v.ro})
	}
	return c
}

func (p *pod) create(ctx context.Context, config *cri.ContainerConfig) error {
	r, err := p.d.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	p.container = r.GetContainerId()
	return err
}

func (p *pod) start(ctx context.Context) error {
	_, err := p.d.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: p.container})
	return err
}

func (p *pod) exec(ctx context.Context, command ...string) error {
	r, err := p.d.runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: p.container, Cmd: command, Timeout: 10})
	if err == nil && r.GetExitCode() != 0 {
		err = fmt.Errorf("exec exited with %d: %s", r.GetExitCode(), r.GetStderr())
	}
	return err
}

func (p *pod) stopContainer(ctx context.Context) error {
	_, err := p.d.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: p.container})
	return err
}

func (p *pod) removeContainer(ctx context.Context) error {
	_, err := p.d.runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: p.container})
	return err
}

func (p *pod) stopSandbox(ctx context.Context) error {
	_, err := p.d.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id})
	return err
}

func (p *pod) removeSandbox(ctx context.Context) error {
	_, err := p.d.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id})
	return err
}

// up does the three calls that bring a pod with one container up.
func (p *pod) up(ctx context.Context, command ...string) error {
	if err := p.run(ctx); err != nil {
		return err
	}
	if err := p.create(ctx, p.containerConfig(command...)); err != nil {
		return err
	}
	return p.start(ctx)
}

// remove removes the pod with its container, and its cgroup.
func (p *pod) remove(ctx context.Context) error {
	if p.id != "" {
		if err := p.removeAll(ctx); err != nil {
			return err
		}
	}
	if p.group == nil { // a list has the pod
		return nil
	}
	return p.group.Delete(ctx)
}

func (p *pod) removeAll(ctx context.Context) error {
	if p.container != "" {
		if err := p.stopContainer(ctx); err != nil { // without, peers give it ten seconds
			return err
		}
	}
	if err := p.stopSandbox(ctx); err != nil {
		return err
	}
	return p.removeSandbox(ctx)
}

// parallel calls f with 0 to n-1, from a number of workers, until one fails.
func parallel(ctx context.Context, workers, n int, f func(context.Context, int) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	next := make(chan int)
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range next {
				if errs[w] == nil {
					errs[w] = f(ctx, i)
				}
				if errs[w] != nil {
					cancel()
				}
			}
		})
	}
	for i := range n {
		if ctx.Err() != nil {
			break
		}
		next <- i
	}
	close(next)
	wg.Wait()
	return errors.Join(append(errs, ctx.Err())...)
}
