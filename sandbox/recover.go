package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/criserver/criserver/cni"
	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/stage"
	"github.com/criserver/criserver/store/record"
)

const (
	parallelAdoptions = 16
	adoptBound        = 3 * time.Second // for one try
	adoptTries        = 3               // then the pod is given up, its processes are killed
	gcBound           = 30 * time.Second
)

// recover reads what an earlier criserver recorded and adopts it.
func (s *Service) recover(ctx context.Context) error {
	pods, strays, err := s.readPods()
	if err != nil {
		return err
	}
	s.change(func(t *table) {
		for _, p := range pods {
			if p.phase == podCreating {
				continue
			}
			t.pods = append(t.pods, p)
			for _, c := range p.members {
				if c.phase != containerCreating {
					t.containers = append(t.containers, c)
					p.relist(func(all []*container) []*container { return append(all, c) })
				}
			}
		}
		slices.SortFunc(t.pods, compare[*pod])
		slices.SortFunc(t.containers, compare[*container])
	})
	inParallel(pods, func(p *pod) { s.adopt(ctx, p) })
	if ctx.Err() != nil {
		return fmt.Errorf("adopt pods: %w", context.Cause(ctx))
	}
	s.spawn(func(ctx context.Context) {
		s.sweepNetwork(ctx, pods)
		inParallel(strays, func(id ID) { s.removeStray(ctx, id) })
		s.sweepContainers(ctx)
		close(s.recovered)
	})
	return nil
}

// inParallel calls fn for all, a bounded number at a time.
func inParallel[T any](all []T, fn func(T)) {
	turns := make(chan struct{}, parallelAdoptions)
	var wg sync.WaitGroup
	for _, one := range all {
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			fn(one)
		})
	}
	wg.Wait()
}

// readPods reads all records of pods. Directories without a record that can be read are strays.
func (s *Service) readPods() (pods []*pod, strays []ID, err error) {
	entries, err := os.ReadDir(s.podsDir())
	if err != nil {
		return nil, nil, fmt.Errorf("read the pods: %w", err)
	}
	for _, e := range entries {
		id := ID(e.Name())
		if !isID(e.Name()) {
			continue
		}
		p, err := s.readPod(id)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				s.quarantine(filepath.Join(s.podsDir(), e.Name(), podRecordName), err)
			}
			strays = append(strays, id)
			continue
		}
		p.readContainers()
		p.expireBoot()
		pods = append(pods, p)
	}
	return pods, strays, nil
}

// readContainers reads the records of a pod's containers, the oldest first. One that cannot be read becomes a container that is to be
// removed: enough of it is known for that.
func (p *pod) readContainers() {
	if err := record.Sweep(p.dir()); err != nil {
		p.s.log.Warn("cannot sweep", "pod", p.id, "error", err)
	}
	ids, err := p.containerIDs()
	if err != nil {
		p.s.log.Error("cannot read the containers of a pod", "pod", p.id, "error", err)
	}
	for _, id := range ids {
		c, err := p.readContainer(id)
		if err != nil {
			p.s.quarantine((&container{p: p, id: id}).recordPath(), err)
			c = p.unknownContainer(id)
		}
		p.members = append(p.members, c)
	}
	slices.SortStableFunc(p.members, func(a, b *container) int { return a.status.Load().CreatedAt.Compare(b.status.Load().CreatedAt) })
}

// unknownContainer stands for a container of which nothing but its id is known.
func (p *pod) unknownContainer(id ContainerID) *container {
	c := &container{p: p, id: id, exited: make(chan struct{}), turns: newTurns(), phase: containerCreating}
	c.status.Store(&ContainerStatus{ID: id, Pod: p.id, containerSpec: &containerSpec{}})
	return c
}

// expireBoot ends what was recorded in another boot: its processes are gone by definition.
func (p *pod) expireBoot() {
	if p.bootID == p.s.config.BootID {
		return
	}
	if p.phase == podReady {
		_ = p.advance(podStopping) // the transition is allowed
	}
	for _, c := range p.members {
		if c.phase == containerRunning || c.phase == containerStarting || c.phase == containerCreated {
			_ = c.end(codeUnknown, ReasonUnknown, "the node was restarted", time.Now()) // the transition is allowed
		}
	}
}

func compare[T object](a, b T) int {
	switch {
	case a.name() < b.name():
		return -1
	case a.name() > b.name():
		return 1
	}
	return 0
}

// adopt finds a pod's processes again or ends what is left of it, and goes on with what was begun. Then what is listed
// of the pod is true. If ctx ends before, nothing is known of the pod, and nothing happens to it.
func (s *Service) adopt(ctx context.Context, p *pod) {
	rt, err := s.adoptPause(ctx, p)
	switch {
	case err == nil:
		s.found(p, rt)
	case ctx.Err() != nil:
		return
	default:
		s.lose(ctx, p, err)
	}
	for _, c := range p.containers(unfinished) {
		c.removeLater()
	}
	switch p.look() {
	case podReady:
		s.runs.Adopt(podKey(p.spec.Metadata), p.fingerprint, p.id, s.podWork())
	case podCreating:
		s.undoCreation(p)
	default:
		p.endLater()
	}
}

// found takes over a pod whose pause lives.
func (s *Service) found(p *pod, rt RuntimePod) {
	p.mu.Lock()
	p.rt = rt
	p.publish()
	p.mu.Unlock()
	s.adoptContainers(p, rt)
	s.adoptLayers(p, rt)
	p.followed()
}

// adoptPause connects to the pause that a pod should have.
func (s *Service) adoptPause(ctx context.Context, p *pod) (RuntimePod, error) {
	if p.bootID != s.config.BootID || p.phase == podStopped {
		return nil, ociruntime.ErrPodGone
	}
	return s.reach(ctx, p.runtimeConfig(p.spec.Config()))
}

// reach connects to a pause. Trouble is tried again a few times, a pause that is gone is not.
func (s *Service) reach(ctx context.Context, c ociruntime.PodConfig) (rt RuntimePod, err error) {
	tries := 0
	stage.Persist(ctx, 100*time.Millisecond, time.Second, func(ctx context.Context) bool {
		try, cancel := context.WithTimeout(ctx, adoptBound)
		defer cancel()
		rt, err = s.config.Runtime.AdoptPod(try, c)
		tries++
		return err == nil || errors.Is(err, ociruntime.ErrPodGone) || tries == adoptTries
	})
	return rt, err
}

// lose ends the processes of a pod whose pause is gone or cannot be reached.
func (s *Service) lose(ctx context.Context, p *pod, cause error) {
	if p.look() == podReady {
		s.log.Error("a pod was lost", "pod", p.id, "error", cause)
		_ = p.advance(podStopping) // the transition is allowed
	}
	if errors.Is(cause, ociruntime.ErrPodStarved) {
		p.mu.Lock()
		p.starved = cause
		p.mu.Unlock()
	}
	if len(p.containers(live)) == 0 {
		return
	}
	kill, cancel := context.WithTimeout(ctx, killTry)
	defer cancel()
	if err := p.stopPause(kill); err != nil {
		s.log.Warn("what a lost pod left does not die, killing it again", "pod", p.id, "error", err)
		return
	}
	p.loseContainers()
}

// unfinished is the phase of a container that was being made or removed.
func unfinished(phase containerPhase) bool {
	return phase == containerCreating || phase == containerRemoving
}

// undoCreation removes a pod that was half made, and never lists it.
func (s *Service) undoCreation(p *pod) {
	if err := p.advance(podStopping); err != nil {
		s.log.Error("cannot undo a pod that was half made", "pod", p.id, "error", err)
		return
	}
	p.removeLater()
}

// adoptContainers finds the containers of a pod again whose pause lives.
func (s *Service) adoptContainers(p *pod, rt RuntimePod) {
	known := map[ContainerID]RuntimeContainer{}
	for _, c := range rt.Containers() {
		known[ContainerID(c.ID())] = c
	}
	for _, c := range p.containers(func(containerPhase) bool { return true }) {
		s.adoptContainer(c, known[c.id])
		delete(known, c.id)
	}
	for id, rt := range known { // its record was removed or could not be read
		c := p.unknownContainer(id)
		c.rt = rt
		p.addMember(c)
	}
}

// adoptContainer brings a container's phase in line with what the runtime says.
func (s *Service) adoptContainer(c *container, rt RuntimeContainer) {
	c.p.mu.Lock()
	c.rt = rt
	phase := c.phase
	c.p.mu.Unlock()
	switch {
	case unfinished(phase), phase == containerExited:
		return
	case rt == nil:
		_ = c.end(codeUnknown, ReasonUnknown, "the container was lost while criserver was away", time.Now()) // the transition is allowed
		return
	}
	if exit, ended := rt.Exit(); ended {
		if phase == containerCreated { // when it began is not known, only that it did
			_ = c.advance(containerRunning, func(st *ContainerStatus) { st.StartedAt = exit.At }) // allowed
		}
		s.ended(c, exit)
		return
	}
	c.endUpdate(rt)
	if phase == containerCreated && rt.Pid() == 0 {
		s.creates.Adopt(containerKey(c.p.id, c.status.Load().Metadata), c.fingerprint, c.id, s.containerWork())
		return
	}
	s.foundRunning(c, rt)
}

// foundRunning publishes that a container runs, whose start may not have been recorded any more.
func (s *Service) foundRunning(c *container, rt RuntimeContainer) {
	if phase, _ := c.look(); phase == containerCreated {
		_ = c.advance(containerRunning, func(st *ContainerStatus) { st.StartedAt, st.Pid = time.Now(), rt.Pid() }) // allowed
		return
	}
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	next := *c.status.Load()
	next.Pid = rt.Pid() // which is not in the record
	c.status.Store(&next)
}

// sweepNetwork pays the debts of pods that are no more, and has the plugins drop what nobody remembers.
func (s *Service) sweepNetwork(ctx context.Context, pods []*pod) {
	defer close(s.swept)
	ready := map[string]bool{}
	for _, p := range pods {
		ready[string(p.id)] = p.look() == podReady
	}
	ids, err := s.ledger.IDs()
	if err != nil {
		s.log.Error("cannot read what is owed to the network", "error", err)
		return
	}
	live := []cni.Attached{}
	for _, id := range ids {
		live = append(live, cni.Attached{ContainerID: id}) // what is owed is paid by its own DEL
		if !ready[id] {
			s.spawn(func(ctx context.Context) { s.ledger.Retry(ctx, id) })
		}
	}
	gc, cancel := context.WithTimeout(ctx, gcBound)
	defer cancel()
	if err := s.config.Network.GC(gc, live); err != nil {
		s.log.Warn("garbage collection of the network failed", "error", err)
	}
}

// removeStray removes a pod's directory without a record, and what may belong to it.
func (s *Service) removeStray(ctx context.Context, id ID) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	p := &pod{s: s, id: id, bootID: s.config.BootID}
	if err := p.cleanStray(ctx); err != nil {
		s.log.Error("cannot remove what is left of a pod without a record", "pod", id, "error", err)
		return
	}
	if err := os.RemoveAll(p.dir()); err != nil {
		s.log.Error("cannot remove the directory of a pod without a record", "pod", id, "error", err)
	}
}

// cleanStray removes everything of a pod without a record but its directory, which is where the next criserver begins if it fails.
func (p *pod) cleanStray(ctx context.Context) error {
	recorded, err := p.containerIDs()
	if err != nil {
		return err
	}
	var ids []string
	for _, id := range recorded {
		ids = append(ids, string(id))
	}
	if err := p.endStray(ctx, ids); err != nil {
		return err
	}
	errs := []error{p.s.netns.unpin(p.netNSPath())}
	for _, id := range ids {
		errs = append(errs, os.RemoveAll(filepath.Join(p.s.volumesDir(), id)), p.s.config.Images.ReleaseRootfs(ctx, id))
	}
	return errors.Join(errs...)
}

// endStray ends the processes of a pod of which only ids are known, and removes its cgroups.
func (p *pod) endStray(ctx context.Context, containerIDs []string) (err error) {
	runtime := p.s.config.Runtime
	c := ociruntime.PodConfig{ID: string(p.id), Dir: p.dir()}
	if c.CgroupParent, err = runtime.FindParent(c.ID, containerIDs); err != nil {
		return err
	}
	rt, err := p.s.reach(ctx, c)
	switch {
	case err == nil:
		for _, rc := range rt.Containers() {
			containerIDs = append(containerIDs, rc.ID())
		}
		if err := rt.Stop(ctx); err != nil {
			return err
		}
	case c.CgroupParent == "" && !errors.Is(err, ociruntime.ErrPodGone): // by what is it to be killed?
		return err
	}
	return runtime.CleanPod(ctx, c, containerIDs)
}

// sweepContainers removes roots and volumes of containers that nobody knows: those of another boot. What there is is
// listed before what is known, because a container is known before it has anything.
func (s *Service) sweepContainers(ctx context.Context) {
	var roots []string
	if s.config.Roots != nil {
		roots = s.config.Roots()
	}
	volumes, err := os.ReadDir(s.volumesDir())
	if err != nil {
		s.log.Warn("cannot read the volumes of containers", "error", err)
	}
	known := map[string]bool{}
	for _, p := range s.table.Load().pods {
		for _, c := range p.containers(func(containerPhase) bool { return true }) {
			known[string(c.id)] = true
		}
	}
	for _, id := range roots {
		if owner := rootOwner(id); known[owner] || !isID(owner) {
			continue
		}
		if err := s.config.Images.ReleaseRootfs(ctx, id); err != nil {
			s.log.Warn("cannot remove a container's root that nobody knows", "container", id, "error", err)
		}
	}
	for _, e := range volumes {
		if known[e.Name()] || !isID(e.Name()) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(s.volumesDir(), e.Name())); err != nil {
			s.log.Warn("cannot remove volumes that nobody knows", "container", e.Name(), "error", err)
		}
	}
}
