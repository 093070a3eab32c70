package leak

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// mountLine is what is told of one line of mountinfo.
type mountLine struct {
	root, point, fsType, source, options string
	device                               string // major:minor
}

// readMounts reads the mount table of the calling process, leaving out what changes by itself: ids and the options of
// superblocks, which grow with use on some file systems.
func readMounts() ([]mountLine, error) {
	data, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	var all []mountLine
	for line := range strings.Lines(string(data)) {
		front, back, ok := strings.Cut(line, " - ")
		a, b := strings.Fields(front), strings.Fields(back)
		if !ok || len(a) < 6 || len(b) < 2 {
			return nil, fmt.Errorf("mountinfo: cannot read %q", line)
		}
		all = append(all, mountLine{device: a[2], root: a[3], point: a[4], options: a[5], fsType: b[0], source: b[1]})
	}
	return all, nil
}

func mounts(*config) ([]string, error) {
	all, err := readMounts()
	if err != nil {
		return nil, err
	}
	var lines []string
	for _, m := range all {
		lines = append(lines, fmt.Sprintf("%s (%s of %s, root %s, %s)", m.point, m.fsType, m.source, m.root, m.options))
	}
	return lines, nil
}

// netNamespaces are those that have a file in /run/netns or a mount anywhere, and those of the processes looked at,
// which they are in or hold open.
func netNamespaces(c *config) ([]string, error) {
	all, err := readMounts()
	if err != nil {
		return nil, err
	}
	var lines []string
	for _, m := range all {
		if m.fsType == "nsfs" && strings.HasPrefix(m.root, "net:") {
			lines = append(lines, fmt.Sprintf("%s mounted on %s", m.root, m.point))
		}
	}
	entries, err := os.ReadDir("/run/netns")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		lines = append(lines, "file /run/netns/"+e.Name())
	}
	held, err := heldNamespaces(c)
	return append(lines, held...), err
}

func heldNamespaces(c *config) ([]string, error) {
	all, err := readProcesses()
	if err != nil {
		return nil, err
	}
	home, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	ours := lineage(all)
	ours[os.Getpid()] = true
	var lines []string
	for _, p := range all {
		if !ours[p.pid] && !c.looksFor(p) {
			continue
		}
		prefix := ""
		if ours[p.pid] {
			prefix = ownChild
		}
		for _, ns := range namespacesOf(p.pid) {
			if ns != home {
				lines = append(lines, fmt.Sprintf("%s%s of process %d (%s)", prefix, ns, p.pid, p.names[0]))
			}
		}
	}
	return lines, nil
}

// namespacesOf is the network namespaces of the threads of a process and of its descriptors, each once.
func namespacesOf(pid int) []string {
	var all []string
	for _, pattern := range []string{"/proc/%d/task/*/ns/net", "/proc/%d/fd/*"} {
		paths, _ := filepath.Glob(fmt.Sprintf(pattern, pid)) // it may end meanwhile
		for _, path := range paths {
			to, err := os.Readlink(path)
			if err == nil && strings.HasPrefix(to, "net:[") && !slices.Contains(all, to) {
				all = append(all, to)
			}
		}
	}
	return all
}

// cgroups are the directories of every mounted hierarchy.
func cgroups(*config) ([]string, error) {
	all, err := readMounts()
	if err != nil {
		return nil, err
	}
	var lines, seen []string
	for _, m := range all {
		same := m.device + " " + m.root
		if m.fsType != "cgroup" && m.fsType != "cgroup2" || slices.Contains(seen, same) {
			continue
		}
		seen = append(seen, same)
		err := walk(m.point, func(path string, d fs.DirEntry) {
			if d.IsDir() {
				lines = append(lines, path)
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return lines, nil
}

// files below the given directories.
func files(c *config) ([]string, error) {
	var lines []string
	for _, dir := range c.dirs {
		err := walk(dir, func(path string, d fs.DirEntry) {
			lines = append(lines, fmt.Sprintf("%s (%s)", path, typeName(d.Type())))
		})
		if err != nil {
			return nil, err
		}
	}
	return lines, nil
}

// walk calls see for everything in dir and bears that things vanish meanwhile. It stays on the file system of each
// directory that it is in: what is mounted below is another kind's business.
func walk(dir string, see func(string, fs.DirEntry)) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return fmt.Errorf("%s: %w", dir, err)
	}
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return nil
		}
		if err != nil {
			return err
		}
		see(path, d)
		var here unix.Stat_t
		if d.IsDir() && unix.Lstat(path, &here) == nil && here.Dev != st.Dev {
			return fs.SkipDir
		}
		return nil
	})
}

func typeName(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "directory"
	case m.IsRegular():
		return "file"
	case m&fs.ModeSymlink != 0:
		return "link"
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeNamedPipe != 0:
		return "pipe"
	}
	return "device"
}
