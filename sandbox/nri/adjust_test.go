package nri

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// before is a spec of which every part that can be adjusted has something.
func before() *specs.Spec {
	limit, shares := int64(1<<20), uint64(2)
	return &specs.Spec{
		Process: &specs.Process{Args: []string{"sh"}, Env: []string{"PATH=/bin", "ODD", "A=1"}, OOMScoreAdj: new(7),
			Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 2}}},
		Annotations: map[string]string{"keep": "1", "drop": "2"},
		Mounts:      []specs.Mount{{Destination: "/proc", Type: "proc"}, {Destination: "/data", Source: "/srv"}, {Destination: "/data/set", Source: "/set"}},
		Hooks:       &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/first"}}},
		Linux: &specs.Linux{
			CgroupsPath: "/pod/c", Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.CgroupNamespace}},
			Devices:    []specs.LinuxDevice{{Path: "/dev/a", Type: "c", Major: 1, Minor: 1}},
			Resources:  &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit}, CPU: &specs.LinuxCPU{Shares: &shares, Cpus: "0"}, Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}}},
			Sysctl:     map[string]string{"net.b": "1"},
			Seccomp:    &specs.LinuxSeccomp{DefaultAction: specs.ActErrno},
			NetDevices: map[string]specs.LinuxNetDevice{"eth9": {}},
			IntelRdt:   &specs.LinuxIntelRdt{ClosID: "old"},
		},
	}
}

// host resolves everything that has a sane name.
var host = Host{
	CDI: func(spec *specs.Spec, devices []string) error {
		spec.Process.Env = append(spec.Process.Env, "CDI="+strings.Join(devices, ","))
		return nil
	},
	BlockIO: func(class string) (*specs.LinuxBlockIO, error) {
		if class == "" {
			return nil, nil
		}
		return &specs.LinuxBlockIO{Weight: new(uint16(len(class)))}, nil
	},
	Sysctls: func(all map[string]string) error {
		if _, of := all["kernel.panic"]; of {
			return errors.New("linux.sysctl: kernel.panic belongs to no namespace of the pod")
		}
		return nil
	},
}

func TestApply(t *testing.T) {
	for _, test := range []struct {
		name   string
		asked  *api.ContainerAdjustment
		change func(*specs.Spec)
	}{
		{"nothing", &api.ContainerAdjustment{}, func(*specs.Spec) {}},
		{"annotations", &api.ContainerAdjustment{Annotations: map[string]string{"-drop": "", "new": "3", "keep": "4"}}, func(s *specs.Spec) {
			s.Annotations = map[string]string{"keep": "4", "new": "3"}
		}},
		{"environment", &api.ContainerAdjustment{Env: []*api.KeyValue{{Key: "A", Value: "2"}, {Key: "-PATH"}, {Key: "B", Value: "x=y"}}}, func(s *specs.Spec) {
			s.Process.Env = []string{"ODD", "A=2", "B=x=y"}
		}},
		{"arguments", &api.ContainerAdjustment{Args: []string{"wrap", "sh"}}, func(s *specs.Spec) { s.Process.Args = []string{"wrap", "sh"} }},
		{"hooks", &api.ContainerAdjustment{Hooks: &api.Hooks{CreateRuntime: []*api.Hook{{Path: "/second", Args: []string{"a"}}}, Poststop: []*api.Hook{{Path: "/last"}}}}, func(s *specs.Spec) {
			s.Hooks.CreateRuntime = append(s.Hooks.CreateRuntime, specs.Hook{Path: "/second", Args: []string{"a"}})
			s.Hooks.Poststop = []specs.Hook{{Path: "/last"}}
		}},
		{"CDI", &api.ContainerAdjustment{CDIDevices: []*api.CDIDevice{{Name: "v/c=1"}, {Name: "v/c=2"}}}, func(s *specs.Spec) {
			s.Process.Env = append(s.Process.Env, "CDI=v/c=1,v/c=2")
		}},
		{"mounts, parents first", &api.ContainerAdjustment{Mounts: []*api.Mount{{Destination: "/data", Source: "/other", Options: []string{"rbind", "rslave"}}, {Destination: "-/proc"}, {Destination: "/a", Source: "/b"}}}, func(s *specs.Spec) {
			s.Mounts = []specs.Mount{{Destination: "/data", Source: "/other", Options: []string{"rbind", "rslave"}}, {Destination: "/a", Source: "/b"}, {Destination: "/data/set", Source: "/set"}}
			s.Linux.RootfsPropagation = "rslave"
		}},
		{"limits", &api.ContainerAdjustment{Rlimits: []*api.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 8, Hard: 9}, {Type: "RLIMIT_CORE"}}}, func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 8, Hard: 9}, {Type: "RLIMIT_CORE"}}
		}},
		{"device", linux(&api.LinuxContainerAdjustment{Devices: []*api.LinuxDevice{{Path: "-/dev/a"}, {Path: "/dev/b", Type: "b", Major: 8, Minor: 1}}}), func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/b", Type: "b", Major: 8, Minor: 1}}
			s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: "b", Major: new(int64(8)), Minor: new(int64(1)), Access: "rwm"})
		}},
		{"memory takes swap with it", linux(&api.LinuxContainerAdjustment{Resources: &api.LinuxResources{Memory: &api.LinuxMemory{Limit: api.Int64(int64(1 << 30))}}}), func(s *specs.Spec) {
			s.Linux.Resources.Memory.Limit, s.Linux.Resources.Memory.Swap = new(int64(1<<30)), new(int64(1<<30))
		}},
		{"processors", linux(&api.LinuxContainerAdjustment{Resources: &api.LinuxResources{Cpu: &api.LinuxCPU{Cpus: "1", Quota: api.Int64(int64(5000))}, Pids: &api.LinuxPids{Limit: 3}, Unified: map[string]string{"cpu.idle": "1"}}}), func(s *specs.Spec) {
			s.Linux.Resources.CPU = &specs.LinuxCPU{Shares: new(uint64(2)), Cpus: "1", Quota: new(int64(5000))}
			s.Linux.Resources.Pids = &specs.LinuxPids{Limit: new(int64(3))}
			s.Linux.Resources.Unified = map[string]string{"cpu.idle": "1"}
		}},
		{"block I/O", linux(&api.LinuxContainerAdjustment{Resources: &api.LinuxResources{BlockioClass: api.String("gold")}}), func(s *specs.Spec) {
			s.Linux.Resources.BlockIO = &specs.LinuxBlockIO{Weight: new(uint16(4))}
		}},
		{"sysctl", linux(&api.LinuxContainerAdjustment{Sysctl: map[string]string{"net.a": "2", "-net.b": ""}}), func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.a": "2"} }},
		{"host's cgroup namespace", linux(&api.LinuxContainerAdjustment{Namespaces: []*api.LinuxNamespace{{Type: "-cgroup"}}}), func(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[:1] }},
		{"seccomp", linux(&api.LinuxContainerAdjustment{SeccompPolicy: &api.LinuxSeccomp{DefaultAction: "SCMP_ACT_ALLOW", DefaultErrno: api.UInt32(uint32(1))}}), func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, DefaultErrnoRet: new(uint(1))}
		}},
		{"scheduling", linux(&api.LinuxContainerAdjustment{IoPriority: &api.LinuxIOPriority{Class: api.IOPrioClass_IOPRIO_CLASS_IDLE}, Scheduler: &api.LinuxScheduler{Policy: api.LinuxSchedulerPolicy_SCHED_IDLE}}), func(s *specs.Spec) {
			s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_IDLE}
			s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedIdle}
		}},
		{"what the runtime refuses", linux(&api.LinuxContainerAdjustment{Resources: &api.LinuxResources{RdtClass: api.String("gold")}, NetDevices: map[string]*api.LinuxNetDevice{"-eth9": nil, "eth1": {Name: "e"}}}), func(s *specs.Spec) {
			s.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: "gold"}
			s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth1": {Name: "e"}}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, want := before(), before()
			test.change(want)
			if err := (&Adjustment{test.asked}).Apply(got, host); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("spec (-want +got):\n%s", diff)
			}
		})
	}
	if err := (*Adjustment)(nil).Apply(nil, host); err != nil {
		t.Error(err)
	}
}

func linux(l *api.LinuxContainerAdjustment) *api.ContainerAdjustment {
	return &api.ContainerAdjustment{Linux: l}
}

func TestApplyRefuses(t *testing.T) {
	for _, test := range []struct {
		asked *api.ContainerAdjustment
		want  string
	}{
		{linux(&api.LinuxContainerAdjustment{CgroupsPath: "/else"}), "linux.cgroups_path: /else"},
		{linux(&api.LinuxContainerAdjustment{Namespaces: []*api.LinuxNamespace{{Type: "network", Path: "/x"}}}), "linux.namespaces: network"},
		{linux(&api.LinuxContainerAdjustment{Namespaces: []*api.LinuxNamespace{{Type: "cgroup", Path: "/x"}}}), "linux.namespaces: cgroup"},
		{linux(&api.LinuxContainerAdjustment{Namespaces: []*api.LinuxNamespace{{Type: "-pid"}}}), "linux.namespaces: pid"},
		{linux(&api.LinuxContainerAdjustment{Sysctl: map[string]string{"kernel.panic": "1"}}), "linux.sysctl"},
		{linux(&api.LinuxContainerAdjustment{Resources: &api.LinuxResources{Memory: &api.LinuxMemory{Kernel: api.Int64(int64(1))}}}), "linux.resources.memory.kernel"},
		{linux(&api.LinuxContainerAdjustment{Resources: &api.LinuxResources{Memory: &api.LinuxMemory{Swap: api.Int64(int64(5))}}}), "linux.resources.memory.swap"},
	} {
		err := (&Adjustment{test.asked}).Apply(before(), host)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("error %v, want one with %q", err, test.want)
		}
	}
	err := (&Adjustment{&api.ContainerAdjustment{CDIDevices: []*api.CDIDevice{{Name: "v/c=1"}}}}).Apply(before(), Host{Sysctls: host.Sysctls})
	if err == nil || !strings.Contains(err.Error(), "CDI_devices: v/c=1") {
		t.Errorf("without CDI: error %v", err)
	}
}

// No field of the protocol is ignored, also none that a newer version adds: each changes the spec or is refused.
func TestNoFieldIsIgnored(t *testing.T) {
	var each func(path string, m protoreflect.Message, whole func() *api.ContainerAdjustment)
	each = func(path string, m protoreflect.Message, whole func() *api.ContainerAdjustment) {
		fields := m.Descriptor().Fields()
		for i := range fields.Len() {
			f := fields.Get(i)
			name := path + string(f.Name())
			if f.Kind() == protoreflect.MessageKind && !f.IsList() && !f.IsMap() && deeper[string(f.Message().Name())] {
				each(name+".", m.Mutable(f).Message(), whole)
				m.Clear(f)
				continue
			}
			fill(m, f)
			got := before()
			asked := proto.CloneOf(whole())
			err := (&Adjustment{asked}).Apply(got, host)
			if diff := cmp.Diff(before(), got); err == nil && diff == "" {
				t.Errorf("%s is ignored: %v", name, asked)
			}
			m.Clear(f)
		}
	}
	asked := &api.ContainerAdjustment{}
	each("", asked.ProtoReflect(), func() *api.ContainerAdjustment { return asked })
}

// deeper are messages whose fields stand for themselves.
var deeper = map[string]bool{"LinuxContainerAdjustment": true, "LinuxResources": true, "LinuxMemory": true, "LinuxCPU": true, "LinuxRdt": true}

// fill gives a field a value that means something.
func fill(m protoreflect.Message, f protoreflect.FieldDescriptor) {
	switch {
	case f.IsMap():
		key := protoreflect.ValueOfString("x").MapKey()
		value := m.Mutable(f).Map().NewValue()
		if f.MapValue().Kind() == protoreflect.StringKind {
			value = protoreflect.ValueOfString("y")
		}
		m.Mutable(f).Map().Set(key, value)
	case f.IsList() && f.Kind() == protoreflect.MessageKind:
		fillAll(m.Mutable(f).List().AppendMutable().Message())
	case f.IsList():
		m.Mutable(f).List().Append(scalar(f))
	case f.Kind() == protoreflect.MessageKind:
		fillAll(m.Mutable(f).Message())
	default:
		m.Set(f, scalar(f))
	}
}

func fillAll(m protoreflect.Message) {
	for i := range m.Descriptor().Fields().Len() {
		fill(m, m.Descriptor().Fields().Get(i))
	}
}

func scalar(f protoreflect.FieldDescriptor) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString("x")
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(1)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(1)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(1)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(1)
	default:
		return protoreflect.ValueOfInt64(1)
	}
}
