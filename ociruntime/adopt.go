package ociruntime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/cgroup"
	"github.com/criserver/criserver/pause"
)

// AdoptPod takes over the pause of a pod that an earlier criserver started. Its error wraps ErrPodGone if there is none.
func (r *Runtime) AdoptPod(ctx context.Context, c PodConfig) (*Pod, error) {
	p := r.newPod(c)
	p.early = map[uint64]pause.Exit{}
	if err := p.openGroup(); err != nil {
		return nil, err
	}
	if err := p.Thaw(); err != nil { // nobody would answer
		return nil, err
	}
	d, err := os.Open(c.Dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	p.conn, err = pause.Dial(ctx, socketPath(d))
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT) {
		if kills, _ := p.group.OwnOOMKills(); kills > 0 { // with systemd the leaf is not there any more, which says nothing
			return nil, starvedIn(p.group)
		}
		return nil, fmt.Errorf("%w: %w", ErrPodGone, err)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to pause: %w", err)
	}
	go p.follow()
	if err := p.adopt(ctx); err != nil {
		p.forsaken.Store(true)
		p.release()
		return nil, err
	}
	return p, nil
}

// openGroup finds the cgroups that beginGroup, completeGroup and enterScope made in an earlier life.
func (p *Pod) openGroup() (err error) {
	p.parent = p.config.CgroupParent
	if p.scope = p.findScope(); p.scope != nil {
		p.parent = p.scope.Path()
	}
	own := p.parent
	if p.runtime.config.PauseParent != "" {
		own = p.runtime.config.PauseParent
	}
	if p.group, err = p.runtime.config.Cgroups.Open(own, p.config.ID); err != nil {
		return fmt.Errorf("open the sandbox's cgroup: %w", err)
	}
	if namedAfter(own, p.config.UID) && !p.group.Leaf() {
		p.group = p.group.Guest()
	}
	p.parents, err = readParents(p.config.Dir)
	return err
}

// findScope finds the pod's scope, if it has one: the cgroup driver may have been another one in an earlier life. A pod
// without any cgroup has the one that it would get.
func (p *Pod) findScope() *cgroup.Scope {
	parent, config := p.config.CgroupParent, p.runtime.config
	scope, err := cgroup.OpenScope(p.config.ID, parent)
	switch {
	case err != nil: // the parent is a path
		return nil
	case config.Cgroups.Exists(scope.Path()):
		return scope
	case config.Cgroups.Exists(path.Join("/", parent, p.config.ID)):
		return nil
	case config.Systemd != nil, parent != "" && !path.IsAbs(parent):
		return scope
	}
	return nil
}

func readParents(dir string) ([]string, error) {
	data, err := os.ReadFile(filepath.Join(dir, parentsName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return strings.FieldsFunc(string(data), func(c rune) bool { return c == '\n' }), err
}

// adopt asks pause for everything it holds. Exits that it reports after the listing, and before anybody watches for
// them, are in early.
func (p *Pod) adopt(ctx context.Context) error {
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.early = nil
	}()
	listing, err := p.settled(ctx)
	if err != nil {
		return fmt.Errorf("list what pause holds: %w", err)
	}
	p.adoptShm(listing.Kept)
	p.reaper = takeOne(listing.Kept, keptReaper)
	p.kept = listing.Kept
	if err := p.adoptContainers(ctx, listing.Tasks); err != nil {
		return err
	}
	return p.dropRoots(ctx)
}

// dropRoots ends the keeping of roots that are attached: an earlier criserver was killed before it could.
func (p *Pod) dropRoots(ctx context.Context) error {
	for name, files := range p.kept {
		if !strings.HasPrefix(name, keptRoot) {
			continue
		}
		closeFiles(files)
		delete(p.kept, name)
		if err := p.conn.Drop(ctx, name); err != nil {
			return fmt.Errorf("make pause drop %s: %w", name, err)
		}
	}
	return nil
}

// settled lists what pause holds when no start is half done: whether such a one succeeds is told to nobody.
func (p *Pod) settled(ctx context.Context) (pause.Listing, error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		listing, err := p.conn.List(ctx)
		starting := func(t pause.Task) bool { return t.State == pause.Starting }
		if err != nil || !slices.ContainsFunc(listing.Tasks, starting) {
			return listing, err
		}
		listing.Close()
		select {
		case <-ctx.Done():
			return pause.Listing{}, fmt.Errorf("wait for a container that was being started: %w", ctx.Err())
		case <-time.After(wait):
		}
	}
}

// takeRoots returns what keepRoot kept; without all of it nothing can be started.
func takeRoots(kept map[string][]*os.File, r record) (root *os.File, trees []Tree) {
	files := kept[keptRoot+r.ID]
	delete(kept, keptRoot+r.ID)
	if len(files) != 1+len(r.Trees) {
		closeFiles(files)
		return nil, nil
	}
	for i, source := range r.Trees {
		trees = append(trees, Tree{source, files[1+i]})
	}
	return files[0], trees
}

func takeOne(kept map[string][]*os.File, name string) *os.File {
	files := kept[name]
	delete(kept, name)
	if len(files) == 0 {
		return nil
	}
	closeFiles(files[1:])
	return files[0]
}

// FindParent finds PodConfig.CgroupParent of a pod of which only ids are known; "" if it has no cgroup.
func (r *Runtime) FindParent(id string, containerIDs []string) (string, error) {
	parent, err := r.config.Cgroups.FindParent(id, containerIDs, r.config.PauseParent)
	if err != nil {
		return "", fmt.Errorf("find the cgroup of pod %s: %w", id, err)
	}
	return parent, nil
}

// CleanPod kills and removes what is left of a pod whose pause is gone: its leaf and those of its containers. It waits for what
// Stop does in the background.
func (r *Runtime) CleanPod(ctx context.Context, c PodConfig, containerIDs []string) error {
	if err := r.endings.wait(ctx, c.ID); err != nil {
		return err
	}
	p := r.newPod(c)
	if err := p.openGroup(); err != nil {
		return err
	}
	var errs []error
	for _, id := range containerIDs {
		group, err := r.config.Cgroups.Open(p.parent, id)
		if err == nil {
			err = errors.Join(group.Kill(ctx), group.Delete(ctx, p.parents...))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("clean cgroup of %s: %w", id, err))
		}
		errs = append(errs, p.cleanBundle(ctx, id))
	}
	return errors.Join(append(errs, p.killRest(ctx), p.removeGroup(ctx))...)
}

// CleanContainer kills and removes the leaf of a container that the pod does not know.
func (r *Runtime) CleanContainer(ctx context.Context, c PodConfig, id string) error {
	p := r.newPod(c)
	if err := p.openGroup(); err != nil {
		return err
	}
	group, err := r.config.Cgroups.Open(p.parent, id)
	if err == nil {
		err = errors.Join(group.Kill(ctx), group.Delete(ctx))
	}
	if err != nil {
		return fmt.Errorf("clean cgroup of %s: %w", id, err)
	}
	return p.cleanBundle(ctx, id)
}

// adoptContainers rebuilds the containers from their records and from what pause says of them.
func (p *Pod) adoptContainers(ctx context.Context, tasks []pause.Task) error {
	byName := make(map[string]pause.Task, len(tasks))
	for _, t := range tasks {
		byName[t.Name] = t
	}
	names, err := os.ReadDir(p.config.Dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range names {
		var id string
		if _, err := fmt.Sscanf(n.Name(), "oci-%64s", &id); err != nil || n.Name() != "oci-"+id+".json" {
			continue
		}
		t, known := byName[id]
		delete(byName, id)
		if err := p.adoptContainer(ctx, id, t, known); err != nil {
			errs = append(errs, fmt.Errorf("adopt container %s: %w", id, err))
		}
	}
	for _, t := range byName {
		closeFiles([]*os.File{t.PidFD})
	}
	return errors.Join(errs...)
}

func (p *Pod) adoptContainer(ctx context.Context, id string, t pause.Task, known bool) error {
	c := &Container{pod: p, exited: make(chan struct{})}
	err := readRecord(p.recordPath(id), &c.record)
	c.hooks = hooksOf(id, c.record.Spec)
	if err == nil {
		c.group, err = p.runtime.config.Cgroups.Open(p.parent, id)
	}
	if err == nil && known && t.State == pause.Added { // criserver was killed within a start: that begins anew
		err, known = p.conn.Remove(ctx, t.Task), false
	}
	if err == nil && known && c.hooks != nil { // an earlier criserver was killed when it had started it
		err = p.detachBundle(id)
	}
	if err != nil {
		closeFiles([]*os.File{t.PidFD})
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.record.Slot >= 0 && c.record.Slot < len(p.slots) {
		p.slots[c.record.Slot] = true
	}
	p.containers[id] = c
	switch {
	case !known:
		c.spec = c.record.Spec
		c.root, c.trees = takeRoots(p.kept, c.record)
	case t.State == pause.Exited:
		c.record.Spec, c.task = nil, t.Task
		c.ended(t.Exit)
	default:
		c.record.Spec, c.task, c.pid, c.pidfd = nil, t.Task, t.PID, t.PidFD
		if exit, ended := p.early[t.Task]; ended {
			c.ended(exit)
		} else {
			p.tasks[t.Task] = c.ended
		}
	}
	return nil
}
