package imagedb

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"

	"github.com/opencontainers/go-digest"
)

// ErrAmbiguous says that a short id is the beginning of more than one image's.
var ErrAmbiguous = errors.New("ambiguous image id")

// maxNamed is how many of them an error names.
const maxNamed = 5

// Snapshot is the state after one change. It never changes itself.
type Snapshot struct {
	images []*Image          // by ID
	byName map[string]*Image // names and repository digests
}

// Images returns all images ordered by ID. The caller must not change the slice.
func (s *Snapshot) Images() []*Image { return s.images }

// ByID returns the image with this id, nil if there is none.
func (s *Snapshot) ByID(id digest.Digest) *Image {
	i, found := slices.BinarySearchFunc(s.images, id, func(img *Image, id digest.Digest) int {
		return strings.Compare(string(img.ID), string(id))
	})
	if !found {
		return nil
	}
	return s.images[i]
}

// ByName returns the image that has this normalised name or repository digest, nil if there is none.
func (s *Snapshot) ByName(name string) *Image { return s.byName[name] }

// ByPrefix returns the only image whose id begins with prefix, with or without "sha256:"; nil if there is none,
// ErrAmbiguous, with their ids, if there are several.
func (s *Snapshot) ByPrefix(prefix string) (*Image, error) {
	algorithm, hex, found := strings.Cut(prefix, ":")
	if !found {
		algorithm, hex = string(digest.Canonical), prefix
	}
	if hex == "" {
		return nil, nil
	}
	full := algorithm + ":" + hex
	i, _ := slices.BinarySearchFunc(s.images, full, func(img *Image, id string) int {
		return strings.Compare(string(img.ID), id)
	})
	if i == len(s.images) || !strings.HasPrefix(string(s.images[i].ID), full) {
		return nil, nil
	}
	if i+1 < len(s.images) && strings.HasPrefix(string(s.images[i+1].ID), full) {
		return nil, fmt.Errorf("%w, it may be %s", ErrAmbiguous, beginWith(s.images[i:], full))
	}
	return s.images[i], nil
}

// beginWith names the first of the images whose ids begin with prefix, which are the first of images.
func beginWith(images []*Image, prefix string) string {
	n := sort.Search(len(images), func(i int) bool { return !strings.HasPrefix(string(images[i].ID), prefix) })
	var names []string
	for _, img := range images[:min(n, maxNamed)] {
		name := string(img.ID)
		if len(img.Names) > 0 {
			name += " (" + img.Names[0] + ")"
		}
		names = append(names, name)
	}
	if n > maxNamed {
		names = append(names, fmt.Sprintf("%d more", n-maxNamed))
	}
	return strings.Join(names, ", ")
}

func newSnapshot(images map[digest.Digest]*Image) *Snapshot {
	s := &Snapshot{byName: map[string]*Image{}}
	for _, id := range slices.Sorted(maps.Keys(images)) {
		img := images[id]
		s.images = append(s.images, img)
		for _, n := range img.Names {
			s.byName[n] = img
		}
		for _, n := range img.RepoDigests {
			s.byName[n] = img
		}
	}
	return s
}

func (s *Snapshot) table() map[digest.Digest]*Image {
	images := make(map[digest.Digest]*Image, len(s.images)+1)
	for _, img := range s.images {
		images[img.ID] = img
	}
	return images
}

// put returns the images that change when img is added: img merged with what was there under its id, and every other
// image that loses a name to it.
func (s *Snapshot) put(img Image) []*Image {
	img.Names, img.RepoDigests = union(img.Names, nil), union(img.RepoDigests, nil)
	losers := map[digest.Digest]*Image{}
	taken := union(img.Names, img.RepoDigests)
	for _, n := range taken {
		if owner := s.byName[n]; owner != nil && owner.ID != img.ID {
			losers[owner.ID] = owner
		}
	}
	if former := s.ByID(img.ID); former != nil {
		img.Names = union(img.Names, former.Names)
		img.RepoDigests = union(img.RepoDigests, former.RepoDigests)
		img.Pinned = img.Pinned || former.Pinned
		img.Documents = slices.Concat(img.Documents, former.Documents)
	}
	img.Documents = distinct(img.Documents)
	changed := []*Image{&img}
	for _, id := range slices.Sorted(maps.Keys(losers)) {
		less := *losers[id]
		less.Names = without(less.Names, taken)
		less.RepoDigests = without(less.RepoDigests, taken)
		changed = append(changed, &less)
	}
	return changed
}

// distinct are the first documents that are kept, each once.
func distinct(documents [][]byte) (kept [][]byte) {
	for _, d := range documents {
		known := slices.ContainsFunc(kept, func(k []byte) bool { return bytes.Equal(k, d) })
		if !known && len(d) <= MaxDocument && len(kept) < maxDocuments {
			kept = append(kept, d)
		}
	}
	return kept
}

func union(a, b []string) []string {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}

func without(from, taken []string) []string {
	return slices.DeleteFunc(slices.Clone(from), func(n string) bool { return slices.Contains(taken, n) })
}
