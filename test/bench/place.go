package main

import (
	"fmt"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// place is a thread in a mount namespace of its own, which processes can be started from. crun refuses a host that has
// controllers on cgroup v2 beside v1; it takes this one where /sys/fs/cgroup/unified is not seen.
type place struct {
	work chan func()
}

// newPlace copies the mounts of now, without one mount point.
func newPlace(without string) (*place, error) {
	p := &place{work: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Unmount(without, unix.MNT_DETACH)
		}
		if err != nil {
			err = fmt.Errorf("mount namespace without %s: %w", without, err)
		}
		ready <- err
		for f := range p.work {
			f()
		}
	}()
	if err := <-ready; err != nil {
		close(p.work)
		return nil, err
	}
	return p, nil
}

// start starts cmd from there; a nil place is everybody's.
func (p *place) start(cmd *exec.Cmd) error {
	if p == nil {
		return cmd.Start()
	}
	done := make(chan error)
	p.work <- func() { done <- cmd.Start() }
	return <-done
}

func (p *place) close() error {
	close(p.work)
	return nil
}
