package ociruntime

import (
	"errors"
	"fmt"
	"io/fs"
	"path"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/cgroup"
	"github.com/criserver/criserver/pause"
)

// short adds to the error of a start in group which limit was in the way, if one was.
func (p *Pod) short(group *cgroup.Group, err error) error {
	var e *pause.Error
	limit := ""
	switch {
	case err == nil || group == nil:
		return err
	case errors.Is(err, unix.EAGAIN):
		limit = group.CrowdedBy()
	case errors.Is(err, unix.ENOMEM), group == p.group && errors.Is(err, unix.E2BIG): // of pause: no memory for its one argument
		limit = group.StarvedBy()
	case errors.As(err, &e) && e.Stage == pause.StageKilled && e.Status.Signal() == unix.SIGKILL:
		limit = oomKilled(group)
	case p.group == nil && oomKilled(group) != "": // systemd could not put pause into group
		limit = oomKilled(group)
	default:
		if starved := p.starvation(); starved != nil {
			return fmt.Errorf("%w: %w", err, starved)
		}
	}
	if limit == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, limit)
}

// oomKilled names the memory limit if the kernel has killed in group for want of memory.
func oomKilled(group *cgroup.Group) string {
	if killedIn(group, group.OOMKills) {
		return group.StarvedBy()
	}
	return ""
}

// killedIn asks what counts the kills in group. A group that is not there cannot tell: systemd removes those of a scope in which the
// last process has died, or could make no scope. Then a group above must have met its limit.
func killedIn(group *cgroup.Group, count func() (uint64, error)) bool {
	kills, err := count()
	return kills > 0 || errors.Is(err, fs.ErrNotExist) && group.StarvedAbove()
}

// starvation is an ErrPodStarved if that is how pause ends, which is so as soon as its connection has ended: the kernel counts a kill
// before it sends the signal.
func (p *Pod) starvation() error {
	if err := p.Starved(); err != nil {
		return err
	}
	for _, group := range p.places() {
		if killedIn(group, group.OwnOOMKills) {
			return starvedIn(group)
		}
	}
	return nil
}

func starvedIn(group *cgroup.Group) error {
	if limit := group.StarvedBy(); limit != "" {
		return fmt.Errorf("%w: %s", ErrPodStarved, limit)
	}
	return ErrPodStarved // it was the node's memory
}

// places are the groups in which pause may be killed: its leaf, and the scope that systemd put it into before it entered that.
func (p *Pod) places() []*cgroup.Group {
	p.mu.Lock()
	group, scope := p.group, p.scope
	p.mu.Unlock()
	var all []*cgroup.Group
	if group != nil {
		all = append(all, group)
	} else if p.runtime.config.Systemd != nil { // it is being put into the scope
		scope, _ = cgroup.OpenScope(p.config.ID, p.config.CgroupParent) // nil: it cannot be
	}
	if scope != nil {
		if around, err := p.runtime.config.Cgroups.Open(path.Split(scope.Path())); err == nil {
			all = append(all, around)
		}
	}
	return all
}
