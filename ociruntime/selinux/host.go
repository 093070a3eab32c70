package selinux

import (
	"cmp"
	"fmt"
	"strings"

	policy "github.com/opencontainers/selinux/go-selinux"
	selinuxlabel "github.com/opencontainers/selinux/go-selinux/label"
)

// PrivilegedType is the type of processes that the policy does not confine though they are containers.
const PrivilegedType = "spc_t"

// baseLevel is the level of what has no categories.
const baseLevel = "s0"

// label is one in its parts.
type label struct{ user, role, kind, level string }

func (l label) String() string { return strings.Join([]string{l.user, l.role, l.kind, l.level}, ":") }

// parse takes a label apart. A level may have colons.
func parse(text string) (c label, ok bool) {
	parts := strings.SplitN(text, ":", 4)
	if len(parts) != 4 {
		return label{}, false
	}
	return label{parts[0], parts[1], parts[2], parts[3]}, true
}

// Host is what the policy of a node says of containers.
type Host struct {
	process, file label
	privileged    string             // "" if the policy does not have the type
	check         func(string) error // asks the kernel
}

// Detect returns nil without an error if the kernel has no SELinux, or it is disabled. A policy that does not know
// containers is an error.
func Detect() (*Host, error) {
	if !policy.GetEnabled() {
		return nil, nil
	}
	process, file, err := selinuxlabel.InitLabels(nil)
	if err != nil {
		return nil, fmt.Errorf("read the policy's labels for containers: %w", err)
	}
	policy.ReleaseLabel(process) // only the level that came with it is given back: ours are dealt by pod
	return NewHost(process, file, policy.SecurityCheckContext)
}

// NewHost makes a Host of the policy's labels for containers, "" where it says nothing, and of what asks the kernel
// whether a label is one of the policy's.
func NewHost(process, file string, check func(string) error) (*Host, error) {
	h := &Host{check: check}
	for _, l := range []struct {
		into        *label
		text, usual string
	}{{&h.process, process, "system_u:system_r:container_t:s0"}, {&h.file, file, "system_u:object_r:container_file_t:s0"}} {
		text := cmp.Or(l.text, l.usual)
		c, ok := parse(text)
		if !ok {
			return nil, fmt.Errorf("the policy's label for containers is %q, which has no level", text)
		}
		if err := h.allow(c); err != nil {
			return nil, fmt.Errorf("the policy does not know containers: %w", err)
		}
		*l.into = c
	}
	privileged := h.process
	privileged.kind, privileged.level = PrivilegedType, baseLevel
	if h.allow(privileged) == nil {
		h.privileged = privileged.String()
	}
	return h, nil
}

// allow asks the kernel whether a label is one of the policy's.
func (h *Host) allow(c label) error {
	if err := h.check(c.String()); err != nil {
		return fmt.Errorf("label %s: %w", c, err)
	}
	return nil
}

// Options are what a request says of a label; empty parts are the policy's, an empty level is s0.
type Options struct{ User, Role, Type, Level string }

// Process is the label of a confined process.
func (h *Host) Process(o Options) (string, error) {
	c := label{cmp.Or(o.User, h.process.user), cmp.Or(o.Role, h.process.role), cmp.Or(o.Type, h.process.kind), cmp.Or(o.Level, baseLevel)}
	return c.String(), h.allow(c)
}

// Privileged is the label of a process that is not confined; "" leaves it to the policy.
func (h *Host) Privileged() string { return h.privileged }

// File is the label of files that processes of a level own.
func (h *Host) File(o Options) (string, error) {
	c := label{cmp.Or(o.User, h.file.user), h.file.role, h.file.kind, cmp.Or(o.Level, baseLevel)}
	return c.String(), h.allow(c)
}

// Separated says whether a process with this label may only touch files of its level.
func Separated(process string) bool {
	c, ok := parse(process)
	return ok && c.kind != PrivilegedType
}
