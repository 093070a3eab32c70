package leak

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ownChild begins the line of a descendant of the test process.
const ownChild = "child "

// proc is a line of the process table.
type proc struct {
	pid, parent int
	start       string // clock ticks since boot: with pid it names a process for good
	command     string
	names       []string // by which it may be wanted: of its binary, of its first argument, its comm
}

// processes are the descendants of this process and those with a name that is looked for.
func processes(c *config) ([]string, error) {
	all, err := readProcesses()
	if err != nil {
		return nil, err
	}
	ours := lineage(all)
	var lines []string
	for _, p := range all {
		prefix := ""
		if ours[p.pid] {
			prefix = ownChild
		} else if !c.looksFor(p) {
			continue
		}
		lines = append(lines, fmt.Sprintf("%spid %d started at %s: %s", prefix, p.pid, p.start, p.command))
	}
	return lines, nil
}

// lineage is the set of descendants of this process, without itself.
func lineage(all []proc) map[int]bool {
	ours := map[int]bool{os.Getpid(): true}
	for grown := true; grown; {
		grown = false
		for _, p := range all {
			if ours[p.parent] && !ours[p.pid] {
				ours[p.pid], grown = true, true
			}
		}
	}
	delete(ours, os.Getpid())
	return ours
}

func readProcesses() ([]proc, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var all []proc
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if p, ok := readProcess(pid); ok {
			all = append(all, p)
		}
	}
	return all, nil
}

// readProcess returns false for processes that end meanwhile and for kernel threads.
func readProcess(pid int) (proc, bool) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		return proc{}, false
	}
	// pid (comm) state ppid ...: comm may hold anything, so count from its end. starttime is field 22.
	open, end := strings.IndexByte(string(stat), '('), strings.LastIndexByte(string(stat), ')')
	fields := strings.Fields(string(stat[end+1:]))
	if open < 0 || len(fields) < 20 {
		return proc{}, false
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil || parent == 2 || pid == 2 {
		return proc{}, false
	}
	comm := string(stat[open+1 : end])
	cmdline, _ := os.ReadFile(dir + "cmdline")
	args := strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
	p := proc{pid: pid, parent: parent, start: fields[19], command: strings.Join(args, " ")}
	p.names = []string{comm, filepath.Base(args[0])}
	if exe, err := os.Readlink(dir + "exe"); err == nil {
		p.names = append(p.names, filepath.Base(strings.TrimSuffix(exe, " (deleted)")))
	}
	if p.command == "" {
		p.command = "[" + comm + "]" // a zombie has no command line any more
	}
	return p, true
}

// descriptors of this process, by what they lead to: numbers are used again and again.
func descriptors(*config) ([]string, error) {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var lines []string
	for _, name := range names {
		if name == strconv.Itoa(int(dir.Fd())) {
			continue
		}
		target, err := os.Readlink("/proc/self/fd/" + name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		lines = append(lines, target)
	}
	return lines, nil
}

var number = regexp.MustCompile(`\d+`)

// DescriptorsOf is what the descriptors of any process lead to, with the numbers of sockets and the like left out, so that one
// process can be compared with its successor.
func DescriptorsOf(pid int) ([]string, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var lines []string
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		target, err := os.Readlink(path)
		if err != nil {
			continue // closed meanwhile
		}
		if !filepath.IsAbs(target) || strings.HasPrefix(target, "/proc/") {
			target = number.ReplaceAllString(target, "N")
		}
		var fs unix.Statfs_t
		if target == "/" && unix.Statfs(path, &fs) == nil {
			target = MountOf(fs.Type)
		}
		lines = append(lines, target)
	}
	return lines, nil
}

// MountOf is the line of a descriptor of a detached mount's root; what file system it is is all that tells which.
func MountOf(magic int64) string { return fmt.Sprintf("/ of a file system of type %#x", magic) }

var goroutineHead = regexp.MustCompile(`^goroutine (\d+) `)

// goroutines by number and creator, which do not change while they live; and where they are is of use in a report, but
// changes. Those of the testing package come and go with tests and are left out, as is the one that asks.
func goroutines(*config) ([]string, error) {
	buf := make([]byte, 1<<20)
	for {
		size := runtime.Stack(buf, true)
		if size < len(buf) {
			buf = buf[:size]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	var lines []string
	for i, block := range strings.Split(string(buf), "\n\n") {
		head := goroutineHead.FindStringSubmatch(block)
		at := strings.LastIndex(block, "created by ")
		if i == 0 || head == nil || at < 0 {
			continue // the one that asks comes first; that of main has no creator
		}
		creator := strings.Fields(block[at+len("created by "):])
		if strings.HasPrefix(creator[0], "testing.") {
			continue
		}
		// creator is: function, "in goroutine N", file:line, +0x1a
		lines = append(lines, fmt.Sprintf("goroutine %s created by %s at %s", head[1], creator[0], creator[len(creator)-2]))
	}
	return lines, nil
}
