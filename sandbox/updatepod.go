package sandbox

import (
	"context"

	"google.golang.org/protobuf/proto"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podResources are the overhead and the resources of a pod after it was updated. They are immutable.
type podResources struct {
	overhead, resources *runtimev1.LinuxContainerResources // nil: none
}

// Resources are the overhead and the sum of the resources of the pod's containers, as the kubelet has last told. Nothing
// here goes by them: the pod's cgroup is the kubelet's. nil is none.
func (st *PodStatus) Resources() (overhead, resources *runtimev1.LinuxContainerResources) {
	if st.updated != nil {
		return st.updated.overhead, st.updated.resources
	}
	linux := st.Config().GetLinux()
	return linux.GetOverhead(), linux.GetResources()
}

// UpdatePod takes note of other resources of a pod; nil leaves them as they are. They are recorded before it returns.
func (s *Service) UpdatePod(ctx context.Context, id ID, overhead, resources *runtimev1.LinuxContainerResources) error {
	p, err := s.pod(id)
	if err != nil {
		return err
	}
	if err := p.askUpdate(ctx, overhead, resources); err != nil {
		return err
	}
	if err := p.note(overhead, resources); err != nil {
		return err
	}
	p.informUpdated(ctx)
	return nil
}

// note records and publishes other resources.
func (p *pod) note(overhead, resources *runtimev1.LinuxContainerResources) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.updated
	next := &podResources{overhead, resources}
	was, had := p.status.Load().Resources()
	if overhead == nil {
		next.overhead = was
	}
	if resources == nil {
		next.resources = had
	}
	p.updated = next
	if err := p.write(); err != nil {
		p.updated = before
		return err
	}
	p.publish()
	return nil
}

// write puts r into a record.
func (r *podResources) write(to *podRecord) (err error) {
	if r == nil {
		return nil
	}
	to.Updated = true
	if to.Overhead, err = proto.Marshal(r.overhead); err != nil {
		return err
	}
	to.Resources, err = proto.Marshal(r.resources)
	return err
}

// readPodResources is what write has put into a record.
func readPodResources(from *podRecord) (*podResources, error) {
	if !from.Updated {
		return nil, nil
	}
	r := &podResources{}
	for _, field := range []struct {
		data []byte
		to   **runtimev1.LinuxContainerResources
	}{{from.Overhead, &r.overhead}, {from.Resources, &r.resources}} {
		if len(field.data) == 0 {
			continue
		}
		*field.to = &runtimev1.LinuxContainerResources{}
		if err := proto.Unmarshal(field.data, *field.to); err != nil {
			return nil, err
		}
	}
	return r, nil
}
