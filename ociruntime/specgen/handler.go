package specgen

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/ociruntime/rlimit"
	"github.com/criserver/criserver/ociruntime/seccomp"
)

// Handler is what a runtime handler gives its pods and containers where the request does not say. It is plain data, and
// kept in records: a field may be added, none may change its meaning.
type Handler struct {
	Capabilities         []string            `json:"capabilities"`              // that a container begins with, before it adds and drops
	Rlimits              []specs.POSIXRlimit `json:"rlimits,omitempty"`         // of every container
	Env                  []string            `json:"env,omitempty"`             // KEY=value, below the image's and the request's
	DeviceOwnership      bool                `json:"deviceOwnership,omitempty"` // devices asked for belong to run_as_user and run_as_group
	UnprivilegedPorts    bool                `json:"unprivilegedPorts"`         // in a network of the pod's own
	UnprivilegedICMP     bool                `json:"unprivilegedICMP"`          // likewise, and without a user namespace
	PrivilegedDevices    PrivilegedDevices   `json:"privilegedDevices"`
	PidsLimit            int64               `json:"pidsLimit,omitempty"`      // of each container; 0: none
	SeccompUnset         string              `json:"seccompUnset"`             // for a request without a profile, as in the deprecated fields: runtime/default, unconfined or localhost/<path>
	SeccompDefault       string              `json:"seccompDefault,omitempty"` // file of the profile of RuntimeDefault; "": seccomp.DefaultProfile
	ShmSize              int64               `json:"shmSize,omitempty"`        // bytes of /dev/shm; 0: ociruntime's default
	CgroupWritable       bool                `json:"cgroupWritable,omitempty"` // on cgroup v2: containers may make groups in theirs
	PodAnnotations       []string            `json:"podAnnotations,omitempty"` // patterns of path.Match: which the spec gets
	ContainerAnnotations []string            `json:"containerAnnotations,omitempty"`
	AllowedAnnotations   []string            `json:"allowedAnnotations,omitempty"` // of PeerAnnotations: which count
	AnnotationDevices    []string            `json:"annotationDevices,omitempty"`  // which the annotation for devices may name
}

// PrivilegedDevices says which devices a privileged container gets.
type PrivilegedDevices string

// Values of PrivilegedDevices.
const (
	PrivilegedHost    PrivilegedDevices = "host"    // all of the host are there, and may be used
	PrivilegedAllowed PrivilegedDevices = "allowed" // none of the host is there, but any may be made and used
	PrivilegedNone    PrivilegedDevices = "none"    // as in any container
)

// DefaultHandler is a handler without configuration.
func DefaultHandler() Handler {
	return Handler{
		Capabilities: slices.Clone(defaultCapabilities), Rlimits: defaultRlimits(), UnprivilegedPorts: true, UnprivilegedICMP: true,
		PrivilegedDevices: PrivilegedHost, SeccompUnset: unconfined, AnnotationDevices: []string{"/dev/fuse", "/dev/net/tun"},
	}
}

// defaultRlimits: programs that go through all descriptors up to the soft limit are slow with a large one, and what a
// daemon raised for itself is not for its children.
func defaultRlimits() []specs.POSIXRlimit {
	return []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 524288}}
}

// Check reports what is wrong with the values of h that a request could not be blamed for: one line each, which begins
// with the name that the configuration has for the field. It reads the seccomp profiles.
func (h *Handler) Check() []string {
	var faults []string
	add := func(key, format string, args ...any) { faults = append(faults, key+": "+fmt.Sprintf(format, args...)) }
	if _, err := capabilityNames("capabilities", h.Capabilities); err != nil {
		faults = append(faults, err.Error())
	}
	for _, v := range h.Env {
		if key, _, ok := strings.Cut(v, "="); !ok || key == "" || strings.ContainsRune(v, 0) {
			add("env", "%q is not of the form KEY=value", v)
		}
	}
	switch h.PrivilegedDevices {
	case PrivilegedHost, PrivilegedAllowed, PrivilegedNone:
	default:
		add("privileged_devices", "%q is not one of host, allowed, none", h.PrivilegedDevices)
	}
	if h.PidsLimit < 0 {
		add("pids_limit", "%d is negative", h.PidsLimit)
	}
	if err := checkSeccompUnset(h.SeccompUnset); err != nil {
		add("seccomp_unset", "%v", err)
	}
	if h.SeccompDefault != "" {
		if _, err := loadSeccomp(h.SeccompDefault); err != nil {
			add("seccomp_default", "%v", err)
		}
	}
	for _, list := range []struct {
		key      string
		patterns []string
	}{{"pod_annotations", h.PodAnnotations}, {"container_annotations", h.ContainerAnnotations}} {
		for _, p := range list.patterns {
			if _, err := path.Match(p, ""); err != nil {
				add(list.key, "%q: %v", p, err)
			}
		}
	}
	for _, name := range h.AllowedAnnotations {
		if !slices.ContainsFunc(PeerAnnotations, func(a PeerAnnotation) bool { return a.Name == name || a.Older == name }) {
			add("allowed_annotations", "%q is not one that criserver knows", name)
		}
	}
	for _, d := range h.AnnotationDevices {
		if !isAbsolute(d) {
			add("annotation_devices", "%q is not an absolute path", d)
		}
	}
	return faults
}

func checkSeccompUnset(value string) error {
	file, isLocal := strings.CutPrefix(value, localhostPrefix)
	switch {
	case value == unconfined || value == runtimeDefault:
		return nil
	case !isLocal:
		return fmt.Errorf("%q is not one of %s, %s, %s<path>", value, unconfined, runtimeDefault, localhostPrefix)
	}
	_, err := loadSeccomp(file)
	return err
}

func loadSeccomp(file string, caps ...string) (*specs.LinuxSeccomp, error) {
	if !path.IsAbs(file) {
		return nil, fmt.Errorf("%q is not an absolute path", file)
	}
	return seccomp.LoadProfile(file, caps...)
}

// passedOn are the annotations of pod and container that the handler lets through to the spec.
func (g *generator) passedOn() map[string]string {
	all := make(map[string]string)
	for _, from := range []struct {
		annotations map[string]string
		patterns    []string
	}{{g.Pod.GetAnnotations(), g.Handler.PodAnnotations}, {g.Container.GetAnnotations(), g.Handler.ContainerAnnotations}} {
		for key, value := range from.annotations {
			if slices.ContainsFunc(from.patterns, func(p string) bool { ok, _ := path.Match(p, key); return ok }) { // Check has seen them
				all[key] = value
			}
		}
	}
	return all
}

// rlimits are the handler's, as far as criserver can give them.
func (g *generator) rlimits() []specs.POSIXRlimit {
	ceiling := g.Host.Ceiling
	if len(g.spec.Linux.UIDMappings) > 0 {
		ceiling = g.Host.CeilingUserNS
	}
	clamped, _ := rlimit.Clamp(g.Handler.Rlimits, ceiling)
	return clamped
}

// ownLimits adds those limits of the container's cgroup that are not the request's.
func (g *generator) ownLimits() error {
	limits := g.spec.Linux.Resources
	if n := g.Handler.PidsLimit; n > 0 {
		limits.Pids = &specs.LinuxPids{Limit: &n}
	}
	unified, err := g.unifiedAnnotation()
	if err != nil || unified == nil {
		return err
	}
	if limits.Unified == nil {
		limits.Unified = make(map[string]string)
	}
	maps.Copy(limits.Unified, unified)
	return nil
}
