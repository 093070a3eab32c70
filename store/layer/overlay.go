package layer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// rootMode is a way to make an overlay whose mount is detached.
type rootMode int

const (
	rootsUnknown  rootMode = iota
	rootsDetached          // Linux 6.15: lowers are descriptors of detached mounts
	rootsAttached          // Linux 6.8: lowerdir+ of layers attached in the layer namespace
	rootsMount             // mount(2) there, then open_tree
)

func (m rootMode) describe() string {
	switch m {
	case rootsDetached:
		return "overlay on detached layers"
	case rootsAttached:
		return "overlay on layers attached in a private namespace"
	case rootsMount:
		return "overlay by mount(2) in a private namespace"
	}
	return "no overlay"
}

// overlay mounts the container's root; lowers are top first. A footing is below all of them: what a layer has hides it.
func (s *Store) overlay(id string, lowers []*lowerMount, footing string, o RootOptions) (*os.File, error) {
	if s.ns == nil {
		return s.overlayDetached(id, lowers, footing, o)
	}
	var root *os.File
	err := s.ns.do(func() (err error) {
		root, err = s.overlayInNS(id, lowers, footing, o)
		return err
	})
	return root, err
}

// needsEmpty says whether the store's empty directory must be the last lower: overlayfs wants one lower with a
// writable directory and two without.
func needsEmpty(lowers []*lowerMount, o RootOptions) bool {
	return len(lowers) == 0 || o.ReadOnly && len(lowers) == 1
}

func (s *Store) overlayDetached(id string, lowers []*lowerMount, footing string, o RootOptions) (*os.File, error) {
	var held []*os.File // an overlay clones its lowers
	defer func() {
		for _, f := range held {
			_ = f.Close()
		}
	}()
	c := openFS("overlay")
	add := func(key string, f *os.File, err error) {
		c.step(key, func() error { return err })
		if f != nil {
			c.setFD(key, f)
			held = append(held, f)
		}
	}
	for _, m := range lowers {
		if o.UserNS == nil {
			c.setFD("lowerdir+", m.file)
			continue
		}
		f, err := idmapped(m.file, o.UserNS)
		add("lowerdir+", f, err)
	}
	if footing != "" {
		f, err := s.openFooting(s.path(), footing, o)
		add("lowerdir+", f, err)
	}
	if needsEmpty(lowers, o) {
		f, err := openDir(s.path("empty"))
		add("lowerdir+", f, err)
	}
	if !o.ReadOnly {
		for key, dir := range map[string]string{"upperdir": upperDir, "workdir": workDir} {
			f, err := openDir(s.path("containers", id, dir))
			add(key, f, err)
		}
	}
	return finishOverlay(c, o)
}

// finishOverlay sets what all ways have in common.
func finishOverlay(c *fsContext, o RootOptions) (*os.File, error) {
	c.set("source", "overlay")
	c.set("xino", "on") // one st_dev for all files, as tools that stay on one file system expect
	attr := 0
	if o.ReadOnly {
		attr = unix.MOUNT_ATTR_RDONLY
	} else {
		c.flag("volatile")
	}
	if o.Label != "" {
		c.set("context", o.Label)
	}
	return c.mount(attr)
}

// overlayInNS does the same in the layer namespace, on its thread.
func (s *Store) overlayInNS(id string, lowers []*lowerMount, footing string, o RootOptions) (root *os.File, err error) {
	var names, attached []string
	defer func() {
		for _, name := range attached {
			err = errors.Join(err, s.ns.detach(name))
		}
		if err != nil && root != nil {
			root, err = nil, errors.Join(err, root.Close())
		}
	}()
	attach := func(clone *os.File) error {
		name, err := s.ns.attach(clone)
		if err == nil {
			names, attached = append(names, name), append(attached, name)
		}
		return errors.Join(err, clone.Close())
	}
	for _, m := range lowers {
		if o.UserNS == nil {
			names = append(names, m.name)
			continue
		}
		clone, err := idmapped(m.file, o.UserNS)
		if err == nil {
			err = attach(clone)
		}
		if err != nil {
			return nil, err
		}
	}
	switch {
	case footing != "" && o.UserNS == nil:
		names = append(names, filepath.Join(nsStore, footingsDir, footing))
	case footing != "":
		clone, err := s.openFooting(nsStore, footing, o)
		if err == nil && clone != nil {
			err = attach(clone)
		}
		if err != nil {
			return nil, err
		}
	}
	if needsEmpty(lowers, o) {
		names = append(names, filepath.Join(nsStore, "empty"))
	}
	dir := filepath.Join(nsStore, "containers", id)
	if s.config.roots == rootsMount {
		return s.overlayByMount(dir, names, o)
	}
	c := openFS("overlay")
	for _, name := range names {
		c.set("lowerdir+", name)
	}
	if !o.ReadOnly {
		c.set("upperdir", filepath.Join(dir, upperDir))
		c.set("workdir", filepath.Join(dir, workDir))
	}
	return finishOverlay(c, o)
}

// overlayByMount uses mount(2), whose options are at most a page.
func (s *Store) overlayByMount(dir string, names []string, o RootOptions) (*os.File, error) {
	options := "xino=on,lowerdir=" + strings.Join(names, ":")
	flags := uintptr(unix.MS_RDONLY)
	if !o.ReadOnly {
		flags = 0
		options += ",volatile,upperdir=" + filepath.Join(dir, upperDir) + ",workdir=" + filepath.Join(dir, workDir)
	}
	if o.Label != "" {
		options += `,context="` + o.Label + `"`
	}
	if len(options) >= os.Getpagesize() {
		return nil, fmt.Errorf("%d layers need %d bytes of mount options, this kernel takes %d", len(names), len(options), os.Getpagesize()-1)
	}
	if err := unix.Mount("overlay", nsTarget, "overlay", flags, options); err != nil {
		return nil, fmt.Errorf("mount overlay with %d lowers: %w", len(names), err)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, nsTarget, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		err = fmt.Errorf("clone overlay: %w", err)
	}
	if umount := unix.Unmount(nsTarget, unix.MNT_DETACH); umount != nil {
		err = errors.Join(err, fmt.Errorf("detach overlay: %w", umount))
	}
	if fd < 0 {
		return nil, err
	}
	root := os.NewFile(uintptr(fd), "overlay")
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return root, nil
}
