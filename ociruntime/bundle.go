package ociruntime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/hook"
)

// Names in a container's bundle, which only containers with hooks have.
const (
	bundleConfig = "config.json"
	bundleRoot   = "rootfs" // made by Start; with it there is something that poststop hooks may have to undo
)

// bundle is the directory that hooks are told of.
func (p *Pod) bundle(id string) string { return p.path("bundle-" + id) }

// writeBundle makes the bundle. Hooks of a pod with a user namespace are its root, to whom the directories above must be
// passable.
func (p *Pod) writeBundle(id string, spec *specs.Spec) error {
	shown := *spec
	shown.Root = &specs.Root{Path: bundleRoot, Readonly: spec.Root != nil && spec.Root.Readonly}
	data, err := json.Marshal(shown)
	if err != nil {
		return fmt.Errorf("encode %s: %w", bundleConfig, err)
	}
	dir := p.bundle(id)
	if err := os.Mkdir(dir, 0o710); err != nil {
		return err
	}
	config := filepath.Join(dir, bundleConfig)
	if err := os.WriteFile(config, data, 0o640); err != nil {
		return err
	}
	_, gid := p.config.UserNS.root()
	return errors.Join(os.Chown(dir, 0, int(gid)), os.Chown(config, 0, int(gid)))
}

// attachBundle attaches the container's root where hooks look for it. One that an earlier criserver attached stays.
func (p *Pod) attachBundle(id string, root *os.File) error {
	at := filepath.Join(p.bundle(id), bundleRoot)
	if err := os.Mkdir(at, 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	same, err := sameMount(at, root)
	if same || err != nil {
		return err
	}
	if err := unix.MoveMount(int(root.Fd()), "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach the root at %s: %w", at, err)
	}
	return nil
}

func sameMount(path string, f *os.File) (bool, error) {
	var a, b unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_MNT_ID, &a); err != nil {
		return false, &os.PathError{Op: "statx", Path: path, Err: err}
	}
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &b); err != nil {
		return false, &os.PathError{Op: "statx", Path: f.Name(), Err: err}
	}
	return a.Mnt_id == b.Mnt_id, nil
}

// detachBundle undoes attachBundle on the host; the container has the root as its own by then, or will not start.
func (p *Pod) detachBundle(id string) error {
	at := filepath.Join(p.bundle(id), bundleRoot)
	err := unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("detach %s: %w", at, err)
	}
	return nil
}

// removeBundle ends a container's bundle. If it was started, or nearly, poststop hooks run before. It does nothing if there is none.
func (p *Pod) removeBundle(ctx context.Context, id string, hooks *hooks) error {
	if err := p.detachBundle(id); err != nil {
		return err
	}
	if _, err := os.Lstat(filepath.Join(p.bundle(id), bundleRoot)); err == nil && hooks != nil {
		p.runAfter(ctx, hook.Poststop, hooks.Poststop, hooks.state(p, specs.StateStopped, 0))
	}
	return os.RemoveAll(p.bundle(id))
}

// cleanBundle is removeBundle for a container that the pod does not know: what hooks it has stands in its record.
func (p *Pod) cleanBundle(ctx context.Context, id string) error {
	if _, err := os.Lstat(p.bundle(id)); err != nil {
		return nil
	}
	var r record
	var h *hooks
	if err := readRecord(p.recordPath(id), &r); err == nil {
		h = hooksOf(id, r.Spec)
	}
	return p.removeBundle(ctx, id, h)
}

// hooks are those of a container, and what they are told.
type hooks struct {
	*specs.Hooks
	id          string
	annotations map[string]string
}

// hooksOf returns nil if a spec has none.
func hooksOf(id string, spec *specs.Spec) *hooks {
	if spec == nil || !hook.Any(spec.Hooks) {
		return nil
	}
	return &hooks{spec.Hooks, id, spec.Annotations}
}

func (h *hooks) state(p *Pod, status specs.ContainerState, pid int) specs.State {
	return specs.State{Version: specs.Version, ID: h.id, Status: status, Pid: pid, Bundle: p.bundle(h.id), Annotations: h.annotations}
}

// beforeStart are the hooks that run in criserver's namespaces while the container is created.
func (h *hooks) beforeStart() []placed {
	//lint:ignore SA1019 it still has to run
	return slices.Concat(place(hook.Prestart, h.Prestart), place(hook.CreateRuntime, h.CreateRuntime))
}

// placed is a hook with its kind.
type placed struct {
	kind hook.Kind
	specs.Hook
}

func place(kind hook.Kind, list []specs.Hook) []placed {
	all := make([]placed, 0, len(list))
	for _, h := range list {
		all = append(all, placed{kind, h})
	}
	return all
}

// runAfter runs hooks whose failure changes nothing any more.
func (p *Pod) runAfter(ctx context.Context, kind hook.Kind, list []specs.Hook, state specs.State) {
	for _, h := range list {
		if err := p.runHere(ctx, placed{kind, h}, state); err != nil {
			p.runtime.config.Log.Warn("a hook failed", "container", state.ID, "error", err)
		}
	}
}

// runHere runs a hook in criserver's namespaces.
func (p *Pod) runHere(ctx context.Context, h placed, state specs.State) error {
	in, err := stateFile(state)
	if err != nil {
		return err
	}
	defer in.Close()
	return hook.Run(ctx, h.kind, h.Hook, state.Bundle, in)
}

// stateFile is a state as hooks read it.
func stateFile(state specs.State) (*os.File, error) {
	data, err := json.Marshal(state)
	if err != nil {
		return nil, fmt.Errorf("encode the state: %w", err)
	}
	fd, err := unix.MemfdCreate("state", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "state")
	if _, err = f.Write(data); err == nil {
		_, err = f.Seek(0, 0)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("write the state: %w", err)
	}
	return f, nil
}
