package cgroup

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
)

// An Undo knows what the files said that an Update has written.
type Undo struct {
	g     *Group
	files []earlier
}

// earlier is what to write to have one file as it was.
type earlier struct {
	h        *hierarchy
	settings []setting
}

// Undo puts back what the Update changed, the last first: in that order no limit in between is refused that was not before.
// It goes on after an error.
func (u *Undo) Undo() error {
	defer atomic.AddUint32(&u.g.changes, 1)
	var errs []error
	for i := len(u.files) - 1; i >= 0; i-- {
		f := u.files[i]
		errs = append(errs, f.h.set(u.g.path, f.settings, nil))
	}
	u.files = nil
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("take back the limits of cgroup /%s: %w", u.g.path, err)
	}
	return nil
}

// before notes what a file says that is about to be written. What cannot be read (memory.reclaim) changes no limit.
func (u *Undo) before(h *hierarchy, s setting) {
	if text, err := h.read(u.g.path, s.file); err == nil {
		u.files = append(u.files, earlier{h: h, settings: s.backTo(strings.TrimSuffix(text, "\n"))})
	}
}

// backTo are the writes that make s.file say again what text says, after s was written.
func (s setting) backTo(text string) []setting {
	back := func(values ...string) (all []setting) {
		for _, v := range values {
			all = append(all, setting{what: s.what, file: s.file, value: v})
		}
		return all
	}
	device, _, ofDevice := strings.Cut(s.value, " ")
	switch {
	case ofDevice && strings.Contains(device, ":"):
		return back(deviceLine(s.file, device, text))
	case s.file == "memory.oom_control":
		off, _ := parseKeyed(text, "oom_kill_disable")
		return back(fmt.Sprint(off))
	case strings.HasSuffix(s.file, ".weight") && strings.HasPrefix(text, "default "): // of block devices: the line that is not of one
		text, _, _ = strings.Cut(strings.TrimPrefix(text, "default "), "\n")
		return back(text)
	case s.file == "cpu.weight" && text == "0": // of an idle group, whose weight is not for writing
		return nil
	case text == "": // an empty write is none
		return back("\n")
	}
	return back(strings.Split(text, "\n")...)
}

// deviceLine is what text says of a device, or what stands for nothing.
func deviceLine(file, device, text string) string {
	for line := range strings.SplitSeq(text, "\n") {
		if strings.HasPrefix(line, device+" ") {
			return line
		}
	}
	switch file {
	case "io.max":
		return device + " rbps=max wbps=max riops=max wiops=max"
	case "io.weight":
		return device + " default"
	case "io.latency":
		return device + " target=0"
	}
	return device + " 0"
}
