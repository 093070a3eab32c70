package sandbox

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// table is all that List shows, sorted by id. It is never changed, only replaced, under Service.mu.
type table struct {
	pods       []*pod
	containers []*container
}

// object is a pod or a container.
type object interface{ name() string }

func (p *pod) name() string       { return string(p.id) }
func (c *container) name() string { return string(c.id) }

// position finds where id is or belongs.
func position[T object](all []T, id string) (int, bool) {
	return slices.BinarySearchFunc(all, id, func(o T, id string) int { return cmp.Compare(o.name(), id) })
}

// lookup finds the object of an id or of a prefix that no other id has.
func lookup[T object](all []T, kind, id string) (T, error) {
	var none T
	if id == "" {
		return none, fmt.Errorf("%w: %s id is empty", ErrInvalid, kind)
	}
	i, exact := position(all, id)
	switch {
	case exact:
		return all[i], nil
	case i == len(all) || !strings.HasPrefix(all[i].name(), id):
		return none, fmt.Errorf("%s %s: %w", kind, id, ErrNotFound)
	case i+1 < len(all) && strings.HasPrefix(all[i+1].name(), id):
		return none, fmt.Errorf("%w: %s id %s fits more than one", ErrInvalid, kind, id)
	}
	return all[i], nil
}

func with[T object](all []T, o T) []T {
	i, exact := position(all, o.name())
	if exact {
		return all
	}
	next := make([]T, 0, len(all)+1)
	return append(append(append(next, all[:i]...), o), all[i:]...)
}

func without[T object](all []T, o T) []T {
	i, exact := position(all, o.name())
	if !exact {
		return all
	}
	next := make([]T, 0, len(all)-1)
	return append(append(next, all[:i]...), all[i+1:]...)
}

// change replaces the table by what edit makes of a copy.
func (s *Service) change(edit func(*table)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := *s.table.Load()
	edit(&next)
	s.table.Store(&next)
}

func (s *Service) pod(id ID) (*pod, error) { return lookup(s.table.Load().pods, "pod", string(id)) }

func (s *Service) container(id ContainerID) (*container, error) {
	return lookup(s.table.Load().containers, "container", string(id))
}

// PodStatus finds a pod. The error is ErrNotFound, or ErrInvalid if id fits several.
func (s *Service) PodStatus(id ID) (*PodStatus, error) {
	p, err := s.pod(id)
	if err != nil {
		return nil, err
	}
	return p.status.Load(), nil
}

// ListPods returns all pods by id.
func (s *Service) ListPods() []*PodStatus {
	pods := s.table.Load().pods
	all := make([]*PodStatus, len(pods))
	for i, p := range pods {
		all[i] = p.status.Load()
	}
	return all
}

// ContainerStatus finds a container. The error is ErrNotFound, or ErrInvalid if id fits several.
func (s *Service) ContainerStatus(id ContainerID) (*ContainerStatus, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, err
	}
	return c.status.Load(), nil
}

// ListContainers returns all containers by id.
func (s *Service) ListContainers() []*ContainerStatus {
	containers := s.table.Load().containers
	all := make([]*ContainerStatus, len(containers))
	for i, c := range containers {
		all[i] = c.status.Load()
	}
	return all
}
