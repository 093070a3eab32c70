package nri

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/ociruntime/limits"
)

// Adjustment is what plugins want changed of a container that is being made. nil: nothing.
type Adjustment struct{ asked *api.ContainerAdjustment }

// Host resolves what an adjustment names.
type Host struct {
	CDI     func(spec *specs.Spec, devices []string) error  // nil: there are no such devices
	BlockIO func(class string) (*specs.LinuxBlockIO, error) // "": none
	Sysctls func(map[string]string) error                   // refuses what is not the pod's own
}

// Apply changes spec, which shares slices and maps with others. Its errors name the field. What the runtime cannot do of
// what is in the spec then, it refuses itself.
func (a *Adjustment) Apply(spec *specs.Spec, host Host) error {
	if a == nil || a.asked == nil {
		return nil
	}
	asked, linux := a.asked, a.asked.GetLinux()
	spec.Annotations = edited(spec.Annotations, asked.GetAnnotations())
	spec.Process.Env = environment(spec.Process.Env, asked.GetEnv())
	if len(asked.GetArgs()) > 0 {
		spec.Process.Args = asked.GetArgs()
	}
	addHooks(spec, asked.GetHooks())
	if err := injectCDI(spec, asked.GetCDIDevices(), host); err != nil {
		return err
	}
	addDevices(spec, linux.GetDevices())
	if err := adjustLinux(spec, linux); err != nil {
		return err
	}
	spec.Linux.Sysctl = edited(spec.Linux.Sysctl, linux.GetSysctl())
	if err := host.Sysctls(spec.Linux.Sysctl); err != nil {
		return err
	}
	if err := adjustResources(spec, linux.GetResources(), host); err != nil {
		return err
	}
	adjustRDT(spec, linux)
	adjustMounts(spec, asked.GetMounts())
	for _, l := range asked.GetRlimits() {
		spec.Process.Rlimits = replaced(spec.Process.Rlimits, specs.POSIXRlimit{Type: l.Type, Hard: l.Hard, Soft: l.Soft},
			func(r specs.POSIXRlimit) string { return r.Type })
	}
	return nil
}

// edited is m without what is marked for removal, and with the rest of changes.
func edited(m, changes map[string]string) map[string]string {
	if len(changes) == 0 {
		return m
	}
	next := maps.Clone(m)
	if next == nil {
		next = map[string]string{}
	}
	for k, v := range changes {
		if key, remove := api.IsMarkedForRemoval(k); remove {
			delete(next, key)
		} else {
			next[k] = v
		}
	}
	return next
}

// replaced is all with one in the place of what has the same key, or at the end.
func replaced[T any](all []T, one T, key func(T) string) []T {
	next := slices.Clone(all)
	if i := slices.IndexFunc(next, func(o T) bool { return key(o) == key(one) }); i >= 0 {
		next[i] = one
		return next
	}
	return append(next, one)
}

// removed is all without what has a key.
func removed[T any](all []T, key string, of func(T) string) []T {
	return slices.DeleteFunc(slices.Clone(all), func(o T) bool { return of(o) == key })
}

func environment(env []string, changes []*api.KeyValue) []string {
	for _, c := range changes {
		if key, remove := c.IsMarkedForRemoval(); remove {
			env = removed(env, key, variable)
		} else {
			env = replaced(env, c.Key+"="+c.Value, variable)
		}
	}
	return env
}

func addHooks(spec *specs.Spec, hooks *api.Hooks) {
	if hooks == nil || hooks.Hooks() == nil {
		return
	}
	next := specs.Hooks{}
	if spec.Hooks != nil {
		next = *spec.Hooks
	}
	for _, kind := range []struct {
		to    *[]specs.Hook
		asked []*api.Hook
		//lint:ignore SA1019 it still has to run
	}{{&next.Prestart, hooks.Prestart}, {&next.CreateRuntime, hooks.CreateRuntime}, {&next.CreateContainer, hooks.CreateContainer},
		{&next.StartContainer, hooks.StartContainer}, {&next.Poststart, hooks.Poststart}, {&next.Poststop, hooks.Poststop}} {
		for _, h := range kind.asked {
			*kind.to = append(slices.Clip(*kind.to), h.ToOCI())
		}
	}
	spec.Hooks = &next
}

func injectCDI(spec *specs.Spec, devices []*api.CDIDevice, host Host) error {
	var names []string
	for _, d := range devices {
		names = append(names, d.Name)
	}
	switch {
	case len(names) == 0:
		return nil
	case host.CDI == nil:
		return fmt.Errorf("CDI_devices: %s asked for, but CDI is not configured", names[0])
	}
	if err := host.CDI(spec, names); err != nil {
		return fmt.Errorf("CDI_devices: %w", err)
	}
	return nil
}

// addDevices adds nodes, and the rules that let the container use them.
func addDevices(spec *specs.Spec, devices []*api.LinuxDevice) {
	node := func(d specs.LinuxDevice) string { return path.Clean(d.Path) }
	for _, d := range devices {
		if key, remove := d.IsMarkedForRemoval(); remove {
			spec.Linux.Devices = removed(spec.Linux.Devices, path.Clean(key), node)
			continue
		}
		spec.Linux.Devices = replaced(spec.Linux.Devices, d.ToOCI(), node)
		addRules(spec, specs.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: &d.Major, Minor: &d.Minor, Access: d.AccessString()})
	}
}

func addRules(spec *specs.Spec, rules ...specs.LinuxDeviceCgroup) {
	next := specs.LinuxResources{}
	if spec.Linux.Resources != nil {
		next = *spec.Linux.Resources
	}
	next.Devices = append(slices.Clip(next.Devices), rules...)
	spec.Linux.Resources = &next
}

// adjustLinux does what replaces one value.
func adjustLinux(spec *specs.Spec, asked *api.LinuxContainerAdjustment) error {
	if p := asked.GetCgroupsPath(); p != "" && p != spec.Linux.CgroupsPath {
		return fmt.Errorf("linux.cgroups_path: %s: a container is in the cgroup of its pod", p)
	}
	if score := asked.GetOomScoreAdj(); score != nil {
		spec.Process.OOMScoreAdj = new(int(score.Value))
	}
	if prio := asked.GetIoPriority(); prio != nil {
		if spec.Process.IOPriority = prio.ToOCI(); spec.Process.IOPriority.Class == "" {
			spec.Process.IOPriority = nil
		}
	}
	if s := asked.GetScheduler(); s != nil {
		if spec.Process.Scheduler = s.ToOCI(); spec.Process.Scheduler.Policy == "" {
			spec.Process.Scheduler = nil
		}
	}
	if s := asked.GetSeccompPolicy(); s != nil {
		spec.Linux.Seccomp = seccomp(s)
	}
	if m := asked.GetMemoryPolicy(); m != nil {
		if spec.Linux.MemoryPolicy = m.ToOCI(); spec.Linux.MemoryPolicy.Mode == "" {
			spec.Linux.MemoryPolicy = nil
		}
	}
	for name, d := range asked.GetNetDevices() {
		next := maps.Clone(spec.Linux.NetDevices)
		if key, remove := api.IsMarkedForRemoval(name); remove {
			delete(next, key)
		} else {
			if next == nil {
				next = map[string]specs.LinuxNetDevice{}
			}
			next[name] = d.ToOCI()
		}
		spec.Linux.NetDevices = next
	}
	return adjustNamespaces(spec, asked.GetNamespaces())
}

// adjustNamespaces: all but the cgroup namespace are the pod's, or follow from what the kubelet asks for.
func adjustNamespaces(spec *specs.Spec, asked []*api.LinuxNamespace) error {
	kind := func(n specs.LinuxNamespace) string { return string(n.Type) }
	for _, n := range asked {
		key, remove := n.IsMarkedForRemoval()
		switch {
		case key != string(specs.CgroupNamespace):
			return fmt.Errorf("linux.namespaces: %s: the pod decides on it", key)
		case remove:
			spec.Linux.Namespaces = removed(spec.Linux.Namespaces, key, kind)
		case n.Path != "":
			return fmt.Errorf("linux.namespaces: %s: a container has one of its own or the host's, not that of %s", key, n.Path)
		default:
			spec.Linux.Namespaces = replaced(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace}, kind)
		}
	}
	return nil
}

func seccomp(s *api.LinuxSeccomp) *specs.LinuxSeccomp {
	out := &specs.LinuxSeccomp{DefaultAction: specs.LinuxSeccompAction(s.DefaultAction), ListenerPath: s.ListenerPath,
		ListenerMetadata: s.ListenerMetadata, Syscalls: api.ToOCILinuxSyscalls(s.Syscalls)}
	if s.DefaultErrno != nil {
		out.DefaultErrnoRet = new(uint(s.DefaultErrno.Value))
	}
	for _, arch := range s.Architectures {
		out.Architectures = append(out.Architectures, specs.Arch(arch))
	}
	for _, flag := range s.Flags {
		out.Flags = append(out.Flags, specs.LinuxSeccompFlag(flag))
	}
	return out
}

// adjustResources changes limits as an update does; see package limits.
func adjustResources(spec *specs.Spec, asked *api.LinuxResources, host Host) error {
	if asked == nil {
		return nil
	}
	change := asked.ToOCI()
	if m := asked.GetMemory(); m.GetKernel() != nil {
		return fmt.Errorf("linux.resources.memory.kernel: %d: kernels do not limit it any more", m.Kernel.Value)
	}
	_, next, err := limits.Plan(spec.Linux.Resources, change)
	if err != nil {
		return fmt.Errorf("linux.resources.memory.swap: %w", err)
	}
	if class := asked.GetBlockioClass(); class != nil {
		if next.BlockIO, err = host.BlockIO(class.Value); err != nil {
			return fmt.Errorf("linux.resources.blockio_class: %w", err)
		}
	}
	if was := spec.Linux.Resources; was != nil {
		next.Devices = was.Devices
	}
	spec.Linux.Resources = next
	addRules(spec, change.Devices...)
	return nil
}

// adjustRDT only says what is asked for.
func adjustRDT(spec *specs.Spec, asked *api.LinuxContainerAdjustment) {
	if class := asked.GetResources().GetRdtClass(); class != nil {
		spec.Linux.IntelRdt = nil
		if class.Value != "" {
			spec.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: class.Value}
		}
	}
	rdt := asked.GetRdt()
	if rdt.GetRemove() {
		spec.Linux.IntelRdt = nil
	}
	if rdt.GetClosId() == nil && rdt.GetSchemata() == nil && rdt.GetEnableMonitoring() == nil {
		return
	}
	next := &specs.LinuxIntelRdt{ClosID: rdt.GetClosId().GetValue(), Schemata: rdt.GetSchemata().GetValue(), EnableMonitoring: rdt.GetEnableMonitoring().GetValue()}
	if was := spec.Linux.IntelRdt; was != nil {
		next.ClosID = cmp.Or(next.ClosID, was.ClosID)
	}
	spec.Linux.IntelRdt = next
}

// adjustMounts keeps parents before what is below them. Mounts that travel do so through the root.
func adjustMounts(spec *specs.Spec, asked []*api.Mount) {
	if len(asked) == 0 {
		return
	}
	place := func(m specs.Mount) string { return path.Clean("/" + m.Destination) }
	for _, m := range asked {
		key, remove := m.IsMarkedForRemoval()
		spec.Mounts = removed(spec.Mounts, path.Clean("/"+key), place)
		if remove {
			continue
		}
		propagation := ""
		spec.Mounts = append(spec.Mounts, m.ToOCI(&propagation))
		if root := &spec.Linux.RootfsPropagation; propagation == "rshared" || propagation == "rslave" && !strings.HasSuffix(*root, "shared") {
			*root = propagation
		}
	}
	depth := func(m specs.Mount) int { return strings.Count(strings.TrimSuffix(place(m), "/"), "/") }
	slices.SortStableFunc(spec.Mounts, func(a, b specs.Mount) int { return cmp.Compare(depth(a), depth(b)) })
}
