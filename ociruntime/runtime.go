package ociruntime

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/cgroup"
	"github.com/criserver/criserver/ociruntime/mount"
)

var (
	// ErrNotRunning means that a process that is needed has not been started or is gone.
	ErrNotRunning = errors.New("process is not running")
	// ErrPodGone means that the pod's pause is gone, and every process of the pod with it.
	ErrPodGone = errors.New("pause of the pod is gone")
	// ErrPodStarved is the ErrPodGone of a pause that the kernel killed. What it wraps goes on to name the limit.
	ErrPodStarved = fmt.Errorf("%w: killed for want of memory", ErrPodGone)
)

// Config is what a Runtime needs to know.
type Config struct {
	PauseBinary string // path of the static pause binary
	WorkDir     string // an existing directory of criserver's own
	Cgroups     *cgroup.Hierarchies
	Systemd     cgroup.Bus // asked for a scope for each pod; nil: cgroup parents are directories
	PauseParent string     // cgroup for the leaves of all pauses; "": that of each pod
	SharedLabel string     // SELinux label of what all containers may read; "": the policy's
	Log         *slog.Logger
}

// Runtime starts pods. Several may run on one machine.
type Runtime struct {
	config   Config
	nursery  *nursery
	caps     capabilitySet
	own      inheritance
	foreign  *mount.Foreign
	places   []hierarchyPlace // not in unified mode
	lastTask atomic.Uint64
	endings  endings
	aheads   atomic.Int32 // starts that began with the creation

	sourceBound time.Duration // tests have less patience
	cloned      func()        // tests are told that a volume that propagates is cloned and not yet attached
}

// capabilitySet is what criserver, and so every pause, may do.
type capabilitySet struct {
	last      int
	permitted uint64
}

// New prepares a Runtime; Close gives back what it holds. Pods outlive it.
func New(c Config) (*Runtime, error) {
	if c.Systemd != nil && c.PauseParent != "" {
		return nil, errors.New("with systemd, pauses cannot have a cgroup apart from their pods: a scope that no process is in ends")
	}
	caps, err := readCapabilities()
	if err != nil {
		return nil, err
	}
	own, err := readInheritance()
	if err != nil {
		return nil, err
	}
	foreign, err := mount.NewForeign()
	if err != nil {
		return nil, err
	}
	var places []hierarchyPlace
	if c.Cgroups.Mode() != cgroup.V2 {
		places = hierarchyPlaces(c.Cgroups.List())
	}
	n, err := newNursery(c.PauseBinary, c.WorkDir, c.SharedLabel, places)
	if err != nil {
		return nil, errors.Join(err, foreign.Close())
	}
	r := &Runtime{config: c, nursery: n, caps: caps, own: own, foreign: foreign, places: places, sourceBound: sourceBound}
	// Tasks that an earlier criserver numbered must not come again.
	r.lastTask.Store(uint64(time.Now().UnixNano()))
	return r, nil
}

// Close ends the thread that pauses are born from. Pods and containers go on. What is left of stopped pods is gone then.
func (r *Runtime) Close() error {
	r.endings.all.Wait()
	r.nursery.close()
	return r.foreign.Close()
}

func (r *Runtime) newTask() uint64 { return r.lastTask.Add(1) }

func readCapabilities() (capabilitySet, error) {
	var c capabilitySet
	last, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return c, err
	}
	if c.last, err = strconv.Atoi(strings.TrimSpace(string(last))); err != nil {
		return c, fmt.Errorf("/proc/sys/kernel/cap_last_cap: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return c, fmt.Errorf("capget: %w", err)
	}
	c.permitted = uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32
	return c, nil
}

// Unified says whether there is one cgroup2 hierarchy and nothing else.
func (r *Runtime) Unified() bool { return r.config.Cgroups.Mode() == cgroup.V2 }
