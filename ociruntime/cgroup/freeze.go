package cgroup

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// freezers are the hierarchies that can freeze: v1's freezer and cgroup2.
func (hs *Hierarchies) freezers() []*hierarchy {
	var all []*hierarchy
	if h := hs.byController["freezer"]; h != nil && !h.Unified {
		all = append(all, h)
	}
	if hs.unified != nil {
		all = append(all, hs.unified)
	}
	return all
}

// Frozen says whether somebody has frozen g or a group above it. A group that is gone is not.
func (g *Group) Frozen() (bool, error) {
	for _, h := range g.hs.freezers() {
		if frozen, err := h.dialect.frozen(h, g.dir(h)); frozen || ignoreGone(err) != nil {
			return frozen, err
		}
	}
	return false, nil
}

// Thaw thaws g, everything below it and the pod around it: with the pod its pause is frozen, which alone can tell how a
// process has ended. What is above the pod is left as it is.
func (g *Group) Thaw() error {
	var errs []error
	for _, h := range g.hs.freezers() {
		for _, dir := range g.around() {
			errs = append(errs, thawOne(h, dir))
		}
		if !g.lodges(h) {
			errs = append(errs, thawTree(h, g.dir(h)))
		}
	}
	return errors.Join(errs...)
}

// around is the pod's cgroup: the one above g, and with systemd the slice that the pod's scope is in.
func (g *Group) around() []string {
	dir := above(g.path)
	if strings.HasSuffix(dir, ".scope") {
		return []string{above(dir), dir}
	}
	return []string{dir}
}

// thawTree thaws dir and everything below, as far as somebody has frozen it.
func thawTree(h *hierarchy, dir string) error {
	if err := thawOne(h, dir); err != nil {
		return err
	}
	below, err := h.children(dir)
	if err != nil {
		return ignoreGone(err)
	}
	for _, name := range below {
		if err := thawTree(h, path.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// thawOne thaws dir if it is frozen for its own sake. The root cannot be, and has no such file.
func thawOne(h *hierarchy, dir string) error {
	self, err := h.dialect.frozenItself(h, dir)
	if err == nil && self {
		err = h.dialect.freeze(h, dir, false)
	}
	return ignoreGone(err)
}

// freezeV1 is the v1 dialect's freeze; a group that was FREEZING stays so until every process has stopped.
func freezeV1(h *hierarchy, dir string, freeze bool) error {
	value := map[bool]string{true: "FROZEN", false: "THAWED"}[freeze]
	if err := h.write(dir, "freezer.state", value); err != nil {
		return fmt.Errorf("set freezer state %s in %s: %w", value, h.abs(dir, "freezer.state"), err)
	}
	return nil
}

func frozenV1(h *hierarchy, dir string) (bool, error) {
	text, err := h.read(dir, "freezer.state")
	return strings.TrimSpace(text) == "FROZEN", err
}

func frozenItselfV1(h *hierarchy, dir string) (bool, error) {
	text, err := h.read(dir, "freezer.self_freezing")
	return strings.TrimSpace(text) == "1", err
}

// freezeV2 is the v2 dialect's freeze (cgroup.freeze, Linux 5.2).
func freezeV2(h *hierarchy, dir string, freeze bool) error {
	value := map[bool]string{true: "1", false: "0"}[freeze]
	if err := h.write(dir, "cgroup.freeze", value); err != nil {
		return fmt.Errorf("set freeze %s in %s: %w", value, h.abs(dir, "cgroup.freeze"), err)
	}
	return nil
}

func frozenV2(h *hierarchy, dir string) (bool, error) {
	text, err := h.read(dir, "cgroup.events")
	if err != nil {
		return false, err
	}
	frozen, err := parseKeyed(text, "frozen")
	return frozen == 1, err
}

func frozenItselfV2(h *hierarchy, dir string) (bool, error) {
	text, err := h.read(dir, "cgroup.freeze")
	return strings.TrimSpace(text) == "1", err
}
