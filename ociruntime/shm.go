package ociruntime

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/kernel"
	"github.com/criserver/criserver/ociruntime/mount"
)

// makeShm makes the pod's /dev/shm, which it has with an ipc namespace of its own.
func (p *Pod) makeShm(ctx context.Context) error {
	if p.config.HostIPC {
		return nil
	}
	if err := p.mountShm(ctx); err != nil {
		return fmt.Errorf("make /dev/shm: %w", err)
	}
	return nil
}

func (p *Pod) mountShm(ctx context.Context) error {
	size := p.config.ShmSize
	if size == 0 {
		size = defaultShmSize
	}
	options := mount.ParseOptions([]string{"nosuid", "nodev", "noexec", "mode=1777", fmt.Sprintf("size=%d", size)})
	f, err := mount.New("tmpfs", "shm", labelled(options, p.config.MountLabel))
	if err != nil {
		return err
	}
	if uid, gid := p.config.UserNS.root(); uid != 0 || gid != 0 {
		if err := unix.Fchownat(int(f.Fd()), "", int(uid), int(gid), unix.AT_EMPTY_PATH); err != nil {
			_ = f.Close()
			return fmt.Errorf("chown: %w", err)
		}
	}
	p.shm = f
	keep := []*os.File{f}
	if !kernel.OverlayDetachedLower.Has() { // by the same change of 6.15 detached mounts can be cloned, for each container
		if p.shmNS, err = p.runtime.nursery.hide(f); err != nil {
			return fmt.Errorf("attach: %w", err)
		}
		keep = append(keep, p.shmNS)
	}
	return p.conn.Keep(ctx, keptShm, keep)
}

// adoptShm takes what makeShm gave to pause.
func (p *Pod) adoptShm(kept map[string][]*os.File) {
	files := kept[keptShm]
	delete(kept, keptShm)
	if len(files) > 0 {
		p.shm = files[0]
	}
	if len(files) > 1 {
		p.shmNS = files[1]
		closeFiles(files[2:])
	}
}

// bindShm clones /dev/shm for a container.
func (p *Pod) bindShm(o mount.Options, userns *os.File) (clone *os.File, err error) {
	if p.shmNS == nil {
		return mount.Bind(p.shm, o, userns)
	}
	err = inMountNamespace(p.shmNS, func() error {
		clone, err = mount.Bind(p.shm, o, userns)
		return err
	})
	return clone, err
}
