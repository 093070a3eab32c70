package tarstream

import (
	"archive/tar"
	"path"
	"strings"
	"time"

	"github.com/criserver/criserver/store/layer/frame"
)

// Kind is what an entry asks for.
type Kind uint8

// The kinds of entries. The zero value is no entry.
const (
	Dir Kind = iota + 1
	Regular
	Symlink
	Hardlink
	Char
	Block
	Fifo
	Whiteout // hide Path of the layers below
	Opaque   // hide what the layers below have in the directory Path
)

// Entry is one checked entry of a layer.
type Entry struct {
	Name         string // as the archive spells it; for messages
	Path         string // relative to the layer's root, clean, no final slash; "" is the root
	Kind         Kind
	Perm         uint32 // permission, setuid, setgid and sticky bits
	UID, GID     uint32
	Size         int64 // of a Regular's content, holes filled
	ModTime      time.Time
	Target       string // Symlink: as it is; Hardlink: a Path
	Major, Minor uint32 // Char and Block
	Xattrs       []Xattr

	Kept Place // of a Regular's content, set by who has read it
}

// Place says where a content is kept; see frame.Place.
type Place = frame.Place

// Xattr is one extended attribute; Name has its name space.
type Xattr struct{ Name, Value string }

const (
	whiteoutPrefix = ".wh."
	metaPrefix     = ".wh..wh."
	opaqueName     = ".wh..wh..opq"
	maxMajor       = 1<<12 - 1
	maxMinor       = 1<<20 - 1
	maxID          = 1<<32 - 2 // the last one means "nobody named"
)

var kinds = map[byte]Kind{
	tar.TypeReg: Regular, tar.TypeCont: Regular, tar.TypeGNUSparse: Regular,
	tar.TypeDir: Dir, tar.TypeSymlink: Symlink, tar.TypeLink: Hardlink,
	tar.TypeChar: Char, tar.TypeBlock: Block, tar.TypeFifo: Fifo,
}

// Split cuts a Path into its directory ("" is the root) and its last component.
func Split(p string) (dir, name string) {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i], p[i+1:]
	}
	return "", p
}

// entry checks h. ok is false if the entry is to be skipped.
func (l *Limits) entry(h *tar.Header) (e *Entry, ok bool, err error) {
	p, err := l.clean(h.Name, h.Name)
	if err != nil {
		return nil, false, err
	}
	if escapes(h.Name) {
		return nil, false, Invalidf(h.Name, "path leads out of the layer")
	}
	e = &Entry{Name: h.Name, Path: p, ModTime: h.ModTime, Perm: uint32(h.Mode) & 0o7777, Size: h.Size}
	if _, name := Split(p); strings.HasPrefix(name, whiteoutPrefix) {
		ok, err = e.whiteout(name)
		return e, ok, err
	}
	if e.Kind, ok = kinds[h.Typeflag]; !ok {
		return nil, false, Invalidf(h.Name, "type %q is not known", h.Typeflag)
	}
	if p == "" && e.Kind != Dir {
		return nil, false, Invalidf(h.Name, "only a directory can be the root")
	}
	if h.Size < 0 {
		return nil, false, Invalidf(h.Name, "size %d is negative", h.Size)
	}
	if err := e.owner(h); err != nil {
		return nil, false, err
	}
	if err := l.link(e, h.Linkname); err != nil {
		return nil, false, err
	}
	if err := e.device(h); err != nil {
		return nil, false, err
	}
	e.Xattrs, err = l.xattrs(e, h.PAXRecords)
	return e, true, err
}

// escapes says whether a path leads out of the directory that it begins in.
func escapes(name string) bool {
	c := path.Clean(strings.TrimLeft(name, "/"))
	return c == ".." || strings.HasPrefix(c, "../")
}

// clean makes a Path of a name or hard link target of entry.
func (l *Limits) clean(entry, name string) (string, error) {
	if len(name) > l.PathBytes {
		return "", Invalidf(entry, "path of %d bytes is longer than the limit of %d", len(name), l.PathBytes)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", Invalidf(entry, "path has a NUL byte")
	}
	p := path.Clean("/" + name)[1:]
	depth := 0
	for rest := p; rest != ""; depth++ {
		c, after, _ := strings.Cut(rest, "/")
		if len(c) > l.NameBytes {
			return "", Invalidf(entry, "name of %d bytes is longer than the limit of %d", len(c), l.NameBytes)
		}
		rest = after
	}
	if depth > l.Depth+1 {
		return "", Invalidf(entry, "path is %d directories deep, the limit is %d", depth-1, l.Depth)
	}
	return p, nil
}

// whiteout turns e, whose last component is name, into what the whiteout says.
func (e *Entry) whiteout(name string) (ok bool, err error) {
	dir, _ := Split(e.Path)
	e.Size = 0
	if name == opaqueName {
		e.Kind, e.Path = Opaque, dir
		return true, nil
	}
	if strings.HasPrefix(name, metaPrefix) {
		return false, nil
	}
	hidden := name[len(whiteoutPrefix):]
	if hidden == "" || hidden == "." || hidden == ".." {
		return false, Invalidf(e.Name, "whiteout of the name %q", hidden)
	}
	e.Kind, e.Path = Whiteout, path.Join(dir, hidden)
	return true, nil
}

func (e *Entry) owner(h *tar.Header) error {
	for _, id := range []int{h.Uid, h.Gid} {
		if id < 0 || int64(id) > maxID {
			return Invalidf(h.Name, "owner %d:%d is out of range", h.Uid, h.Gid)
		}
	}
	e.UID, e.GID = uint32(h.Uid), uint32(h.Gid)
	return nil
}

func (l *Limits) link(e *Entry, target string) (err error) {
	switch e.Kind {
	case Symlink:
		switch {
		case target == "":
			return Invalidf(e.Name, "symbolic link to nothing")
		case len(target) > maxTarget:
			return Invalidf(e.Name, "link target of %d bytes is longer than the limit of %d", len(target), maxTarget)
		case strings.IndexByte(target, 0) >= 0:
			return Invalidf(e.Name, "link target has a NUL byte")
		}
		e.Target = target
	case Hardlink:
		if escapes(target) {
			return Invalidf(e.Name, "hard link to %s outside of the layer", Quote(target))
		}
		if e.Target, err = l.clean(e.Name, target); err != nil {
			return err
		}
		if e.Target == "" {
			return Invalidf(e.Name, "hard link to the root")
		}
	}
	return nil
}

func (e *Entry) device(h *tar.Header) error {
	if e.Kind != Char && e.Kind != Block {
		return nil
	}
	if h.Devmajor < 0 || h.Devmajor > maxMajor || h.Devminor < 0 || h.Devminor > maxMinor {
		return Invalidf(h.Name, "device number %d:%d is out of range", h.Devmajor, h.Devminor)
	}
	e.Major, e.Minor = uint32(h.Devmajor), uint32(h.Devminor)
	if e.Kind == Char && e.Major == 0 && e.Minor == 0 {
		e.Kind = Whiteout
	}
	return nil
}
