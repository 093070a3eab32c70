package sandbox

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/ociruntime/selinux"
	"github.com/criserver/criserver/ociruntime/specgen"
)

// takeLevel gives the pod the level that its containers share: the one that it asks for, or one of its own.
func (p *pod) takeLevel(context.Context) (err error) {
	config := p.spec.Config()
	asked := config.GetLinux().GetSecurityContext().GetSelinuxOptions().GetLevel()
	if _, err := p.s.labels(config, nil, asked); err != nil {
		return err
	}
	switch {
	case p.s.config.SELinux == nil:
		return nil
	case asked != "":
		p.s.levels.Hold(asked)
		p.level = asked
		return nil
	}
	p.level, err = p.s.levels.Take()
	return err
}

// releaseLevel gives the level back; it can be repeated.
func (p *pod) releaseLevel(context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.level != "" {
		p.s.levels.Release(p.level)
		p.level = ""
	}
	return nil
}

// labels are those of a container, or with a nil container of what the pod's containers share.
func (s *Service) labels(pod *runtimev1.PodSandboxConfig, container *runtimev1.ContainerConfig, level string) (specgen.Labels, error) {
	made, err := specgen.SELinuxLabels(s.config.SELinux, pod, container, level)
	var field *specgen.InvalidError
	if errors.As(err, &field) {
		return made, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return made, err
}

// mountLabel is that of what the pod's containers share.
func (p *pod) mountLabel(config *runtimev1.PodSandboxConfig) string {
	made, err := p.s.labels(config, nil, p.level)
	if err != nil {
		p.s.log.Warn("the policy does not have a pod's label any more", "pod", p.id, "error", err)
	}
	return made.Mount
}

// labelFiles labels the pod's files that its containers see.
func (p *pod) labelFiles(ctx context.Context) error {
	label := p.mountLabel(p.spec.Config())
	if label == "" {
		return nil
	}
	for _, name := range []string{HostnameFile, HostsFile, ResolvFile} {
		if err := selinux.Relabel(ctx, filepath.Join(p.dir(), name), label); err != nil {
			return err
		}
	}
	return nil
}

// relabel gives the mounts that ask for it, and the volumes of the image, the container's label. There may be millions of
// files: the request may end before, and a retry finds this under way.
func (b *building) relabel(ctx context.Context) error {
	if b.labels.Mount == "" {
		return nil
	}
	for _, m := range b.volumes {
		if err := selinux.Relabel(ctx, m.HostPath, b.labels.Mount); err != nil {
			return err
		}
	}
	if !selinux.Separated(b.labels.Process) { // may use them as they are
		return nil
	}
	for _, m := range b.config.Mounts {
		if !m.SelinuxRelabel || m.HostPath == "" {
			continue
		}
		if err := relabelVolume(ctx, m.HostPath, b.labels.Mount); err != nil {
			return fmt.Errorf("host_path %s of the mount on %s: %w", m.HostPath, m.ContainerPath, err)
		}
	}
	return nil
}

// relabelVolume returns when ctx ends even if the file system does not answer.
func relabelVolume(ctx context.Context, path, label string) error {
	done := make(chan error, 1)
	go func() { done <- selinux.Relabel(ctx, path, label) }()
	select {
	case err := <-done:
		if errors.Is(err, selinux.ErrSystemPath) {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
