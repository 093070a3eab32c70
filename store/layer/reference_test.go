package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// model is a layer in memory, kept in the plainest way there is. It is the oracle for both formats and shares no
// code with them.
type model struct{ root *thing }

type thing struct {
	parent   *thing
	children map[string]*thing // of a directory
	opaque   bool
	hiding   bool // a whiteout was put into it
	whiteout bool
	mode     uint32 // with type
	uid, gid int
	sec      int64
	nsec     int
	content  string // of a file, or target of a link
	rdev     uint64
	xattrs   map[string]string
}

func newModel() *model {
	m := &model{root: newDir(nil)}
	m.root.parent = m.root
	return m
}

func newDir(parent *thing) *thing {
	return &thing{parent: parent, children: map[string]*thing{}, mode: unix.S_IFDIR | 0o755, xattrs: map[string]string{}}
}

var errModel = errors.New("the model refuses the entry")

// clean gives the components of a name.
func clean(name string) (list []string) {
	for _, c := range strings.Split(name, "/") {
		switch c {
		case "", ".":
		case "..":
			list = list[:max(len(list)-1, 0)]
		default:
			list = append(list, c)
		}
	}
	return list
}

// find walks from dir, through links, counting them down in links.
func (m *model) find(dir *thing, path []string, create bool, links *int) (*thing, error) {
	for _, c := range path {
		if c == "" || c == "." {
			continue
		}
		if c == ".." {
			dir = dir.parent
			continue
		}
		child := dir.children[c]
		switch {
		case child == nil || child.whiteout:
			if !create {
				return nil, errModel
			}
			made := newDir(dir)
			made.opaque = child != nil
			dir.children[c] = made
			dir = made
		case child.children != nil:
			dir = child
		case child.mode&unix.S_IFMT == unix.S_IFLNK:
			if *links--; *links < 0 {
				return nil, errModel
			}
			from := dir
			if strings.HasPrefix(child.content, "/") {
				from = m.root
			}
			var err error
			if dir, err = m.find(from, strings.Split(child.content, "/"), create, links); err != nil {
				return nil, err
			}
		default:
			return nil, errModel
		}
	}
	return dir, nil
}

func (m *model) dir(path []string, create bool) (*thing, error) {
	links := 40
	return m.find(m.root, path, create, &links)
}

// apply does what one entry says.
func (m *model) apply(h *tar.Header, content string) error {
	path := clean(h.Name)
	if len(path) == 0 {
		if h.Typeflag != tar.TypeDir {
			return errModel
		}
		m.root.set(h)
		return nil
	}
	dir, err := m.dir(path[:len(path)-1], true)
	if err != nil {
		return err
	}
	name := path[len(path)-1]
	old := dir.children[name]
	switch {
	case name == ".wh..wh..opq":
		dir.opaque = true
		return nil
	case strings.HasPrefix(name, ".wh."):
		name = name[len(".wh."):]
		switch old := dir.children[name]; {
		case old == nil:
			dir.hiding = true
			dir.children[name] = &thing{whiteout: true, mode: unix.S_IFCHR}
		case old.children != nil:
			old.opaque = true
		}
		return nil
	case h.Typeflag == tar.TypeLink:
		if climbs(h.Linkname) {
			return errModel
		}
		return m.link(dir, name, clean(h.Linkname))
	case h.Typeflag == tar.TypeDir && old != nil && old.children != nil:
		old.set(h)
		return nil
	}
	fresh := newThing(h, content)
	fresh.parent = dir
	if h.Typeflag == tar.TypeDir {
		fresh.opaque = old != nil && old.whiteout
	}
	dir.children[name] = fresh
	return nil
}

// climbs says whether a path leaves the directory that it starts from.
func climbs(path string) bool {
	depth := 0
	for _, c := range strings.Split(path, "/") {
		switch c {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return true
			}
		default:
			depth++
		}
	}
	return false
}

func (m *model) link(dir *thing, name string, target []string) error {
	if len(target) == 0 {
		return errModel
	}
	from, err := m.dir(target[:len(target)-1], false)
	if err != nil {
		return err
	}
	file := from.children[target[len(target)-1]]
	if file == nil || file.children != nil || file.whiteout {
		return errModel
	}
	if dir.children[name] == file {
		return nil
	}
	delete(dir.children, name)
	if !m.reaches(m.root, file) { // it was what the link replaces, or in it
		return errModel
	}
	dir.children[name] = file
	return nil
}

func (m *model) reaches(dir, file *thing) bool {
	for _, c := range dir.children {
		if c == file || c.children != nil && m.reaches(c, file) {
			return true
		}
	}
	return false
}

func newThing(h *tar.Header, content string) *thing {
	n := &thing{}
	switch h.Typeflag {
	case tar.TypeReg:
		n.mode, n.content = unix.S_IFREG, content
	case tar.TypeDir:
		n.mode, n.children = unix.S_IFDIR, map[string]*thing{}
	case tar.TypeSymlink:
		n.mode, n.content = unix.S_IFLNK, h.Linkname
	case tar.TypeFifo:
		n.mode = unix.S_IFIFO
	case tar.TypeChar:
		n.mode, n.rdev = unix.S_IFCHR, unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	case tar.TypeBlock:
		n.mode, n.rdev = unix.S_IFBLK, unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	}
	n.set(h)
	return n
}

func (n *thing) set(h *tar.Header) {
	n.mode = n.mode&unix.S_IFMT | uint32(h.Mode)
	if n.mode&unix.S_IFMT == unix.S_IFLNK {
		n.mode = unix.S_IFLNK | 0o777
	}
	n.xattrs = map[string]string{}
	n.uid, n.gid, n.sec, n.nsec = h.Uid, h.Gid, h.ModTime.Unix(), h.ModTime.Nanosecond()
	if h.ModTime.IsZero() { // package tar writes time 0 for it
		n.sec = 0
	}
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok && name != "trusted.overlay.redirect" {
			n.xattrs[name] = v
		}
	}
}

// show lists the layer, one line for each name; names of one file share a number.
func (m *model) show() map[string]string {
	out := map[string]string{}
	names := map[*thing][]string{}
	var walk func(path string, n *thing)
	walk = func(path string, n *thing) {
		names[n] = append(names[n], path)
		for name, c := range n.children {
			walk(path+"/"+name, c)
		}
	}
	walk("", m.root)
	for n, paths := range names {
		sort.Strings(paths)
		nlink := len(paths)
		x := map[string]string{}
		for k, v := range n.xattrs {
			x[k] = v
		}
		if n.opaque {
			x["trusted.overlay.opaque"] = "y"
		}
		if n.hiding {
			x["trusted.overlay.origin"] = ""
		}
		if n.children != nil {
			nlink = 2
			for _, c := range n.children {
				if c.children != nil {
					nlink++
				}
			}
		}
		line := fmt.Sprintf("%o", n.mode)
		if !n.whiteout {
			line = fmt.Sprintf("%o %d:%d %d.%09d n%d dev %x first %q %s %s",
				n.mode, n.uid, n.gid, n.sec, n.nsec, nlink, n.rdev, paths[0], showXattrs(x), showContent(n.content))
		}
		for _, p := range paths {
			out[p] = line
		}
	}
	return out
}

func showXattrs(x map[string]string) string {
	var list []string
	for k, v := range x {
		list = append(list, fmt.Sprintf("%s=%x", k, v))
	}
	sort.Strings(list)
	return strings.Join(list, " ")
}

func showContent(s string) string {
	if len(s) < 100 {
		return fmt.Sprintf("%q", s)
	}
	sum := uint64(14695981039346656037)
	for i := range len(s) {
		sum = (sum ^ uint64(s[i])) * 1099511628211
	}
	return fmt.Sprintf("%d bytes %x", len(s), sum)
}
