package cgroup

import (
	"path"
	"slices"
)

// FindParent finds the CRI cgroup parent of a pod of which only ids are known, its own and those of its containers, by where
// their leaves are; "" if there are none. Leaves in the group not, which is no pod's, do not tell.
func (hs *Hierarchies) FindParent(id string, containerIDs []string, not string) (string, error) {
	h := hs.watch
	for todo := []string{""}; len(todo) > 0; todo = todo[1:] {
		dir := todo[0]
		names, err := h.children(dir)
		if gone(err) {
			continue
		}
		if err != nil {
			return "", err
		}
		for _, name := range names {
			switch {
			case name == scopeUnit(id):
				return sliceAt(dir), nil
			case "/"+dir != not && (name == id || slices.Contains(containerIDs, name)):
				return "/" + dir, nil
			}
			todo = append(todo, path.Join(dir, name))
		}
	}
	return "", nil
}
