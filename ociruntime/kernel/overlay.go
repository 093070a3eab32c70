package kernel

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// What an overlay can be made of. Each probe makes one, of one lower directory, upper and work.
var (
	Overlay = Probe("overlay", "4.0", func() error {
		return overlay(func(dir string, upper, work int) error {
			return mountOverlay(dir, upper, work, "")
		})
	}).required("containers have no root file system")

	OverlayVolatile = Probe("overlay-volatile", "5.10", func() error {
		return overlay(func(dir string, upper, work int) error {
			return mountOverlay(dir, upper, work, ",volatile")
		})
	}).optional("removing a container may wait for the disk")

	OverlayDetachedLower = Probe("overlay-detached-lower", "6.15", func() error {
		return overlay(func(_ string, upper, work int) error {
			lower, err := detachedTmpfs()
			if err != nil {
				return err
			}
			defer unix.Close(lower)
			return overlayOf(upper, work, setFD("lowerdir+", lower))
		})
	}).optional("layers are attached in a mount namespace of criserver's own")

	OverlayLowerFD = Probe("overlay-lower-fd", "6.13", func() error {
		return overlay(func(dir string, upper, work int) error {
			lower, err := unix.Open(filepath.Join(dir, "lower"), unix.O_PATH|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(lower)
			return overlayOf(upper, work, setFD("lowerdir+", lower))
		})
	}).optional("layers of a root are given by path")

	OverlayLowerAppend = Probe("overlay-lower-append", "6.8", func() error {
		return overlay(func(dir string, upper, work int) error {
			return detachAndClose("overlay", setString("lowerdir+", filepath.Join(dir, "lower")),
				setString("upperdir", viaProc(upper)), setString("workdir", viaProc(work)))
		})
	}).optional("roots are made by mount(2), of about 60 layers at most")

	OverlayIDMappedLower = Probe("overlay-idmapped-lower", "5.19", func() error {
		return withUserNS(func(userns int) error {
			return overlay(func(dir string, upper, work int) error {
				lower := filepath.Join(dir, "lower")
				var err error
				for _, source := range []string{lower, "/", "/var/lib", "/tmp"} { // a tmpfs cannot be idmapped before 6.3
					if err = attachIDMapped(source, lower, userns); err == nil {
						break
					}
				}
				if err != nil {
					return err
				}
				return mountOverlay(dir, upper, work, "")
			})
		})
	}).optional("pods with user namespaces (hostUsers: false) are refused")
)

// overlay runs make in a private mount namespace with directories for an overlay: "lower" in dir, upper and work opened.
// What a kernel says to an option, or to a lower, that it cannot take is a no.
func overlay(make func(dir string, upper, work int) error) error {
	return inPrivateNamespace(func(dir string) error {
		for _, name := range []string{"lower", "upper", "work"} {
			if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
				return err
			}
		}
		upper, err := unix.Open(filepath.Join(dir, "upper"), unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(upper)
		work, err := unix.Open(filepath.Join(dir, "work"), unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(work)
		return absentIf(make(dir, upper, work), unix.EINVAL, unix.EOPNOTSUPP, unix.EBADF, unix.ENODEV, unix.ENOSYS)
	})
}

// mountOverlay is the way that every kernel knows. The mount goes with the namespace.
func mountOverlay(dir string, upper, work int, options string) error {
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s%s", filepath.Join(dir, "lower"), viaProc(upper), viaProc(work), options)
	if err := unix.Mount("overlay", dir, "overlay", 0, data); err != nil {
		return err
	}
	return unix.Unmount(dir, unix.MNT_DETACH)
}

func overlayOf(upper, work int, lower func(int) error) error {
	return detachAndClose("overlay", lower, setFD("upperdir", upper), setFD("workdir", work))
}

// detachAndClose makes a detached mount only to see that it can be made.
func detachAndClose(fstype string, options ...func(int) error) error {
	fd, err := detached(fstype, options...)
	closeFD(fd, err)
	return err
}
