package mount

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// entry is what a line of a mount table says of one mount.
type entry struct {
	device, root, point string
	copied              bool // a recursive bind copies it
}

// Below lists what a mount table (a mountinfo file) has mounted at f and below it, to be compared with other tables: path
// below f, device and root of each. What a recursive bind leaves out is not in the list.
func Below(table string, f *os.File) ([]string, error) {
	id, err := mountID(f)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(table)
	if err != nil {
		return nil, err
	}
	mounts, children := map[string]entry{}, map[string][]string{}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		end := slices.Index(fields, "-")
		if end < 6 || end+1 >= len(fields) {
			continue
		}
		otherNamespace := fields[end+1] == "nsfs" && strings.HasPrefix(fields[3], "mnt:")
		mounts[fields[0]] = entry{fields[2], fields[3], unescape(fields[4]), !otherNamespace && !slices.Contains(fields[6:end], "unbindable")}
		children[fields[1]] = append(children[fields[1]], fields[0])
	}
	if _, ok := mounts[id]; !ok {
		return nil, fmt.Errorf("mount %s of %s is not in the mount table", id, f.Name())
	}
	path, err := os.Readlink(fmt.Sprintf("/proc/thread-self/fd/%d", f.Fd())) // also in another mount namespace as that has it
	if err != nil {
		return nil, err
	}
	var list []string
	var walk func(id string)
	walk = func(id string) {
		for _, child := range children[id] {
			m := mounts[child]
			if below, ok := strings.CutPrefix(m.point, path); m.copied && ok && (below == "" || path == "/" || below[0] == '/') {
				list = append(list, fmt.Sprintf("%s %s %s", strings.TrimPrefix(below, "/"), m.device, m.root))
				walk(child)
			}
		}
	}
	walk(id)
	slices.Sort(list)
	return list, nil
}
