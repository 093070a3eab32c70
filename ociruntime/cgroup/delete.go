package cgroup

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// deleteBound is how long Delete waits for a group that is still busy, if ctx allows.
const deleteBound = 10 * time.Second

// Delete removes g's directories in every hierarchy, and the groups that the container made below them. The processes
// must be dead or dying: a busy directory is tried again until they are gone, for at most ten seconds or until ctx ends.
// What is not there is no error.
//
// created is what was announced when g, or another leaf of the same pod, was made: those of these directories that are now
// empty are removed too, quietly. Only directories above g are ever touched.
func (g *Group) Delete(ctx context.Context, created ...string) error {
	ctx, cancel := context.WithTimeout(ctx, deleteBound)
	defer cancel()
	var errs []error
	for _, h := range g.own() {
		if err := g.removeTree(ctx, h, g.dir(h)); err != nil {
			errs = append(errs, fmt.Errorf("remove cgroup %s: %w", h.abs(g.dir(h)), err))
		}
	}
	if g.exec == "" {
		g.removeParents(created)
	}
	return errors.Join(errs...)
}

// removeTree removes dir and everything below.
func (g *Group) removeTree(ctx context.Context, h *hierarchy, dir string) error {
	pause := pollFirst
	for {
		err := ignoreGone(unix.Unlinkat(h.root, dir, unix.AT_REMOVEDIR))
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		if err := g.removeChildren(ctx, h, dir); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return err
		}
		// With a cgroup2 the end of the last process is an event; the v1 directories follow it within microseconds.
		if empty, _ := g.Empty(); !empty {
			if err := g.WaitEmpty(ctx); err != nil {
				return errors.Join(unix.EBUSY, err)
			}
			continue
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
			pause = min(2*pause, pollLast)
		}
	}
}

// removeChildren removes the groups below dir.
func (g *Group) removeChildren(ctx context.Context, h *hierarchy, dir string) error {
	names, err := h.children(dir)
	if err != nil {
		return ignoreGone(err)
	}
	for _, name := range names {
		if err := g.removeTree(ctx, h, path.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// removeParents removes those of the absolute directories, innermost first, that are above g and hold nothing. While another leaf
// stands beside g where processes are watched, all stay: it may be that of a guest, which is about to enter them.
func (g *Group) removeParents(created []string) {
	if len(created) == 0 {
		return
	}
	g.hs.parents.Lock()
	defer g.hs.parents.Unlock()
	if leaves, err := g.hs.watch.children(above(g.path)); err == nil && len(leaves) > 0 {
		return
	}
	for _, dir := range slices.Backward(created) {
		for _, h := range g.hs.all {
			rel, inside := strings.CutPrefix(dir, strings.TrimSuffix(h.MountPoint, "/")+"/")
			if inside && strings.HasPrefix(g.path, rel+"/") {
				_ = unix.Unlinkat(h.root, rel, unix.AT_REMOVEDIR) // busy: another leaf, or the kubelet's
			}
		}
	}
}
