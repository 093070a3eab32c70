package ociruntime

import (
	"fmt"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/compile"
	"github.com/criserver/criserver/ociruntime/mount"
	"github.com/criserver/criserver/pause"
)

// anteroom is where volumes that propagate are attached first, in the mount namespace of the child, which waits. What is
// mounted on the host between the cloning of a volume and its attaching is lost for the clone; then the volume is cloned
// again. An attached one receives everything, also while the child moves it to its destination.
type anteroom struct {
	meeting
	pod     *Pod
	dir     *os.File // tmpfs, with a place for each volume by its number
	in      *compile.Anteroom
	volumes []*volume
}

type volume struct {
	what           string // begins the error text
	source, userns *os.File
	options        mount.Options
}

// later leaves a volume to the anteroom and returns its place there. The caller closes the files of v.
func (s *start) later(v *volume, file bool) (place string, err error) {
	if s.ante == nil {
		if err := s.openAnteroom(); err != nil {
			return "", fmt.Errorf("make the anteroom: %w", err)
		}
	}
	place = strconv.Itoa(len(s.ante.volumes))
	if file {
		err = unix.Mknodat(int(s.ante.dir.Fd()), place, unix.S_IFREG|0o444, 0)
	} else {
		err = unix.Mkdirat(int(s.ante.dir.Fd()), place, 0o555)
	}
	if err != nil {
		return "", fmt.Errorf("make a place in the anteroom: %w", err)
	}
	for _, f := range []**os.File{&v.source, &v.userns} {
		if *f == nil {
			continue
		}
		if *f, err = dup(*f); err != nil {
			return "", err
		}
		s.owned = append(s.owned, *f)
	}
	s.ante.volumes = append(s.ante.volumes, v)
	return place, nil
}

func (s *start) openAnteroom() error {
	dir, err := mount.New("tmpfs", "criserver", labelled(mount.Options{Data: []string{"mode=755", "size=64k"}}, s.c.record.Label))
	if err != nil {
		return err
	}
	fd := s.own(dir)
	m, theirs, err := s.meet()
	if err != nil {
		return err
	}
	s.ante = &anteroom{meeting: m, pod: s.c.pod, dir: dir, in: &compile.Anteroom{Dir: fd, Sync: s.give(theirs)}}
	return nil
}

// withAnteroom starts the child and fills the anteroom meanwhile. That this failed is why the start fails.
func (s *start) withAnteroom(start func() (pause.Started, error)) (pause.Started, error) {
	if s.ante == nil {
		return start()
	}
	filled := make(chan error, 1)
	go func() {
		err := s.ante.receive()
		s.ante.hangUp() // then the child, if it waits, ends
		filled <- err
	}()
	started, err := start()
	s.ante.hangUp()
	if failed := <-filled; failed != nil {
		err = failed
	}
	return started, err
}

func (a *anteroom) receive() error {
	pid, err := a.ready()
	if pid == 0 || err != nil {
		return err
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return fmt.Errorf("open the mount namespace of the child: %w", err)
	}
	defer ns.Close()
	if _, err := innermostPid(pid, a.pod.Pid()); err != nil { // else ns may be another's
		return err
	}
	if err := inMountNamespace(ns, a.open); err != nil {
		return err
	}
	for i, v := range a.volumes {
		if err := a.fill(strconv.Itoa(i), v, ns, pid); err != nil {
			return fmt.Errorf("%s: %w", v.what, err)
		}
	}
	return a.goOn()
}

// open runs in the mount namespace of the child.
func (a *anteroom) open() error {
	if err := unix.MoveMount(int(a.dir.Fd()), "", unix.AT_FDCWD, compile.NewRoot, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach the anteroom: %w", err)
	}
	return nil
}

// clonings is how often a volume is cloned, if mounts below it come and go at each time.
const clonings = 100

// fill attaches clones of a volume until one is complete.
func (a *anteroom) fill(place string, v *volume, ns *os.File, pid int) (err error) {
	var clone *os.File
	defer func() { closeFiles([]*os.File{clone}) }()
	for range clonings {
		incomplete := clone
		if clone, err = mount.Bind(v.source, v.options, v.userns); err != nil {
			closeFiles([]*os.File{incomplete})
			return err
		}
		if cloned := a.pod.runtime.cloned; cloned != nil {
			cloned()
		}
		err = inMountNamespace(ns, func() error { return a.attach(place, clone, incomplete) })
		closeFiles([]*os.File{incomplete})
		if err != nil {
			return err
		}
		if complete, err := v.complete(clone, pid); complete || err != nil {
			return err
		}
	}
	return fmt.Errorf("mounts below it came or went at each of %d times that it was cloned", clonings)
}

// attach runs in the mount namespace of the child. A clone that is not complete stays below its successor, but nothing
// propagates from it any more, so that the host does not see its end.
func (a *anteroom) attach(place string, clone, incomplete *os.File) error {
	if incomplete != nil {
		if err := mount.SetAttr(incomplete, true, unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
			return fmt.Errorf("give an incomplete clone up: %w", err)
		}
	}
	if err := unix.MoveMount(int(clone.Fd()), "", int(a.dir.Fd()), place, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach it in the anteroom: %w", err)
	}
	return nil
}

// complete says whether an attached clone has the mounts that the host has. The host's are read first: what comes or goes
// later does so on both sides, so that it cannot hide what is missing.
func (v *volume) complete(clone *os.File, pid int) (bool, error) {
	host, err := mount.Below("/proc/thread-self/mountinfo", v.source)
	if err != nil {
		return false, err
	}
	child, err := mount.Below(fmt.Sprintf("/proc/%d/mountinfo", pid), clone)
	return slices.Equal(host, child), err
}
