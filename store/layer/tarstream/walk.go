package tarstream

import "strings"

// Tree is a layer that is being unpacked; D names one of its directories.
type Tree[D any] interface {
	Root() D
	Parent(dir D) D                                // of the root: the root
	Lookup(dir D, name string) (Found[D], error)   // a whiteout is no kind at all
	Mkdir(dir D, name string) (child D, err error) // an implied directory; replaces a whiteout
}

// Found is what a name in a directory is. Kind is zero if there is nothing; Dir belongs to kind Dir and Target to
// Symlink.
type Found[D any] struct {
	Kind   Kind
	Dir    D
	Target string
}

const (
	maxSymlinks = 40   // as the kernel
	maxSteps    = 4096 // components looked at for one entry, so that links to links cost no more than a long path
)

// Walk finds the directory path of t, following symbolic links inside the layer. Missing directories are made if
// create is set; otherwise ok is false. name is the entry for messages.
func Walk[D any](t Tree[D], l Limits, name, path string, create bool) (dir D, ok bool, err error) {
	dir = t.Root()
	depth, links, steps := 0, 0, 0
	for path != "" {
		var c string
		c, path, _ = strings.Cut(path, "/")
		if steps++; steps > maxSteps {
			return dir, false, Invalidf(name, "more than %d directories and links on the way", maxSteps)
		}
		switch c {
		case "", ".":
			continue
		case "..":
			dir, depth = t.Parent(dir), max(depth-1, 0)
			continue
		}
		if len(c) > l.NameBytes {
			return dir, false, Invalidf(name, "a link on the way has a name of %d bytes, the limit is %d", len(c), l.NameBytes)
		}
		f, err := t.Lookup(dir, c)
		if err != nil {
			return dir, false, err
		}
		switch f.Kind {
		case Dir:
			dir, depth = f.Dir, depth+1
		case Symlink:
			if links++; links > maxSymlinks {
				return dir, false, Invalidf(name, "more than %d symbolic links on the way", maxSymlinks)
			}
			if strings.HasPrefix(f.Target, "/") {
				dir, depth = t.Root(), 0
			}
			path = f.Target + "/" + path
		case 0:
			if !create {
				return dir, false, nil
			}
			if dir, err = t.Mkdir(dir, c); err != nil {
				return dir, false, err
			}
			depth++
		default:
			if !create {
				return dir, false, nil
			}
			return dir, false, Invalidf(name, "%s on the way is not a directory", Quote(c))
		}
		if depth > l.Depth {
			return dir, false, Invalidf(name, "lies more than the limit of %d directories deep", l.Depth)
		}
	}
	return dir, true, nil
}
