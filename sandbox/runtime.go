package sandbox

import (
	"context"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/ociruntime/cgroup"
)

// Runtime starts and finds pods; Embedded makes one of the embedded runtime. What the methods promise is said in
// package ociruntime, of which these interfaces are what sandbox uses. Tests have another, without a kernel.
type Runtime interface {
	StartPod(context.Context, ociruntime.PodConfig) (RuntimePod, error)
	AdoptPod(context.Context, ociruntime.PodConfig) (RuntimePod, error)
	CleanPod(ctx context.Context, c ociruntime.PodConfig, containerIDs []string) error
	// FindParent finds the cgroup parent of a pod of which only ids are known.
	FindParent(id string, containerIDs []string) (string, error)
	// CleanContainer removes the cgroup of a container that the pod does not know.
	CleanContainer(ctx context.Context, c ociruntime.PodConfig, id string) error
}

// RuntimePod is one pod of a Runtime.
type RuntimePod interface {
	Pid() int
	NetNS() (*os.File, error)
	Exited() <-chan struct{}
	Starved() error
	Thaw() error
	Stop(context.Context) error
	Create(ctx context.Context, c ociruntime.ContainerConfig, pidTarget RuntimeContainer) (RuntimeContainer, error)
	Containers() []RuntimeContainer
	Keep(ctx context.Context, name string, files ...*os.File) error
	Drop(ctx context.Context, name string) error
	Kept(name string) []*os.File
	KeptNames() []string
	Cgroup() *cgroup.Group
	Around() *cgroup.Group
}

// RuntimeContainer is one container of a RuntimePod.
type RuntimeContainer interface {
	ID() string
	Pid() int
	Spec() (*specs.Spec, error)
	Start(context.Context) error
	Signal(unix.Signal) error
	Kill(context.Context) error
	Exited() <-chan struct{}
	Exit() (ociruntime.Exit, bool)
	Exec(context.Context, ociruntime.ExecConfig) (RuntimeExec, error)
	Terminal() (master, slave *os.File, err error)
	Attach(context.Context, ociruntime.AttachConfig) (*ociruntime.Attachment, error)
	EndStdin(context.Context) error
	Resize(ctx context.Context, rows, cols uint16) error
	ReopenLog(ctx context.Context, path string) error
	Update(ociruntime.Limits) (undo func() error, err error)
	Delete(context.Context) error
	Cgroup() *cgroup.Group
}

// RuntimeExec is one command in a container.
type RuntimeExec interface {
	Done() <-chan struct{}
	Code() int32
	Kill(context.Context) error
	Close()
}

// Embedded makes a Runtime of rt.
func Embedded(rt *ociruntime.Runtime) Runtime { return embedded{rt} }

type embedded struct{ *ociruntime.Runtime }

func (r embedded) StartPod(ctx context.Context, c ociruntime.PodConfig) (RuntimePod, error) {
	p, err := r.Runtime.StartPod(ctx, c)
	if err != nil {
		return nil, err
	}
	return embeddedPod{p}, nil
}

func (r embedded) AdoptPod(ctx context.Context, c ociruntime.PodConfig) (RuntimePod, error) {
	p, err := r.Runtime.AdoptPod(ctx, c)
	if err != nil {
		return nil, err
	}
	return embeddedPod{p}, nil
}

type embeddedPod struct{ *ociruntime.Pod }

func (p embeddedPod) Create(ctx context.Context, c ociruntime.ContainerConfig, target RuntimeContainer) (RuntimeContainer, error) {
	if target, ok := target.(embeddedContainer); ok {
		c.TargetPID = target.Container
	}
	made, err := p.Pod.Create(ctx, c)
	if err != nil {
		return nil, err
	}
	return embeddedContainer{made}, nil
}

func (p embeddedPod) Containers() []RuntimeContainer {
	var all []RuntimeContainer
	for _, c := range p.Pod.Containers() {
		all = append(all, embeddedContainer{c})
	}
	return all
}

type embeddedContainer struct{ *ociruntime.Container }

func (c embeddedContainer) Exec(ctx context.Context, cfg ociruntime.ExecConfig) (RuntimeExec, error) {
	e, err := c.Container.Exec(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return e, nil
}
