package cgroup

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// Bus is what a Scope wants of systemd: a HostBus. Calls with a channel return when the job is queued; its result ("done")
// comes over ch, which must have room.
type Bus interface {
	StartTransientUnitContext(ctx context.Context, name, mode string, properties []systemd.Property, ch chan<- string) (int, error)
	StartUnitContext(ctx context.Context, name, mode string, ch chan<- string) (int, error)
	StopUnitContext(ctx context.Context, name, mode string, ch chan<- string) (int, error)
	KillUnitWithTarget(ctx context.Context, name string, target systemd.Who, signal int32) error
}

// A Scope is the part of systemd's tree that one pod gets to itself: a delegated transient scope unit. Pause and every
// container have a leaf in it, made by Create with the scope's Path as parent; systemd is not asked again.
//
// A scope is born with a process in it, and a cgroup2 group that has processes cannot distribute controllers. So: start
// pause anywhere, StartScope with its pid, Create pause's leaf (without limits), have pause enter it (PlacementByWrite),
// and only then Create the others.
type Scope struct {
	unit string
	path string
}

// scopeUndo bounds taking back a scope whose start was not waited for.
const scopeUndo = 10 * time.Second

// OpenScope is the Scope of a pod whose id and CRI cgroup parent are known; nothing is asked of systemd.
func OpenScope(id, parent string) (*Scope, error) {
	_, slicePath, err := expandSlice(parent)
	if err != nil {
		return nil, err
	}
	if id == "" || strings.Trim(id, unitCharacters) != "" {
		return nil, fmt.Errorf("%q cannot be part of a unit's name", id)
	}
	unit := scopeUnit(id)
	return &Scope{unit: unit, path: strings.TrimSuffix(slicePath, "/") + "/" + unit}, nil
}

func scopeUnit(id string) string { return "cri-" + id + ".scope" }

// StartScope has systemd make the scope of a pod, with the process pid in it, and waits until it is there. A scope of
// the same name, left by an earlier attempt, is stopped first. On error nothing is left.
func StartScope(ctx context.Context, bus Bus, id, parent string, pid int) (*Scope, error) {
	s, err := OpenScope(id, parent)
	if err != nil {
		return nil, err
	}
	slice, _, err := expandSlice(parent)
	if err != nil {
		return nil, err
	}
	if pid <= 0 || pid > math.MaxInt32 {
		return nil, fmt.Errorf("start scope %s: %d is no process", s.unit, pid)
	}
	properties := scopeProperties(id, slice, pid)
	start := func(ch chan<- string) (int, error) {
		return bus.StartTransientUnitContext(ctx, s.unit, "replace", properties, ch)
	}
	err = job(ctx, start)
	if errors.Is(err, errLost) || isBusError(err, "org.freedesktop.systemd1.UnitExists") {
		if err = s.await(ctx, bus, pid); errors.Is(err, errNotOurs) {
			if err = s.end(ctx, bus); err == nil {
				err = job(ctx, start)
			}
		}
	}
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), scopeUndo)
		defer cancel()
		return nil, errors.Join(fmt.Errorf("start scope %s: %w", s.unit, err), s.end(undo, bus))
	}
	return s, nil
}

// errNotOurs says that there is no scope with the process in it.
var errNotOurs = errors.New("the process is not in it")

// await waits until a scope that may be there has started, and looks whether the process is in it. It is not if the scope
// is one that an earlier attempt left.
func (s *Scope) await(ctx context.Context, bus Bus, pid int) error {
	err := jobHeard(ctx, func(ch chan<- string) (int, error) { // of a unit that is being started, its job
		return bus.StartUnitContext(ctx, s.unit, "replace", ch)
	})
	text, readErr := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	switch {
	case readErr != nil:
		return readErr
	case !strings.Contains(string(text), ":"+s.path+"\n"):
		return errNotOurs
	}
	return err
}

// end is Stop for processes that may ignore the SIGTERM which systemd begins with.
func (s *Scope) end(ctx context.Context, bus Bus) error {
	_ = bus.KillUnitWithTarget(ctx, s.unit, systemd.All, int32(unix.SIGKILL)) // without, it takes longer
	return s.Stop(ctx, bus)
}

// Stop has systemd end what is in the scope, politely at first, and remove it, and waits for that. A scope that is not there
// is no error.
func (s *Scope) Stop(ctx context.Context, bus Bus) error {
	err := jobHeard(ctx, func(ch chan<- string) (int, error) {
		return bus.StopUnitContext(ctx, s.unit, "replace", ch)
	})
	if err == nil || isBusError(err, "org.freedesktop.systemd1.NoSuchUnit") {
		return nil
	}
	return fmt.Errorf("stop scope %s: %w", s.unit, err)
}

// Path is the cgroup path of the scope, to be the parent of leaves.
func (s *Scope) Path() string { return s.path }

// scopeProperties describe the unit. No limit is among them: the slice has the kubelet's, the leaves have the containers'.
func scopeProperties(id, slice string, pid int) []systemd.Property {
	property := func(name string, value any) systemd.Property {
		return systemd.Property{Name: name, Value: dbus.MakeVariant(value)}
	}
	return []systemd.Property{
		systemd.PropDescription("pod sandbox " + id),
		systemd.PropSlice(slice),
		systemd.PropPids(uint32(pid)),
		// systemd leaves alone what is below, and an OOM kill there does not stop the whole pod (OOMPolicy=continue).
		property("Delegate", true),
		// Not stopped early at shutdown: the kubelet, which orders itself before, ends pods gracefully.
		property("DefaultDependencies", false),
		// A scope that ended in failure is forgotten like any other, so that its name is free.
		property("CollectMode", "inactive-or-failed"),
		// So that the controllers are there to be distributed, with v1 too.
		property("CPUAccounting", true),
		property("MemoryAccounting", true),
		property("TasksAccounting", true),
		property("IOAccounting", true),
		// DefaultTasksMax is meant for services; the slice has the kubelet's limit.
		property("TasksMax", uint64(math.MaxUint64)),
	}
}

// jobLost is the result of a job whose end cannot be heard of any more; errLost says so.
const jobLost = "lost"

var errLost = errors.New("systemd's job was lost sight of")

// job queues a job and waits until it is done.
func job(ctx context.Context, queue func(ch chan<- string) (int, error)) error {
	result := make(chan string, 1) // go-systemd sends under its lock: it must never wait
	if _, err := queue(result); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return fmt.Errorf("wait for systemd's job: %w", ctx.Err())
	case r := <-result:
		switch r {
		case "done":
			return nil
		case jobLost:
			return errLost
		}
		return fmt.Errorf("systemd's job ended as %q", r)
	}
}

// jobHeard is job for what can be asked for again, and is until its end is heard of.
func jobHeard(ctx context.Context, queue func(ch chan<- string) (int, error)) error {
	for {
		if err := job(ctx, queue); !errors.Is(err, errLost) {
			return err
		}
	}
}

// isBusError says whether the answer was a D-Bus error of that name.
func isBusError(err error, name string) bool {
	var busErr dbus.Error
	return errors.As(err, &busErr) && busErr.Name == name
}
