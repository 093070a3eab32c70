package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/kernel"
)

// A Group is one leaf: the same path in every hierarchy, or, made by Sub, the leaf of one exec below it.
type Group struct {
	hs      *Hierarchies
	path    string       // relative to the roots
	exec    string       // of an exec leaf: its directory below path, in hs.watch only; else ""
	guest   bool         // see Guest
	created []string     // absolute directories above the leaf that were made for it, outermost first
	made    []*hierarchy // by Begin and Complete
	changes uint32       // of limits so far; atomic
}

// Create makes the leaf name below parent in every hierarchy and sets its limits, before any process is there.
// parent is a cgroup path ("/kubepods/burstable/podX"; "" and "/" are the root); what is missing of it is made.
// res may be nil. On error everything that was made is removed again. An existing leaf is an error (fs.ErrExist).
//
// announce is told the absolute directories above the leaf that are missing, outermost first, before they are made: who wants
// them gone, even if it is killed meanwhile, records them there. It may be nil.
func (hs *Hierarchies) Create(parent, name string, res *specs.LinuxResources, announce func(dirs []string) error) (*Group, error) {
	g, err := hs.Open(parent, name)
	if err != nil {
		return nil, err
	}
	if err := g.make(hs.all, res, announce); err != nil {
		return nil, errors.Join(err, g.undo())
	}
	return g, nil
}

// Begin is the first half of a Create without limits, of a group that Open gave: it makes the directory that a process can be born in,
// if there is a cgroup2, and the only one of a guest; Complete makes the others meanwhile. Dir is the former, opened for
// CLONE_INTO_CGROUP, which the caller closes; it is nil without a cgroup2 or where the kernel does not place a new process.
func (g *Group) Begin(announce func(dirs []string) error) (dir *os.File, err error) {
	h := g.hs.unified
	if g.guest {
		h = g.hs.watch
	}
	if h == nil {
		return nil, nil
	}
	if err = g.make([]*hierarchy{h}, nil, announce); err == nil && h.Unified && kernel.CloneIntoCgroup.Has() {
		dir, err = h.open(g.path, ".", unix.O_PATH|unix.O_DIRECTORY)
	}
	if err != nil {
		return nil, errors.Join(err, g.undo())
	}
	return dir, nil
}

// Complete is the second half. After an error there may be a process in the group, which the caller kills before Delete.
func (g *Group) Complete(announce func(dirs []string) error) error {
	rest := slices.DeleteFunc(slices.Clone(g.hs.all), func(h *hierarchy) bool { return slices.Contains(g.made, h) })
	return g.make(rest, nil, announce)
}

// make makes the leaf's directories and sets its limits, which are those of all of them.
func (g *Group) make(in []*hierarchy, res *specs.LinuxResources, announce func([]string) error) error {
	for _, h := range in {
		if err := g.makeLeaf(h, res, announce); err != nil {
			return fmt.Errorf("create cgroup /%s: %w", g.path, err)
		}
		g.made = append(g.made, h)
	}
	if err := g.apply(res, nil); err != nil {
		return fmt.Errorf("create cgroup /%s: %w", g.path, err)
	}
	return nil
}

// undo removes what was made. No process was ever in it.
func (g *Group) undo() error {
	var errs []error
	for _, h := range g.made {
		if err := unix.Unlinkat(h.root, g.path, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove cgroup %s: %w", h.abs(g.path), err))
		}
	}
	g.removeParents(g.created)
	return errors.Join(errs...)
}

// Open is the Group that Create made, perhaps in an earlier life of this process. It asks nothing of the kernel:
// whether the directories are there shows on use.
func (hs *Hierarchies) Open(parent, name string) (*Group, error) {
	dir, err := cleanParent(parent)
	if err != nil {
		return nil, err
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	return &Group{hs: hs, path: path.Join(dir, name)}, nil
}

// Guest is g as a guest of the group above it, which nobody else's processes may be in: it has a directory only where its processes are
// counted and killed, in the cgroup2 or, on pure v1, the freezer's. In all other hierarchies it is in the directory above, which counts
// for it. A directory costs the kernel 10 KiB, that of the memory controller 60.
func (g *Group) Guest() *Group {
	guest := *g
	guest.guest = true
	return &guest
}

// Leaf says whether g is there with directories that a guest has not.
func (g *Group) Leaf() bool {
	return slices.ContainsFunc(g.hs.all, func(h *hierarchy) bool {
		return h != g.hs.watch && unix.Faccessat(h.root, g.path, unix.F_OK, 0) == nil
	})
}

// Path is the cgroup path of the leaf in every hierarchy: "/kubepods/podX/<id>".
func (g *Group) Path() string { return "/" + g.path }

// Paths maps every controller (and "" for a cgroup2) to the leaf's absolute directory, for binds and statistics.
func (g *Group) Paths() map[string]string {
	paths := map[string]string{}
	for _, h := range g.hs.all {
		dir := h.abs(g.dir(h))
		for _, c := range h.Controllers {
			paths[c] = dir
		}
		if h.Unified {
			paths[""] = dir
		}
	}
	return paths
}

// Sub makes a leaf for one exec: below the cgroup2 directory, or, on pure v1, below the freezer's. In all other
// hierarchies, and for limits and OOM kills, it is g. Its Kill and Delete take the exec only.
// A container that may write its groups can forbid it (EAGAIN: cgroup.max.descendants), or make the leaf one that takes no
// process (EOPNOTSUPP, of the process: it has made threaded groups); see Beside.
func (g *Group) Sub(name string) (*Group, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	sub := &Group{hs: g.hs, path: g.path, exec: path.Join(g.exec, name)}
	h := g.hs.watch
	if err := mkdir(h, sub.dir(h)); err != nil {
		return nil, fmt.Errorf("create exec cgroup %s: %w", h.abs(sub.dir(h)), err)
	}
	return sub, nil
}

// dir is where g lives in h, relative to the root.
func (g *Group) dir(h *hierarchy) string {
	if g.exec != "" && h == g.hs.watch {
		return g.path + "/" + g.exec
	}
	if g.lodges(h) {
		return above(g.path)
	}
	return g.path
}

// lodges says whether g has no directory in h but is in the one above.
func (g *Group) lodges(h *hierarchy) bool { return g.guest && h != g.hs.watch }

// own lists the hierarchies that have a directory of g alone.
func (g *Group) own() []*hierarchy {
	if g.exec != "" || g.guest {
		return []*hierarchy{g.hs.watch}
	}
	return g.hs.all
}

// missingParents lists the directories above g that are not there in h, relative to the root, outermost first.
func (g *Group) missingParents(h *hierarchy) []string {
	var missing []string
	for dir := above(g.path); dir != ""; dir = above(dir) {
		if err := unix.Faccessat(h.root, dir, unix.F_OK, 0); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		missing = append(missing, dir)
	}
	slices.Reverse(missing)
	return missing
}

// Exists says whether a cgroup path is there in any hierarchy.
func (hs *Hierarchies) Exists(dir string) bool {
	return slices.ContainsFunc(hs.all, func(h *hierarchy) bool {
		return unix.Faccessat(h.root, strings.TrimPrefix(path.Clean(dir), "/"), unix.F_OK, 0) == nil
	})
}

// makeLeaf makes g's directory in h, and those above if they are missing.
func (g *Group) makeLeaf(h *hierarchy, res *specs.LinuxResources, announce func([]string) error) error {
	err := g.enter(h)
	for range 3 { // another leaf's Delete may take the parent away at the same time
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err = g.makeParents(announce); err == nil {
			err = g.enter(h)
		}
	}
	if err != nil {
		return fmt.Errorf("make directory %s: %w", h.abs(g.dir(h)), err)
	}
	if err := h.dialect.prepare(h, g.dir(h), res); err != nil {
		return errors.Join(err, ignoreGone(unix.Unlinkat(h.root, g.path, unix.AT_REMOVEDIR)))
	}
	return nil
}

// enter makes g's directory in h, or sees that the one it is a guest of is there.
func (g *Group) enter(h *hierarchy) error {
	if g.lodges(h) {
		return unix.Faccessat(h.root, g.dir(h), unix.F_OK, 0)
	}
	if g.guest {
		g.hs.parents.Lock()
		defer g.hs.parents.Unlock()
	}
	return mkdir(h, g.path)
}

// makeParents makes what is missing above g, in all hierarchies, so that announce is told of all of it at once.
func (g *Group) makeParents(announce func([]string) error) error {
	var told []string
	missing := make([][]string, len(g.hs.all))
	for i, h := range g.hs.all {
		missing[i] = g.missingParents(h)
		for _, dir := range missing[i] {
			told = append(told, h.abs(dir))
		}
	}
	if announce != nil && len(told) > 0 {
		if err := announce(told); err != nil {
			return err
		}
	}
	for i, h := range g.hs.all {
		for _, dir := range missing[i] {
			err := mkdir(h, dir)
			if err == nil {
				g.created = append(g.created, h.abs(dir))
			} else if !errors.Is(err, fs.ErrExist) {
				return err
			}
		}
	}
	return nil
}

func mkdir(h *hierarchy, dir string) error {
	return unix.Mkdirat(h.root, dir, 0o755)
}

// cleanParent checks a cgroup path and gives it relative to the roots.
func cleanParent(parent string) (string, error) {
	if parent == "" {
		return "", nil
	}
	if parent[0] != '/' {
		return "", fmt.Errorf("cgroup parent %q is not absolute", parent)
	}
	for part := range strings.SplitSeq(parent[1:], "/") {
		if part == "" { // "//" and a "/" at the end mean nothing
			continue
		}
		if err := checkName(part); err != nil {
			return "", fmt.Errorf("cgroup parent %q: %w", parent, err)
		}
	}
	return strings.TrimPrefix(path.Clean(parent), "/"), nil
}

// checkName refuses what cannot be one directory's name.
func checkName(name string) error {
	switch {
	case name == "", name == ".", name == "..", len(name) > unix.NAME_MAX, strings.ContainsAny(name, "/\x00\n"):
		return fmt.Errorf("%q is no name of a cgroup", name)
	}
	return nil
}
