package dirtree

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/store/layer/sums"
	"github.com/criserver/criserver/store/layer/tarstream"
)

// facts is what is compared of one name. Times are as the file system keeps them, which may not be what was asked for.
type facts struct {
	mode       uint32 // with type
	uid, gid   uint32
	links      uint64 // names; 0 of a directory
	size       int64  // 0 of a directory
	rdev       uint64
	sec, nsec  int64  // when it was modified
	attributes uint32 // checksum of extended attributes
	contents   uint32 // checksum of a file's contents or a link's target
}

const factsFormat = "%o %d %d %d %d %x %d.%09d %08x %08x "

func (f *facts) line(path string) []byte {
	b := fmt.Appendf(nil, factsFormat, f.mode, f.uid, f.gid, f.links, f.size, f.rdev, f.sec, f.nsec, f.attributes, f.contents)
	return fmt.Appendf(b, "%q\n", path)
}

// differences says in words what f is instead of want; "" is no difference.
func (f *facts) differences(want *facts) string {
	var list []string
	add := func(same bool, format string, args ...any) {
		if !same {
			list = append(list, fmt.Sprintf(format, args...))
		}
	}
	add(f.mode == want.mode, "mode %o instead of %o", f.mode, want.mode)
	add(f.uid == want.uid && f.gid == want.gid, "owner %d:%d instead of %d:%d", f.uid, f.gid, want.uid, want.gid)
	add(f.links == want.links, "%d names instead of %d", f.links, want.links)
	add(f.size == want.size, "%d bytes instead of %d", f.size, want.size)
	add(f.rdev == want.rdev, "device %x instead of %x", f.rdev, want.rdev)
	add(f.sec == want.sec && f.nsec == want.nsec, "time %d.%09d instead of %d.%09d", f.sec, f.nsec, want.sec, want.nsec)
	add(f.attributes == want.attributes, "other extended attributes")
	add(f.contents == want.contents, "other contents")
	return strings.Join(list, ", ")
}

// survey visits every name of a tree in an order that depends on names only.
type survey struct {
	// contents gives the checksum of the regular file name in dir.
	contents func(dir int, name string, st *unix.Stat_t) (uint32, error)
	visit    func(path string, f *facts) error
	// unreadable is told what cannot be looked at; with an error the survey ends.
	unreadable func(path string, err error) error
}

// tree visits name in dir, which is path, and all below it.
func (s *survey) tree(ctx context.Context, dir int, name, path string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f, err := s.facts(dir, name)
	if ctx.Err() != nil { // in the middle of a file
		return ctx.Err()
	}
	if err != nil {
		return s.unreadable(path, err)
	}
	if err := s.visit(path, f); err != nil || f.mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return s.unreadable(path, err)
	}
	child := os.NewFile(uintptr(fd), name)
	defer func() { _ = child.Close() }() // a directory
	names, err := child.Readdirnames(-1)
	if err != nil {
		return s.unreadable(path, err)
	}
	slices.Sort(names)
	for _, n := range names {
		below := n
		if path != "" {
			below = path + "/" + n
		}
		if err := s.tree(ctx, fd, n, below); err != nil {
			return err
		}
	}
	return nil
}

func (s *survey) facts(dir int, name string) (*facts, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, err
	}
	f := &facts{mode: st.Mode, uid: st.Uid, gid: st.Gid, rdev: st.Rdev, sec: int64(st.Mtim.Sec), nsec: int64(st.Mtim.Nsec)}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		f.links, f.size = uint64(st.Nlink), st.Size
		f.contents, err = s.contents(dir, name, &st)
	case unix.S_IFLNK:
		f.links, f.size = uint64(st.Nlink), st.Size
		target := make([]byte, unix.PathMax+1)
		var n int
		if n, err = unix.Readlinkat(dir, name, target); err == nil {
			f.contents = sums.Update(0, target[:n])
		}
	case unix.S_IFDIR:
		f.rdev = 0
	default:
		f.links = uint64(st.Nlink)
	}
	if err != nil {
		return nil, err
	}
	f.attributes, err = attributesSum(below(dir, name))
	return f, err
}

// attributesSum is a checksum of what extended attributes a file has; policy's label is not the layer's.
func attributesSum(path string) (sum uint32, err error) {
	size, err := unix.Llistxattr(path, nil)
	if err != nil || size == 0 {
		return 0, err
	}
	list := make([]byte, size)
	if size, err = unix.Llistxattr(path, list); err != nil {
		return 0, err
	}
	names := bytes.Split(bytes.TrimRight(list[:size], "\x00"), []byte{0})
	slices.SortFunc(names, bytes.Compare)
	value := make([]byte, 1<<16)
	for _, name := range names {
		if string(name) == tarstream.SELinux {
			continue
		}
		n, err := unix.Lgetxattr(path, string(name), value)
		if err != nil {
			return 0, fmt.Errorf("xattr %s: %w", tarstream.Quote(string(name)), err)
		}
		sum = sums.Update(sum, fmt.Appendf(nil, "%q=%q", name, value[:n]))
	}
	return sum, nil
}

// comparePaths orders paths as a survey visits them: what is in a directory comes before its next sibling.
func comparePaths(a, b string) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			switch {
			case a[i] == '/':
				return -1
			case b[i] == '/':
				return 1
			}
			return int(a[i]) - int(b[i])
		}
	}
	return len(a) - len(b)
}
