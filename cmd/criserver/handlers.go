package main

import (
	"fmt"
	"maps"
	"regexp"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/cri"
	"github.com/criserver/criserver/ociruntime/kernel"
	"github.com/criserver/criserver/ociruntime/rlimit"
	"github.com/criserver/criserver/ociruntime/specgen"
)

// handlerOfAll is the handler of pods that name none; it has the empty name too.
const handlerOfAll = "default"

// handlerName is what Kubernetes accepts in a RuntimeClass.
var handlerName = regexp.MustCompile(`^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$`)

// Handler configures a runtime handler: what its pods and containers get where the request does not say.
type Handler struct {
	Capabilities         []string `toml:"capabilities" comment:"Capabilities that a container begins with, before it adds and drops."`
	Ulimits              []string `toml:"ulimits" comment:"Limits of processes, soft and hard: nofile=1024:524288, core=0, memlock=unlimited."`
	Env                  []string `toml:"env" comment:"Environment, KEY=value, below that of images and requests."`
	DeviceOwnership      bool     `toml:"device_ownership_from_security_context" comment:"Devices that a container asks for belong to its run_as_user and run_as_group."`
	UnprivilegedPorts    bool     `toml:"unprivileged_ports" comment:"Whether processes without privileges may listen on ports below 1024. Not with the host's network."`
	UnprivilegedICMP     bool     `toml:"unprivileged_icmp" comment:"Whether they may send pings. Not with the host's network or in user namespaces."`
	PrivilegedDevices    string   `toml:"privileged_devices" comment:"What privileged containers get of the host's devices. host: all; allowed: none, but any may be made and used; none: none."`
	PidsLimit            int64    `toml:"pids_limit" comment:"Processes and threads of each container; 0: no limit."`
	SeccompUnset         string   `toml:"seccomp_unset" comment:"Profile of containers that name none: unconfined, runtime/default or localhost//path."`
	SeccompDefault       string   `toml:"seccomp_default" comment:"File of the profile runtime/default. Empty: criserver's own."`
	ShmSize              string   `toml:"shm_size" comment:"Size of a pod's /dev/shm, such as 64Mi."`
	CgroupWritable       bool     `toml:"cgroup_writable" comment:"Whether containers may make groups below theirs. Only with cgroup v2."`
	PodAnnotations       []string `toml:"pod_annotations" comment:"Annotations of pods that OCI hooks and NRI plugins see at containers; * stands for anything but /."`
	ContainerAnnotations []string `toml:"container_annotations" comment:"The same for annotations of containers."`
	AllowedAnnotations   []string `toml:"allowed_annotations" comment:"CRI-O's annotations that pods may use: shm-size.crio.io, umask.crio.io, unified-cgroup.crio.io, devices.crio.io, cgroup2-mount-hierarchy-rw.crio.io."`
	AnnotationDevices    []string `toml:"annotation_devices" comment:"Devices that pods may ask for with devices.crio.io."`
}

// defaultHandlerConfig is a handler without configuration, as it would be written.
func defaultHandlerConfig() Handler {
	h := specgen.DefaultHandler()
	return Handler{
		Capabilities: h.Capabilities, Ulimits: []string{"nofile=1024:524288"}, Env: []string{}, UnprivilegedPorts: h.UnprivilegedPorts,
		UnprivilegedICMP: h.UnprivilegedICMP, PrivilegedDevices: string(h.PrivilegedDevices), SeccompUnset: h.SeccompUnset, ShmSize: "64Mi",
		PodAnnotations: []string{}, ContainerAnnotations: []string{}, AllowedAnnotations: []string{}, AnnotationDevices: h.AnnotationDevices,
	}
}

// translate returns the handler in the terms of pods and containers, and everything that is wrong with it.
func (h Handler) translate() (*specgen.Handler, []string) {
	made := &specgen.Handler{
		Capabilities: h.Capabilities, Env: h.Env, DeviceOwnership: h.DeviceOwnership, UnprivilegedPorts: h.UnprivilegedPorts,
		UnprivilegedICMP: h.UnprivilegedICMP, PrivilegedDevices: specgen.PrivilegedDevices(h.PrivilegedDevices), PidsLimit: h.PidsLimit,
		SeccompUnset: h.SeccompUnset, SeccompDefault: h.SeccompDefault, CgroupWritable: h.CgroupWritable, PodAnnotations: h.PodAnnotations,
		ContainerAnnotations: h.ContainerAnnotations, AllowedAnnotations: h.AllowedAnnotations, AnnotationDevices: h.AnnotationDevices,
	}
	var faults []string
	for _, text := range h.Ulimits {
		l, err := rlimit.Parse(text)
		switch same := func(o specs.POSIXRlimit) bool { return o.Type == l.Type }; {
		case err != nil:
			faults = append(faults, "ulimits: "+err.Error())
		case slices.ContainsFunc(made.Rlimits, same):
			faults = append(faults, fmt.Sprintf("ulimits: %q is the second of its kind", text))
		default:
			made.Rlimits = append(made.Rlimits, l)
		}
	}
	var err error
	if made.ShmSize, err = specgen.ParseSize(h.ShmSize); err != nil {
		faults = append(faults, "shm_size: "+err.Error())
	}
	return made, append(faults, made.Check()...)
}

func checkHandlers(all map[string]Handler, f *faults) {
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if !handlerName.MatchString(name) {
			f.add("handlers", "%q is not the name of a handler: lower-case letters, digits, - and .", name)
		}
		_, wrong := all[name].translate()
		for _, fault := range wrong { // begins with the key
			*f = append(*f, "handlers."+name+"."+fault)
		}
	}
}

// handlers are those that validate has passed, by the names by which requests ask for them.
func (c *Config) handlers() map[string]*specgen.Handler {
	all := make(map[string]*specgen.Handler, len(c.Handlers)+1)
	for name, h := range c.Handlers {
		all[name], _ = h.translate()
	}
	all[""] = all[handlerOfAll]
	return all
}

// shownHandlers are the same for Status, by name, with what this kernel lets them do.
func (c *Config) shownHandlers() []cri.Handler {
	var all []cri.Handler
	for _, name := range append([]string{""}, slices.Sorted(maps.Keys(c.Handlers))...) {
		all = append(all, cri.Handler{Name: name, RecursiveReadOnly: kernel.MountSetattr.Has(),
			UserNamespaces: userNamespaces()})
	}
	return all
}

// userNamespaces says whether this kernel lets pods have user namespaces, with roots that are mapped for them.
func userNamespaces() bool { return kernel.UserNamespaces.Has() && kernel.OverlayIDMappedLower.Has() }
