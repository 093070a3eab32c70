package nri

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd/nri/pkg/api"
)

// Update is a change of one container's resources that a plugin wants.
type Update struct {
	Container     string
	Resources     *specs.LinuxResources // nil fields stay as they are
	BlockIOClass  *string
	RDTClass      *string
	IgnoreFailure bool

	asked *api.ContainerUpdate
}

// Check says what of u cannot be changed.
func (u Update) Check() error {
	switch {
	case u.RDTClass != nil:
		return fmt.Errorf("linux.resources.rdt_class: %q: this runtime does not set Intel RDT", *u.RDTClass)
	case u.Resources != nil && len(u.Resources.Devices) > 0:
		return errors.New("linux.resources.devices: rules of devices are those that the container was made with")
	}
	return nil
}

func fromUpdates(updates []*api.ContainerUpdate) []Update {
	all := make([]Update, 0, len(updates))
	for _, u := range updates {
		r := u.GetLinux().GetResources()
		all = append(all, Update{Container: u.ContainerId, Resources: r.ToOCI(), BlockIOClass: r.GetBlockioClass().Get(),
			RDTClass: r.GetRdtClass().Get(), IgnoreFailure: u.IgnoreFailure, asked: u})
	}
	return all
}

// The following are called under a Hold that says that there are plugins. An error is a plugin's refusal, or what kept it
// from answering if it insists on being asked.

// RunPod is told before a pod is listed.
func (p *Plugins) RunPod(ctx context.Context, pod *Pod) error {
	return p.adaptation.RunPodSandbox(ctx, &api.RunPodSandboxRequest{Pod: pod.api()})
}

// UpdatePod is told before the resources of a pod are noted.
func (p *Plugins) UpdatePod(ctx context.Context, pod *Pod, overhead, resources *specs.LinuxResources) error {
	_, err := p.adaptation.UpdatePodSandbox(ctx, &api.UpdatePodSandboxRequest{Pod: pod.api(),
		OverheadLinuxResources: api.FromOCILinuxResources(overhead, nil), LinuxResources: api.FromOCILinuxResources(resources, nil)})
	return err
}

// PostUpdatePod is told after that.
func (p *Plugins) PostUpdatePod(ctx context.Context, pod *Pod) error {
	return p.adaptation.PostUpdatePodSandbox(ctx, &api.PostUpdatePodSandboxRequest{Pod: pod.api()})
}

// StopPod is told when all of the pod's processes have ended, and its network is still there.
func (p *Plugins) StopPod(ctx context.Context, pod *Pod) error {
	return p.adaptation.StopPodSandbox(ctx, &api.StopPodSandboxRequest{Pod: pod.api()})
}

// RemovePod is told last of a pod.
func (p *Plugins) RemovePod(ctx context.Context, pod *Pod) error {
	return p.adaptation.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{Pod: pod.api()})
}

// Create is told before a container is made, whose spec is complete. It returns what is to be changed of it, and others.
func (p *Plugins) Create(ctx context.Context, pod *Pod, c *Container) (*Adjustment, []Update, error) {
	request := &api.CreateContainerRequest{Pod: pod.api(), Container: c.api()}
	env := request.Container.Env
	response, err := p.adaptation.CreateContainer(ctx, request)
	if err != nil {
		return nil, nil, err
	}
	adjust := response.GetAdjust()
	adjust.Env = append(removals(env, request.Container.Env), adjust.GetEnv()...)
	return &Adjustment{adjust}, fromUpdates(response.GetUpdate()), nil
}

// removals marks the variables that plugins removed, which the library only takes out of what the next plugin sees.
func removals(before, after []string) (marks []*api.KeyValue) {
	for _, e := range before {
		if name := variable(e); !slices.ContainsFunc(after, func(a string) bool { return variable(a) == name }) {
			marks = append(marks, &api.KeyValue{Key: api.MarkForRemoval(name)})
		}
	}
	return marks
}

func variable(e string) string {
	name, _, _ := strings.Cut(e, "=")
	return name
}

// PostCreate is told when a container is made.
func (p *Plugins) PostCreate(ctx context.Context, pod *Pod, c *Container) error {
	return p.adaptation.PostCreateContainer(ctx, &api.PostCreateContainerRequest{Pod: pod.api(), Container: c.api()})
}

// Start is told before a container is started.
func (p *Plugins) Start(ctx context.Context, pod *Pod, c *Container) error {
	return p.adaptation.StartContainer(ctx, &api.StartContainerRequest{Pod: pod.api(), Container: c.api()})
}

// PostStart is told when it runs.
func (p *Plugins) PostStart(ctx context.Context, pod *Pod, c *Container) error {
	return p.adaptation.PostStartContainer(ctx, &api.PostStartContainerRequest{Pod: pod.api(), Container: c.api()})
}

// Update is told before the resources of a container are changed. It returns what to change instead, nil if that is what
// was asked for, and changes of others.
func (p *Plugins) Update(ctx context.Context, pod *Pod, c *Container, asked *specs.LinuxResources) (*Update, []Update, error) {
	response, err := p.adaptation.UpdateContainer(ctx, &api.UpdateContainerRequest{Pod: pod.api(), Container: c.api(),
		LinuxResources: api.FromOCILinuxResources(asked, nil)})
	if err != nil {
		return nil, nil, err
	}
	all := response.GetUpdate() // the last one is of this container, or nil
	others, own := all[:len(all)-1], all[len(all)-1]
	if own == nil {
		return nil, fromUpdates(others), nil
	}
	return &fromUpdates([]*api.ContainerUpdate{own})[0], fromUpdates(others), nil
}

// PostUpdate is told after that.
func (p *Plugins) PostUpdate(ctx context.Context, pod *Pod, c *Container) error {
	return p.adaptation.PostUpdateContainer(ctx, &api.PostUpdateContainerRequest{Pod: pod.api(), Container: c.api()})
}

// Stop is told when a container has ended, whoever ended it, and returns changes of others.
func (p *Plugins) Stop(ctx context.Context, pod *Pod, c *Container) ([]Update, error) {
	response, err := p.adaptation.StopContainer(ctx, &api.StopContainerRequest{Pod: pod.api(), Container: c.api()})
	return fromUpdates(response.GetUpdate()), err
}

// Remove is told before a container is removed, last of it.
func (p *Plugins) Remove(ctx context.Context, pod *Pod, c *Container) error {
	return p.adaptation.RemoveContainer(ctx, &api.RemoveContainerRequest{Pod: pod.api(), Container: c.api()})
}
