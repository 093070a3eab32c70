package layer

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/kernel"
)

// namespace is a mount namespace with nothing in it but the store's root, proc, and what is attached for overlays.
// One locked thread lives in it and runs what it is given; its directory is nsLayers.
type namespace struct {
	calls chan nsCall
	done  chan struct{}
	next  int // names attached so far; used on the thread only
}

type nsCall struct {
	f   func() error
	err chan error
}

// Paths in the namespace. Short, because before Linux 6.8 all lowers of an overlay share 4,096 bytes.
const (
	nsStore  = "/s"
	nsLayers = "/l"
	nsTarget = "/m" // where overlays are for a moment
)

func newNamespace(store string) (*namespace, error) {
	n := &namespace{calls: make(chan nsCall), done: make(chan struct{})}
	ready := make(chan error)
	go kernel.Apart(func() { n.run(store, ready) })
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("make layer namespace: %w", err)
	}
	return n, nil
}

func (n *namespace) run(store string, ready chan<- error) {
	defer close(n.done)
	err := enter(store)
	ready <- err
	if err != nil {
		return
	}
	for c := range n.calls {
		c.err <- c.f()
	}
}

// do runs f on the thread.
func (n *namespace) do(f func() error) error {
	c := nsCall{f, make(chan error)}
	n.calls <- c
	return <-c.err
}

// close ends the thread; nothing may be running or come later.
func (n *namespace) close() {
	close(n.calls)
	<-n.done
}

// enter builds the namespace around the calling thread.
func enter(store string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	storeTree, err := unix.OpenTree(unix.AT_FDCWD, store, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("clone %s: %w", store, err)
	}
	defer func() { _ = unix.Close(storeTree) }() // attached, or not wanted
	proc, err := openFS("proc").mount(0)
	if err != nil {
		return err
	}
	defer func() { _ = proc.Close() }() // attached, or not wanted
	root, err := openFS("tmpfs").mount(0)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()                      // attached, or not wanted
	if err := moveMount(int(root.Fd()), store); err != nil { // any directory serves
		return err
	}
	if err := pivot(store); err != nil {
		return err
	}
	for _, dir := range []string{nsStore, nsLayers, nsTarget, "/proc"} {
		if err := unix.Mkdir(dir, 0o700); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	if err := errors.Join(moveMount(storeTree, nsStore), moveMount(int(proc.Fd()), "/proc")); err != nil {
		return err
	}
	return unix.Chdir(nsLayers)
}

// pivot makes the mount at dir the root and drops everything else.
func pivot(dir string) error {
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("enter %s: %w", dir, err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("drop old root: %w", err)
	}
	return unix.Chdir("/")
}

func moveMount(fd int, to string) error {
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, to, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach mount at %s: %w", to, err)
	}
	return nil
}

// attach puts a detached mount into the namespace and gives its name in nsLayers. Runs on the thread.
func (n *namespace) attach(f *os.File) (name string, err error) {
	n.next++
	name = strconv.FormatInt(int64(n.next), 36)
	if err := unix.Mkdir(name, 0o700); err != nil {
		return "", fmt.Errorf("make %s: %w", name, err)
	}
	if err := moveMount(int(f.Fd()), name); err != nil {
		return "", errors.Join(err, unix.Rmdir(name))
	}
	return name, nil
}

// detach takes a name away again. Runs on the thread.
func (n *namespace) detach(name string) error {
	if err := unix.Unmount(name, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach %s: %w", name, err)
	}
	if err := unix.Rmdir(name); err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}
