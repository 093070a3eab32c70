package mount

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// localTypes are file systems that answer from memory or from a disk of this machine. Every other may be one whose
// server is elsewhere, or a program of this machine, and may never answer.
var localTypes = map[string]bool{
	"ext2": true, "ext3": true, "ext4": true, "xfs": true, "btrfs": true, "bcachefs": true, "f2fs": true, "zfs": true,
	"vfat": true, "exfat": true, "ntfs3": true, "iso9660": true, "udf": true, "squashfs": true, "erofs": true, "overlay": true,
	"tmpfs": true, "ramfs": true, "devtmpfs": true, "hugetlbfs": true, "proc": true, "sysfs": true, "cgroup": true,
	"cgroup2": true, "devpts": true, "mqueue": true, "nsfs": true, "bpf": true, "tracefs": true, "debugfs": true, "securityfs": true,
	"selinuxfs": true, "pstore": true, "configfs": true, "fusectl": true, "binfmt_misc": true, "efivarfs": true, "rpc_pipefs": true,
	"resctrl": true,
}

// Foreign knows the mount points of file systems that may not answer. It is safe for concurrent use.
type Foreign struct {
	mu     sync.Mutex
	table  *os.File
	read   bool
	points map[string]bool
	local  []uint64 // mounts that were looked at and are not foreign, ascending
	whole  bool     // the kernel lists no mounts: the whole table is read when it changes
}

// NewForeign watches the mount table of the process.
func NewForeign() (*Foreign, error) {
	const name = "/proc/thread-self/mountinfo" // the main thread may be left in a namespace that a goroutine made and ended with
	// Not by os.Open: the Go runtime would poll the file too, and a change is reported to whoever polls first.
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return &Foreign{table: os.NewFile(uintptr(fd), name)}, nil
}

// Close ends the watching.
func (f *Foreign) Close() error { return f.table.Close() }

// Crosses says whether a walk along path, as it is written, gets to a file system that may not answer; some, whether
// there is any such file system, to which a symbolic link could lead.
func (f *Foreign) Crosses(p string) (crosses, some bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.refresh(); err != nil {
		return false, false, fmt.Errorf("read the mount table: %w", err)
	}
	crosses, some = f.crosses(p)
	return crosses, some, nil
}

func (f *Foreign) crosses(p string) (crosses, some bool) {
	for p = path.Clean("/" + p); ; p = path.Dir(p) {
		if f.points[p] {
			return true, true
		}
		if p == "/" {
			return false, len(f.points) > 0
		}
	}
}

// refresh looks at the mounts if they have changed since it last did.
func (f *Foreign) refresh() error {
	poll := []unix.PollFd{{Fd: int32(f.table.Fd()), Events: unix.POLLPRI}}
	n, err := unix.Poll(poll, 0) // takes note of the change that it reports
	if err != nil && !errors.Is(err, unix.EINTR) {
		return err
	}
	if f.read && err == nil && n == 0 {
		return nil
	}
	f.read = false
	if !f.whole && f.list() != nil {
		f.whole = true
	}
	if f.whole {
		if err := f.readTable(); err != nil {
			return err
		}
	}
	f.read = true
	return nil
}

// list looks at mounts that are new, and at foreign ones, which may have been moved: on a node with thousands the table
// takes milliseconds to read, and every pod changes it.
func (f *Foreign) list() error {
	ids, err := listMounts()
	if err != nil {
		return err
	}
	local, points, rest := ids[:0], map[string]bool{}, f.local
	for _, id := range ids {
		for len(rest) > 0 && rest[0] < id {
			rest = rest[1:]
		}
		if len(rest) > 0 && rest[0] == id {
			local = append(local, id)
			continue
		}
		kind, point, err := statMount(id)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return err
		}
		switch {
		case localTypes[kind]:
			local = append(local, id)
		case point != "":
			points[point] = true
		}
	}
	f.local, f.points = local, points
	return nil
}

func (f *Foreign) readTable() error {
	if _, err := f.table.Seek(0, io.SeekStart); err != nil {
		return err
	}
	text, err := io.ReadAll(f.table)
	if err != nil {
		return err
	}
	f.points = foreignPoints(string(text))
	return nil
}

func foreignPoints(mountinfo string) map[string]bool {
	points := map[string]bool{}
	for line := range strings.Lines(mountinfo) {
		front, back, ok := strings.Cut(line, " - ")
		fields := strings.Fields(front)
		kind, _, _ := strings.Cut(back, " ")
		if ok && len(fields) > 4 && !localTypes[kind] {
			points[unescape(fields[4])] = true
		}
	}
	return points
}

// unescape undoes what the kernel does to blanks and backslashes: "\\040".
func unescape(s string) string {
	before, after, found := strings.Cut(s, `\`)
	if !found || len(after) < 3 {
		return s
	}
	c, err := strconv.ParseUint(after[:3], 8, 8)
	if err != nil {
		return s
	}
	return before + string([]byte{byte(c)}) + unescape(after[3:])
}
