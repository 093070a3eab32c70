package imageservice

import (
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/criserver/criserver/store/layer"
)

// Usage is what images take of their file system.
type Usage struct {
	Mountpoint string // a directory on it
	Bytes      uint64
	Inodes     uint64
}

// Usage adds up what was measured when the layers were unpacked; nothing is walked.
func (s *Service) Usage() Usage {
	u := Usage{Mountpoint: s.cfg.Dir}
	for _, l := range s.layers.List() {
		u.Bytes += uint64(l.Bytes)
		u.Inodes += uint64(l.Inodes)
	}
	return u
}

// DiskUsage says who owns what of the disk. Bytes are those that are allocated.
type DiskUsage struct {
	Images     []ImageUsage     `json:"images"`     // by id
	Layers     []LayerUsage     `json:"layers"`     // by diff id
	Containers []ContainerUsage `json:"containers"` // by id, with the image volumes of containers, which have no writable layer
}

// ImageUsage is what one image holds. Layers that another image has too are shared; removing the image frees the others,
// unless a container keeps them.
type ImageUsage struct {
	ID          string          `json:"id"`
	RepoTags    []string        `json:"repoTags"`
	RepoDigests []string        `json:"repoDigests"`
	Pinned      bool            `json:"pinned"`
	Layers      []digest.Digest `json:"layers"` // bottom first, each once
	Unique      uint64          `json:"uniqueBytes"`
	Shared      uint64          `json:"sharedBytes"`
	Containers  []string        `json:"containers"` // that are built on all its layers; where it has none, on none
}

// LayerUsage is what one layer takes. With neither images nor containers it belongs to a pull under way.
type LayerUsage struct {
	DiffID     digest.Digest `json:"diffID"`
	Format     layer.Format  `json:"format"`
	Bytes      uint64        `json:"bytes"`
	Inodes     uint64        `json:"inodes"`
	Durable    bool          `json:"durable"`    // outlives a power loss
	Images     []string      `json:"images"`     // ids
	Containers []string      `json:"containers"` // ids
}

// ContainerUsage is what one container has written to its root.
type ContainerUsage struct {
	ID     string          `json:"id"`
	Layers []digest.Digest `json:"layers"` // below what it writes, bottom first
	Bytes  uint64          `json:"bytes"`
	Inodes uint64          `json:"inodes"`
	Known  bool            `json:"known"` // false: nobody has measured it yet
}

// DiskUsage tells which image and which container owns what. written says what a container has written to its root, as far
// as it is known; nothing is walked.
func (s *Service) DiskUsage(written func(container string) (bytes, inodes uint64, known bool)) DiskUsage {
	u := DiskUsage{Images: []ImageUsage{}, Layers: []LayerUsage{}, Containers: []ContainerUsage{}}
	at := map[digest.Digest]int{} // in u.Layers
	for i, l := range s.layers.List() {
		at[l.DiffID] = i
		u.Layers = append(u.Layers, LayerUsage{DiffID: l.DiffID, Format: l.Format, Bytes: uint64(l.Bytes), Inodes: uint64(l.Inodes),
			Durable: l.Durable, Images: []string{}, Containers: []string{}})
	}
	for _, c := range s.layers.Users() {
		container := ContainerUsage{ID: c.Container, Layers: c.Layers}
		container.Bytes, container.Inodes, container.Known = written(c.Container)
		u.Containers = append(u.Containers, container)
		for _, id := range c.Layers {
			if i, ok := at[id]; ok {
				u.Layers[i].Containers = append(u.Layers[i].Containers, c.Container)
			}
		}
	}
	images := s.db.Snapshot().Images()
	owners := map[digest.Digest]int{}
	for _, img := range images {
		for _, id := range unique(img.DiffIDs) {
			owners[id]++
			if i, ok := at[id]; ok {
				u.Layers[i].Images = append(u.Layers[i].Images, string(img.ID))
			}
		}
	}
	for _, img := range images {
		one := ImageUsage{ID: string(img.ID), RepoTags: append([]string{}, img.Names...), RepoDigests: append([]string{}, img.RepoDigests...), Layers: unique(img.DiffIDs),
			Pinned: img.Pinned || s.isPinned(img), Containers: []string{}}
		for _, id := range one.Layers {
			switch i, ok := at[id]; {
			case !ok: // removed since the layers were listed
			case owners[id] > 1:
				one.Shared += u.Layers[i].Bytes
			default:
				one.Unique += u.Layers[i].Bytes
			}
		}
		for _, c := range u.Containers {
			if builtOn(c.Layers, one.Layers) {
				one.Containers = append(one.Containers, c.ID)
			}
		}
		u.Images = append(u.Images, one)
	}
	return u
}

// builtOn says whether layers of a container are all that an image has. One without layers has containers without layers.
func builtOn(container, image []digest.Digest) bool {
	if len(image) == 0 {
		return len(container) == 0
	}
	return !slices.ContainsFunc(image, func(id digest.Digest) bool { return !slices.Contains(container, id) })
}
