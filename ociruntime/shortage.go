package ociruntime

import (
	"cmp"
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
	case p.group == nil: // systemd could not put pause into group
		limit = oomKilled(group)
	default:
		if limit = cmp.Or(oomKilled(p.group), p.oomKilledInScope()); limit != "" {
			limit = "pause was killed, " + limit
		}
	}
	if limit == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, limit)
}

// oomKilledInScope does so for a pause that died where systemd had put it, before it had entered its leaf: v1 counts a kill only there.
func (p *Pod) oomKilledInScope() string {
	if p.scope == nil {
		return ""
	}
	scope, err := p.runtime.config.Cgroups.Open(path.Split(p.scope.Path()))
	if err != nil {
		return ""
	}
	return oomKilled(scope)
}

// oomKilled names the memory limit if the kernel has killed in group for want of memory. A group that is not there cannot
// tell: systemd removes those of a scope in which the last process has died, or could make no scope. Then a group above must
// have met its limit.
func oomKilled(group *cgroup.Group) string {
	kills, err := group.OOMKills()
	if kills > 0 || errors.Is(err, fs.ErrNotExist) && group.StarvedAbove() {
		return group.StarvedBy()
	}
	return ""
}
