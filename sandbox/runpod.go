package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/cni"
	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/ociruntime/specgen"
	"github.com/criserver/criserver/stage"
)

// podSteps make a pod and, undone in reverse, end it: first pause, then the network, then its directory. The debt to
// the network stands on disk before anything that could lead to one.
var podSteps = watched(stage.Steps[*pod]{
	{Name: "level", Bound: 10 * time.Second, Do: (*pod).takeLevel, Undo: (*pod).releaseLevel},
	{Name: "directory", Bound: 30 * time.Second, Do: (*pod).makeDir, Undo: (*pod).removeDir},
	{Name: "plan network", Bound: time.Minute, Do: (*pod).owe, Undo: (*pod).detach},
	{Name: "namespaces", Bound: time.Minute, Do: (*pod).startPause, Undo: (*pod).stopPause},
	{Name: "network", Bound: 5 * time.Minute, Do: (*pod).attach},
	{Name: "plugins", Bound: time.Minute, Do: (*pod).askRun},
	{Name: "record", Bound: 30 * time.Second, Do: (*pod).recordReady},
})

// The parts of podSteps that StopPod undoes, one after the other; the directory stays until RemovePod.
var (
	processSteps = podSteps[3:]
	networkSteps = podSteps[2:3]
)

// RunPod makes a pod and returns its id when it is ready. See stage.Group for what a retry gets.
func (s *Service) RunPod(ctx context.Context, config *runtimev1.PodSandboxConfig, handler string) (ID, error) {
	if err := checkPodConfig(config); err != nil {
		return "", err
	}
	gives, err := s.handler(handler)
	if err != nil {
		return "", err
	}
	if _, err := specgen.ShmSize(config, gives); err != nil {
		return "", fmt.Errorf("%w: pod config: %w", ErrInvalid, err)
	}
	print, err := fingerprint(handler, config)
	if err != nil {
		return "", err
	}
	work := s.podWork()
	work.Start = func(ctx context.Context) (ID, error) {
		asked := config
		config = nil // the group keeps this function as long as the pod lives
		return s.runPod(ctx, asked, &pod{s: s, handler: handler, gives: gives, fingerprint: print})
	}
	return s.runs.Join(ctx, podKey(config.Metadata), print, work)
}

// podWork is the operation that made a pod, as it is known after it ended.
func (s *Service) podWork() stage.Work[ID] {
	return stage.Work[ID]{Undo: s.RemovePod, Valid: func(id ID) bool {
		st, err := s.PodStatus(id)
		return err == nil && st.State == PodReady
	}}
}

// runPod makes p, of which that is decided what its request says beside its config.
func (s *Service) runPod(ctx context.Context, config *runtimev1.PodSandboxConfig, p *pod) (_ ID, err error) {
	if p.spec, err = newPodSpec(config); err != nil {
		return "", err
	}
	p.id, p.createdAt, p.bootID, p.phase = ID(newID()), time.Now(), s.config.BootID, podCreating
	s.expect(p)
	defer s.expected(p)
	if err := podSteps.Do(ctx, p); err != nil {
		s.abandon(ctx, p)
		return "", err
	}
	p.followed()
	return p.id, nil
}

// abandon lists a pod that could neither be made nor undone as one that is not ready, and removes it in the background.
func (s *Service) abandon(ctx context.Context, p *pod) {
	if !p.takeSoil() {
		p.informStopped(ctx)
		p.informRemoved(ctx)
		return
	}
	if err := p.advance(podStopping); err != nil {
		s.log.Error("cannot keep a pod that could not be undone", "pod", p.id, "error", err)
		return
	}
	p.mu.Lock()
	p.list()
	p.tell(string(p.id), EventCreated)
	p.mu.Unlock()
	p.removeLater()
}

func (p *pod) soil() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dirty = true
}

// takeSoil says whether an undo has failed since it was last asked.
func (p *pod) takeSoil() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	dirty := p.dirty
	p.dirty = false
	return dirty
}

func (p *pod) makeDir(ctx context.Context) error {
	if err := os.Mkdir(p.dir(), 0o711); err != nil {
		return err
	}
	if err := p.write(); err != nil {
		return err
	}
	if err := p.writeFiles(p.spec.Config()); err != nil {
		return err
	}
	return p.labelFiles(ctx)
}

// removeDir removes the pod's directory, the record last, so that what a crash leaves of it is found again.
func (p *pod) removeDir(context.Context) error {
	p.mu.Lock()
	dirty := p.dirty
	p.mu.Unlock()
	if dirty {
		return nil // the record is needed for another try
	}
	entries, err := os.ReadDir(p.dir())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.Name() != podRecordName {
			err = errors.Join(err, os.RemoveAll(filepath.Join(p.dir(), e.Name())))
		}
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(p.dir())
}

// hostNetwork says whether a pod shares the host's network.
func hostNetwork(c *runtimev1.PodSandboxConfig) bool {
	return namespaceOptions(c).GetNetwork() == runtimev1.NamespaceMode_NODE
}

func namespaceOptions(c *runtimev1.PodSandboxConfig) *runtimev1.NamespaceOption {
	return c.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

// netNSPath is where the pod's network namespace is pinned.
func (p *pod) netNSPath() string { return filepath.Join(p.s.config.NetNSDir, "cri-"+string(p.id)) }

// owe records what will be owed to the network.
func (p *pod) owe(ctx context.Context) error {
	config := p.spec.Config()
	if hostNetwork(config) {
		return nil
	}
	select { // a collection that runs would take a new pod's address for a leftover
	case <-p.s.swept:
	case <-ctx.Done():
		return fmt.Errorf("wait for the network's garbage collection: %w", ctx.Err())
	}
	debt, err := p.s.config.Network.Plan(p.attachment(config))
	if err != nil {
		return err
	}
	return p.s.ledger.Write(string(p.id), debt)
}

func (p *pod) attachment(config *runtimev1.PodSandboxConfig) cni.Attachment {
	a := cni.Attachment{ContainerID: string(p.id), NetNS: p.netNSPath(), PodNamespace: config.Metadata.Namespace,
		PodName: config.Metadata.Name, PodUID: config.Metadata.Uid, Annotations: config.Annotations,
		CgroupPath: config.GetLinux().GetCgroupParent(),
		DNS: cni.DNS{Servers: config.GetDnsConfig().GetServers(), Searches: config.GetDnsConfig().GetSearches(),
			Options: config.GetDnsConfig().GetOptions()}}
	for _, m := range config.PortMappings {
		a.PortMappings = append(a.PortMappings, cni.PortMapping{HostPort: m.HostPort, ContainerPort: m.ContainerPort,
			Protocol: m.Protocol.String(), HostIP: m.HostIp})
	}
	return a
}

// detach pays what is owed to the network, or leaves that to the ledger: a network that cannot be reached does not
// keep a pod from ending. The namespace is unpinned whatever came of it.
func (p *pod) detach(ctx context.Context) error {
	if err := p.s.ledger.Settle(ctx, string(p.id)); err != nil {
		p.s.log.Warn("a network attachment could not be given back, trying again", "pod", p.id, "error", err)
		p.s.spawn(func(ctx context.Context) { p.s.ledger.Retry(ctx, string(p.id)) })
	}
	return p.s.netns.unpin(p.netNSPath())
}

// runtimeConfig is the pod in the runtime's terms.
func (p *pod) runtimeConfig(config *runtimev1.PodSandboxConfig) ociruntime.PodConfig {
	ns := namespaceOptions(config)
	sysctls, err := specgen.PodSysctls(config, p.gives)
	if err != nil {
		panic(fmt.Sprintf("sysctls of pod %s: %v", p.id, err)) // checkPodConfig accepted them
	}
	shm, err := specgen.ShmSize(config, p.gives)
	if err != nil {
		panic(fmt.Sprintf("/dev/shm of pod %s: %v", p.id, err)) // RunPod accepted it
	}
	return ociruntime.PodConfig{ID: string(p.id), UID: config.GetMetadata().GetUid(), Dir: p.dir(), Hostname: p.hostname(config), HostNetwork: hostNetwork(config),
		HostIPC: ns.GetIpc() == runtimev1.NamespaceMode_NODE, SharedPID: ns.GetPid() == runtimev1.NamespaceMode_POD,
		CgroupParent: config.GetLinux().GetCgroupParent(), UserNS: p.spec.userNS, Sysctls: sysctls, ShmSize: shm, MountLabel: p.mountLabel(config)}
}

func (p *pod) startPause(ctx context.Context) error {
	rt, err := p.s.config.Runtime.StartPod(ctx, p.runtimeConfig(p.spec.Config()))
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rt = rt
	return nil
}

// stopPause ends the pod's processes, also when nobody knows whether there are any. What Stop leaves to the background is waited for
// if the pod's record goes next: after a crash nobody would find it.
func (p *pod) stopPause(ctx context.Context) error {
	if rt := p.runtime(); rt != nil {
		if err := rt.Stop(ctx); err != nil {
			return err
		}
		for _, c := range p.containers(func(containerPhase) bool { return true }) {
			p.s.keeper.release(c.id)
		}
		p.mu.Lock()
		p.rt = nil
		recorded := p.phase != podCreating
		p.mu.Unlock()
		if recorded {
			return nil
		}
	}
	var ids []string
	for _, c := range p.containers(func(containerPhase) bool { return true }) {
		ids = append(ids, string(c.id))
	}
	return p.s.config.Runtime.CleanPod(ctx, p.runtimeConfig(p.spec.Config()), ids)
}

// attach pins the network namespace and attaches it.
func (p *pod) attach(ctx context.Context) error {
	if hostNetwork(p.spec.Config()) {
		return nil
	}
	ns, err := p.runtime().NetNS()
	if err != nil {
		return fmt.Errorf("open the network namespace: %w", err)
	}
	defer func() { _ = ns.Close() }() // read-only
	if err := p.s.netns.pin(ns, p.netNSPath()); err != nil {
		return err
	}
	debt, err := p.s.ledger.Read(string(p.id))
	if err != nil {
		return err
	}
	result, err := p.s.config.Network.Add(ctx, debt)
	if err != nil {
		var add *cni.AddError
		if errors.As(err, &add) && add.Undo == nil {
			err = errors.Join(err, p.s.ledger.Strike(string(p.id)))
		}
		return err
	}
	debt.Result = result.Raw
	if err := p.s.ledger.Write(string(p.id), debt); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ips = result.IPs
	return nil
}

func (p *pod) recordReady(context.Context) error { return p.advance(podReady) }
