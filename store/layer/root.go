package layer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/criserver/criserver/store/record"
)

// maxLowers is the kernel's limit of lower layers in one overlay.
const maxLowers = 500

// maxID bounds a container's ID in bytes: paths with it must fit into an fsconfig string.
const maxID = 200

// IDMap maps a range of a user namespace's IDs to the host's, as a line of /proc/PID/uid_map.
type IDMap struct {
	Inside, Outside, Count uint32
}

// RootOptions say how a container sees its root.
type RootOptions struct {
	UIDs, GIDs []IDMap  // of a container in a user namespace; empty: none
	UserNS     *os.File // that user namespace if it is there already, else one is made for a moment; not consumed
	Label      string   // SELinux context of all files; "" leaves it to the policy
	ReadOnly   bool     // no writable directory: an image as a volume
	SubPath    string   // with ReadOnly: mount what is at this path of the image, a file or a directory; "": all of it

	// MountPoints are where the caller will mount something. Those that the image lacks may be there, empty and root's.
	MountPoints []MountPoint
}

// Root builds the root file system of a container from layers, bottom first, as a detached mount, which is the
// caller's to close. The layers are in use until RemoveRoot, also over a restart. The error is ErrExists if id has a
// root, ErrNotFound if a layer is missing; after an error nothing is left.
func (s *Store) Root(ctx context.Context, id string, layers []digest.Digest, o RootOptions) (root *os.File, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("root of container %s: %w", id, err)
		}
	}()
	if err := checkID(id); err != nil {
		return nil, err
	}
	layers = topmost(layers)
	if len(layers) > maxLowers {
		return nil, fmt.Errorf("%d layers, overlayfs takes %d", len(layers), maxLowers)
	}
	entries, err := s.reserve(id, layers)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.RemoveRoot(id))
		}
	}()
	footing, learn := s.stand(id, layers, o)
	if err := s.makeContainerDir(id, layers, footing, o); err != nil {
		return nil, err
	}
	if len(o.UIDs) > 0 && o.UserNS == nil {
		if o.UserNS, err = newUserNS(o.UIDs, o.GIDs); err != nil {
			return nil, err
		}
		defer func() { _ = o.UserNS.Close() }() // mounts hold it
	}
	var lowers []*lowerMount // top first
	for _, e := range slices.Backward(entries) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		m, err := s.mounted(e)
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", e.DiffID, err)
		}
		lowers = append(lowers, m)
	}
	if root, err = s.overlay(id, lowers, footing, o); err != nil {
		return nil, err
	}
	if learn != nil {
		learn(root)
	}
	if o.SubPath == "" {
		return root, nil
	}
	return s.subtree(root, o.SubPath)
}

// RemoveRoot deletes the writable directory of the container and lets go of its layers. The space of files is free on return if
// nothing has the root mounted any more; empty directories are deleted afterwards. It does nothing if there is none.
func (s *Store) RemoveRoot(id string) error {
	if err := checkID(id); err != nil {
		return fmt.Errorf("remove root of container %s: %w", id, err)
	}
	s.mu.Lock()
	entries, ok := s.users[id]
	if !ok {
		s.mu.Unlock()
		return nil
	}
	dir := s.path("containers", id)
	doomed := s.discard(dir)
	if project, counted := s.projects[id]; counted { // the next root of the container has another until this is deleted
		delete(s.projects, id)
		s.projects[doomed] = project
	}
	delete(s.users, id)
	for _, e := range entries {
		e.refs--
	}
	for _, spare := range s.footings.leave(id) {
		s.deleteLater(s.discard(s.path(footingsDir, spare)))
	}
	s.mu.Unlock()
	if removeFiles(filepath.Join(doomed, upperDir)) == nil && doomed != dir && s.removeLater(doomed) {
		return nil
	}
	if err := s.remove(doomed); err != nil {
		return fmt.Errorf("remove root of container %s: %w", id, err)
	}
	return nil
}

// Roots gives the containers that have a root, sorted.
func (s *Store) Roots() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]string, 0, len(s.users))
	for id := range s.users {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// User is a container whose root is built on layers.
type User struct {
	Container string
	Layers    []digest.Digest // bottom first
}

// Users gives the containers that have a root, sorted, and what each keeps from being removed.
func (s *Store) Users() []User {
	s.mu.Lock()
	defer s.mu.Unlock()
	users := make([]User, 0, len(s.users))
	for _, id := range slices.Sorted(maps.Keys(s.users)) {
		u := User{Container: id, Layers: make([]digest.Digest, 0, len(s.users[id]))}
		for _, e := range s.users[id] {
			u.Layers = append(u.Layers, e.DiffID)
		}
		users = append(users, u)
	}
	return users
}

// UpperDir is the writable directory of the container's root, for counting what it holds.
func (s *Store) UpperDir(id string) string { return s.path("containers", id, upperDir) }

func checkID(id string) error {
	if id == "" || len(id) > maxID || id[0] == '.' || strings.ContainsAny(id, "/\x00") {
		return errors.New("not an ID that can name a directory")
	}
	return nil
}

// topmost drops all but the last of equal layers: it decides for every name that the lower ones decide for.
func topmost(layers []digest.Digest) []digest.Digest {
	var kept []digest.Digest
	for i, l := range layers {
		if !slices.Contains(layers[i+1:], l) {
			kept = append(kept, l)
		}
	}
	return kept
}

// reserve takes the layers for container id.
func (s *Store) reserve(id string, layers []digest.Digest) ([]*entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.users[id]; ok {
		return nil, ErrExists
	}
	var entries []*entry
	for _, l := range layers {
		e := s.layers[l]
		if e == nil {
			return nil, fmt.Errorf("layer %s: %w", l, ErrNotFound)
		}
		entries = append(entries, e)
	}
	for _, e := range entries {
		e.refs++
	}
	s.users[id] = entries
	return entries, nil
}

// makeContainerDir makes the record, upper and work. They belong to the root of the container's user namespace.
func (s *Store) makeContainerDir(id string, layers []digest.Digest, footing string, o RootOptions) error {
	dir := s.path("containers", id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	r := rootRecord{Boot: s.config.BootID, Layers: layers, Footing: footing}
	if !o.ReadOnly {
		var err error
		if r.Project, err = s.takeProject(id); err != nil {
			return err
		}
	}
	if err := record.Write(s.path("containers", id, rootFile), r); err != nil {
		return err
	}
	if o.ReadOnly {
		return nil
	}
	uid, err := mappedRoot(o.UIDs)
	if err != nil {
		return fmt.Errorf("uid map: %w", err)
	}
	gid, err := mappedRoot(o.GIDs)
	if err != nil {
		return fmt.Errorf("gid map: %w", err)
	}
	for _, name := range []string{upperDir, workDir} {
		path := s.path("containers", id, name)
		if err := os.Mkdir(path, 0o700); err != nil {
			return err
		}
		if err := os.Chmod(path, 0o755); err != nil { // whatever the umask
			return err
		}
		if err := os.Chown(path, uid, gid); err != nil {
			return err
		}
		if r.Project == 0 {
			continue
		}
		if err := s.quota.Assign(path, r.Project); err != nil {
			return err
		}
	}
	return nil
}

// mappedRoot is the host's ID of 0 inside.
func mappedRoot(maps []IDMap) (int, error) {
	if len(maps) == 0 {
		return 0, nil
	}
	for _, m := range maps {
		if m.Inside == 0 && m.Count > 0 {
			return int(m.Outside), nil
		}
	}
	return 0, errors.New("0 is not mapped")
}
