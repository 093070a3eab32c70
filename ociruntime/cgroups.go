package ociruntime

import (
	"path"
	"strings"

	"github.com/criserver/criserver/ociruntime/cgroup"
)

// Cgroup is the container's leaf.
func (c *Container) Cgroup() *cgroup.Group { return c.group }

// Cgroup is the leaf of pause. It is nil while the pod is being made.
func (p *Pod) Cgroup() *cgroup.Group { return p.group }

// Around is the cgroup in which the whole pod is and nothing else, so that its counters are the pod's. That is the parent that
// the kubelet makes for each pod and names by its uid, or with systemd at least the pod's scope; nil if there is neither.
func (p *Pod) Around() *cgroup.Group {
	dir := p.parent
	if p.scope != nil {
		dir = path.Dir(dir)
	}
	switch {
	case namedAfter(dir, p.config.UID):
	case p.scope != nil:
		dir = p.parent
	default:
		return nil
	}
	group, err := p.runtime.config.Cgroups.Open(path.Split(dir))
	if err != nil {
		return nil // the root, which nobody has to himself
	}
	return group
}

// namedAfter says whether a cgroup has the name that the kubelet gives to that of a pod: "pod<uid>", or a slice that ends so, in
// which "-" is written as "_".
func namedAfter(dir, uid string) bool {
	name := strings.TrimSuffix(path.Base(dir), ".slice")
	return uid != "" && (strings.HasSuffix(name, "pod"+uid) || strings.HasSuffix(name, "pod"+strings.ReplaceAll(uid, "-", "_")))
}
