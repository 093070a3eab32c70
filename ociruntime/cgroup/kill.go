package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/kernel"
)

// gone says that a group, or a file of it, has been removed: not there, or (an open file of it) dead.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV)
}

// Gone says whether g has been removed.
func (g *Group) Gone() bool {
	h := g.hs.watch
	return gone(unix.Faccessat(h.root, g.dir(h), unix.F_OK, 0))
}

// Empty says whether no process is left in g and below. A group that is gone is empty.
func (g *Group) Empty() (bool, error) {
	h := g.hs.watch
	if h.Unified {
		text, err := h.read(g.dir(h), "cgroup.events")
		if gone(err) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		populated, err := parseKeyed(text, "populated")
		return populated == 0, err
	}
	pids, err := g.processes(h, g.dir(h))
	return len(pids) == 0, err
}

// Processes lists the process ids in g and below. A group that is gone has none.
func (g *Group) Processes() ([]int, error) {
	h := g.hs.watch
	return g.processes(h, g.dir(h))
}

// processes lists all process ids in dir and below, in this process' pid namespace.
func (g *Group) processes(h *hierarchy, dir string) ([]int, error) {
	text, err := h.read(dir, "cgroup.procs")
	switch {
	case gone(err), errors.Is(err, unix.EOPNOTSUPP): // threads only, of processes that the group around them lists
		return nil, nil
	case err != nil:
		return nil, err
	}
	pids, err := parsePIDs(text)
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", h.abs(dir, "cgroup.procs"), err)
	}
	below, err := h.children(dir)
	if gone(err) {
		return pids, nil
	}
	for _, name := range below {
		more, err := g.processes(h, path.Join(dir, name))
		if err != nil {
			return nil, err
		}
		pids = append(pids, more...)
	}
	return pids, err
}

// Kill sends SIGKILL to every process in g and below, also to those that they fork meanwhile, and returns when none is
// left or ctx ends. What somebody has frozen is thawed, as Thaw does, and a quota of processor time is lifted where that takes long.
// A group that is gone is no error.
func (g *Group) Kill(ctx context.Context) error {
	defer g.hasten()()
	err := g.killOnce(ctx)
	if err == nil {
		err = g.WaitEmpty(ctx)
	}
	if err == nil {
		return nil
	}
	err = fmt.Errorf("kill cgroup /%s: %w", path.Join(g.path, g.exec), err)
	if frozen, _ := g.Frozen(); frozen {
		return fmt.Errorf("%w; it is frozen with a cgroup above its pod", err)
	}
	return err
}

// slowDeath is how long a killed group may take to end before it gets all processor time.
const slowDeath = 100 * time.Millisecond

// hasten lifts the quota of a group that takes long to die, until the function that it returns is called: before Linux 6.18 what is
// out of quota does not even get the processor time to end. That of an exec is its container's, which lives on; that of the pod
// is the kubelet's.
func (g *Group) hasten() (end func()) {
	if g.exec != "" {
		return func() {}
	}
	lifted := make(chan struct{})
	timer := time.AfterFunc(slowDeath, func() {
		defer close(lifted)
		_, _ = g.Update(&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: new(int64(-1))}}) // it has none, or is gone
	})
	return func() {
		if !timer.Stop() {
			<-lifted
		}
	}
}

func (g *Group) killOnce(ctx context.Context) error {
	h := g.hs.watch
	if !h.Unified || !kernel.CgroupKill.Has() {
		return g.killFrozen(ctx, h)
	}
	if err := ignoreGone(h.write(g.dir(h), "cgroup.kill", "1")); err != nil {
		return fmt.Errorf("write %s: %w", h.abs(g.dir(h), "cgroup.kill"), err)
	}
	return g.Thaw()
}

// Bounds of one round of killFrozen.
const (
	freezeBound = 200 * time.Millisecond // until all have stopped; one in an uninterruptible sleep never does
	dieBound    = 100 * time.Millisecond // after which those that slipped through are looked for again
)

// killFrozen kills without cgroup.kill: processes that are frozen can neither fork nor end, so that one round finds all of
// them, and each pid is still that of the process it was read for. They die when they are thawed. Where a process
// sleeps uninterruptibly the others are not all frozen; then there are more rounds.
func (g *Group) killFrozen(ctx context.Context, h *hierarchy) error {
	for {
		if empty, err := g.Empty(); empty || err != nil {
			return err
		}
		if err := g.killRound(ctx, h, g.dir(h)); err != nil {
			return err
		}
		if err := within(ctx, dieBound, g.Empty); !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func (g *Group) killRound(ctx context.Context, h *hierarchy, dir string) error {
	if err := h.dialect.freeze(h, dir, true); err != nil {
		return ignoreGone(err)
	}
	err := within(ctx, freezeBound, func() (bool, error) { return h.dialect.frozen(h, dir) })
	if errors.Is(err, context.DeadlineExceeded) {
		err = nil // the next round sees what is left
	}
	pids, listErr := g.processes(h, dir)
	errs := []error{ignoreGone(err), listErr}
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("kill process %d: %w", pid, err))
		}
	}
	errs = append(errs, g.Thaw()) // always: what is frozen does not die
	return errors.Join(errs...)
}

// within polls for a bounded time.
func within(ctx context.Context, bound time.Duration, ask func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	return poll(ctx, ask)
}

func ignoreGone(err error) error {
	if gone(err) {
		return nil
	}
	return err
}

// Bounds of the polling in poll. The kernel holds back a second event of one group for 10 ms, and a killed process is
// gone within 1 ms: so short pauses come first, events after them.
const (
	pollFirst = 50 * time.Microsecond
	pollLast  = 50 * time.Millisecond
	pollShort = 4 * time.Millisecond // longest pause before waiting for events instead
)

// poll asks until the answer is yes, with pauses that grow to pollLast.
func poll(ctx context.Context, ask func() (bool, error)) error {
	return pollUntil(ctx, pollLast, ask)
}

func pollUntil(ctx context.Context, longest time.Duration, ask func() (bool, error)) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for pause := pollFirst; ; pause *= 2 {
		if yes, err := ask(); yes || err != nil {
			return err
		}
		if pause > longest {
			if longest < pollLast {
				return errStillNo
			}
			pause = longest
		}
		timer.Reset(pause)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// errStillNo ends pollUntil when its longest pause is over and the caller has a better way to wait.
var errStillNo = errors.New("not yet")

// WaitEmpty returns when no process is left in g and below, or with ctx's error. It blocks no thread.
func (g *Group) WaitEmpty(ctx context.Context) error {
	h := g.hs.watch
	if !h.Unified {
		return g.stillPopulated(poll(ctx, g.Empty))
	}
	err := pollUntil(ctx, pollShort, g.Empty)
	if !errors.Is(err, errStillNo) {
		return g.stillPopulated(err)
	}
	events, err := h.open(g.dir(h), "cgroup.events", unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return ignoreGone(err)
	}
	defer events.Close()
	return g.stillPopulated(waitEvents(ctx, events))
}

// stillPopulated says of a wait that the caller ended what was waited for.
func (g *Group) stillPopulated(err error) error {
	if err != nil {
		return fmt.Errorf("wait until cgroup /%s is empty: %w", path.Join(g.path, g.exec), err)
	}
	return nil
}

// waitEvents waits until an open cgroup.events says that nothing is populated. The file is in the Go runtime's own
// epoll set, so that no thread sits in poll for as long as a process does not die.
func waitEvents(ctx context.Context, events *os.File) error {
	raw, err := events.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = events.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var readErr error
	err = raw.Read(func(fd uintptr) bool { // false: wait for the next event
		var text string
		if text, readErr = readAll(int(fd)); readErr != nil {
			readErr = ignoreGone(readErr)
			return true
		}
		var populated uint64
		populated, readErr = parseKeyed(text, "populated")
		return readErr != nil || populated == 0
	})
	if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return ctx.Err()
	}
	return errors.Join(err, readErr)
}
