package layer

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// MountPoint is where something will be mounted in a container's root.
type MountPoint struct {
	Path string // absolute
	File bool   // it will be a file that is mounted, else a directory
}

const (
	maxFootings = 32  // that nobody uses and that are kept for the next container
	maxKnown    = 512 // combinations of layers and mount points that are remembered
	maxLinks    = 40  // as many as the kernel follows
)

// footings are the directories of mount points. Guarded by Store.mu.
type footings struct {
	known  map[string]string // combination of layers and mount points -> name; "": the layers have all that is needed
	users  map[string]int    // name -> roots that stand on it
	of     map[string]string // container -> name
	making map[string]bool   // by name
}

func newFootings() footings {
	return footings{known: map[string]string{}, users: map[string]int{}, of: map[string]string{}, making: map[string]bool{}}
}

// stand says on what a root of these layers is to stand, and takes it for the container: the name of a footing, or "". While nothing
// is known of the combination, learn is how to know it, of the finished root.
func (s *Store) stand(id string, layers []digest.Digest, o RootOptions) (name string, learn func(root *os.File)) {
	if o.ReadOnly || len(o.MountPoints) == 0 || len(layers) >= maxLowers {
		return "", nil
	}
	combination := combined(layers, o.MountPoints)
	s.mu.Lock()
	defer s.mu.Unlock()
	f := &s.footings
	name, known := f.known[combination]
	if _, there := f.users[name]; known && (there || name == "") {
		if there {
			f.take(id, name)
		}
		return name, nil
	}
	return "", func(root *os.File) { s.learn(combination, lacking(root, o.MountPoints)) }
}

func (f *footings) take(id, name string) {
	f.users[name]++
	f.of[id] = name
}

// leave ends that a container's root stands on something, and returns which footings are too many then. s.mu is held.
func (f *footings) leave(id string) (spare []string) {
	name, stands := f.of[id]
	if !stands {
		return nil
	}
	delete(f.of, id)
	f.users[name]--
	idle := 0
	for other, users := range f.users {
		if users > 0 {
			continue
		}
		if idle++; idle > maxFootings {
			spare = append(spare, other)
		}
	}
	for _, other := range spare {
		delete(f.users, other)
	}
	return spare
}

// String is different for different mount points, also in a list.
func (p MountPoint) String() string { return fmt.Sprintf("%t %q", p.File, p.Path) }

// combined names a combination of layers and mount points.
func combined(layers []digest.Digest, points []MountPoint) string {
	h := sha256.New()
	for _, l := range layers {
		_, _ = fmt.Fprintln(h, l) // a hash takes everything
	}
	for _, p := range points {
		_, _ = fmt.Fprintln(h, p)
	}
	return string(h.Sum(nil))
}

// learn remembers what a combination needs, and makes a footing of that, in the background, if there is none.
func (s *Store) learn(combination string, points []MountPoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := &s.footings
	if len(f.known) >= maxKnown {
		clear(f.known)
	}
	if len(points) == 0 {
		f.known[combination] = ""
		return
	}
	sum := sha256.Sum256(fmt.Appendln(nil, points))
	name := hex.EncodeToString(sum[:12])
	f.known[combination] = name // until it is there, somebody else may learn the same
	if _, there := f.users[name]; there || f.making[name] {
		return
	}
	f.making[name] = true
	s.cleanup.Go(func() { s.makeFooting(name, points) })
}

// makeFooting makes a footing aside and puts it in its place. Without one roots are as good, and slower to start in.
func (s *Store) makeFooting(name string, points []MountPoint) {
	aside := s.path("tmp", fmt.Sprintf("footing-%s.%d", name, s.discarded.Add(1)))
	err := fillFooting(aside, points)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		err = os.Rename(aside, s.path(footingsDir, name))
	}
	delete(s.footings.making, name)
	if err == nil {
		s.footings.users[name] = 0
		return
	}
	s.config.Log.Debug("layer store: mount points cannot be shared", "error", err)
	s.deleteLater(aside)
}

// fillFooting makes dir and the mount points in it: what a start would make, with the same modes. One that cannot be because of another
// is left to the start.
func fillFooting(dir string, points []MountPoint) error {
	if err := mkdirAs(dir); err != nil {
		return err
	}
	for _, p := range points {
		err := fillOne(dir, p)
		if err != nil && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.EISDIR) {
			return err
		}
	}
	return nil
}

func fillOne(dir string, p MountPoint) error {
	at := dir
	parts := strings.Split(p.Path, "/")
	for i, part := range parts {
		at += "/" + part
		if i == len(parts)-1 && p.File {
			f, err := os.OpenFile(at, os.O_RDONLY|os.O_CREATE, 0o644)
			if err != nil {
				return err
			}
			return errors.Join(f.Chmod(0o644), f.Close()) // whatever the umask
		}
		if err := mkdirAs(at); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

func mkdirAs(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return os.Chmod(dir, 0o755) // whatever the umask
}

// lacking gives the mount points that root, which nobody has written to, does not have, where they will be: relative and free of links,
// sorted, each once.
func lacking(root *os.File, points []MountPoint) []MountPoint {
	var all []MountPoint
	for _, p := range points {
		if at := lackingAt(root, p.Path); at != "" && !slices.Contains(all, MountPoint{at, p.File}) {
			all = append(all, MountPoint{at, p.File})
		}
	}
	slices.SortFunc(all, func(a, b MountPoint) int { return strings.Compare(a.Path, b.Path) })
	return all
}

// lackingAt follows a path inside root, as the kernel does, to where there is nothing any more. "": something is there, or nothing can be.
func lackingAt(root *os.File, p string) string {
	done, rest := ".", strings.Split(p, "/")
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..": // done has no links
			done = path.Dir(done)
			continue
		}
		next := path.Join(done, part)
		mode, target, err := inspect(root, next)
		switch {
		case errors.Is(err, unix.ENOENT):
			if slices.Contains(rest, "..") {
				return ""
			}
			return path.Join(next, path.Join(rest...))
		case err != nil:
			return ""
		case mode == unix.S_IFDIR:
			done = next
		case mode == unix.S_IFLNK && links < maxLinks:
			links++
			rest = slices.Concat(strings.Split(target, "/"), rest)
			if path.IsAbs(target) {
				done = "."
			}
		default:
			return ""
		}
	}
	return ""
}

// inspect gives the type of what is at a path without links below root, and where it leads if it is a link.
func inspect(root *os.File, p string) (mode uint32, target string, err error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(int(root.Fd()), p, &how)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = unix.Close(fd) }() // only a path
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, "", err
	}
	mode = st.Mode & unix.S_IFMT
	if mode != unix.S_IFLNK {
		return mode, "", nil
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return 0, "", err
	}
	return mode, string(buf[:n]), nil
}

// loadFootings lists those that are there, each without users.
func (s *Store) loadFootings() error {
	dirs, err := os.ReadDir(s.path(footingsDir))
	for _, d := range dirs {
		s.footings.users[d.Name()] = 0
	}
	return err
}

// dropFootings drops those that no root stands on: they may be of another boot, and are not synced.
func (s *Store) dropFootings() {
	for name, users := range s.footings.users {
		if users == 0 {
			delete(s.footings.users, name)
			s.deleteLater(s.discard(s.path(footingsDir, name)))
		}
	}
}

// openFooting opens a footing as an overlay takes it, below dir, which is the store's root as the caller sees it. Where it cannot be
// mapped, as on a file system that has no idmapped mounts, there is none.
func (s *Store) openFooting(dir, name string, o RootOptions) (*os.File, error) {
	f, err := openDir(filepath.Join(dir, footingsDir, name))
	if err != nil || o.UserNS == nil {
		return f, err
	}
	defer func() { _ = f.Close() }() // only a path
	clone, err := idmapped(f, o.UserNS)
	if err != nil {
		s.config.Log.Debug("layer store: mount points are not shared with a user namespace", "error", err)
		return nil, nil
	}
	return clone, nil
}
