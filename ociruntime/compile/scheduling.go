package compile

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/program"
)

// How the kernel numbers what the spec names.
var (
	schedulers = map[specs.LinuxSchedulerPolicy]uint32{specs.SchedOther: 0, specs.SchedFIFO: 1, specs.SchedRR: 2, specs.SchedBatch: 3,
		specs.SchedISO: 4, specs.SchedIdle: 5, specs.SchedDeadline: 6}
	schedulerFlags = map[specs.LinuxSchedulerFlag]uint64{specs.SchedFlagResetOnFork: 1, specs.SchedFlagReclaim: 2, specs.SchedFlagDLOverrun: 4,
		specs.SchedFlagKeepPolicy: 8, specs.SchedFlagKeepParams: 16, specs.SchedFlagUtilClampMin: 32, specs.SchedFlagUtilClampMax: 64}
	ioClasses      = map[specs.IOPriorityClass]int{specs.IOPRIO_CLASS_RT: 1, specs.IOPRIO_CLASS_BE: 2, specs.IOPRIO_CLASS_IDLE: 3}
	memoryPolicies = map[specs.MemoryPolicyModeType]int{specs.MpolDefault: 0, specs.MpolPreferred: 1, specs.MpolBind: 2, specs.MpolInterleave: 3,
		specs.MpolLocal: 4, specs.MpolPreferredMany: 5, specs.MpolWeightedInterleave: 6}
	memoryPolicyFlags = map[specs.MemoryPolicyFlagType]int{specs.MpolFStaticNodes: 1 << 15, specs.MpolFRelativeNodes: 1 << 14, specs.MpolFNumaBalancing: 1 << 13}
	personalities     = map[specs.LinuxPersonalityDomain]int{specs.PerLinux: 0, specs.PerLinux32: 8}
)

// Check refuses, before anything is made, what Start would refuse of a spec's scheduling, memory policy and personality.
func Check(spec *specs.Spec) error {
	b := program.New()
	c := Container{MemoryPolicy: spec.Linux.MemoryPolicy, Personality: spec.Linux.Personality}
	if err := c.own(b); err != nil {
		return err
	}
	return process{Process: Process{Spec: spec.Process}, b: b}.priorities()
}

// priorities sets how the process is scheduled on processors and disks.
func (p process) priorities() error {
	if s := p.Spec.Scheduler; s != nil {
		attr, err := schedAttr(s)
		if err != nil {
			return err
		}
		p.b.Call(fmt.Sprintf("set scheduler %s, nice %d, priority %d", s.Policy, s.Nice, s.Priority), unix.SYS_SCHED_SETATTR, 0, program.Bytes(attr), 0)
	}
	if io := p.Spec.IOPriority; io != nil {
		class, ok := ioClasses[io.Class]
		if !ok || io.Priority < 0 || io.Priority > 7 {
			return fmt.Errorf("process.ioPriority: class %q, priority %d: want IOPRIO_CLASS_RT, _BE or _IDLE, and 0 to 7", io.Class, io.Priority)
		}
		const process, classShift = 1, 13
		p.b.Call(fmt.Sprintf("set I/O priority %s %d", io.Class, io.Priority), unix.SYS_IOPRIO_SET, process, 0, class<<classShift|io.Priority)
	}
	return nil
}

// schedAttr is a struct sched_attr of the size that kernels know since 3.14.
func schedAttr(s *specs.Scheduler) ([]byte, error) {
	const size = 48
	policy, ok := schedulers[s.Policy]
	if !ok {
		return nil, fmt.Errorf("process.scheduler.policy: unknown %q", s.Policy)
	}
	var flags uint64
	for _, f := range s.Flags {
		flag, ok := schedulerFlags[f]
		if !ok {
			return nil, fmt.Errorf("process.scheduler.flags: unknown %q", f)
		}
		flags |= flag
	}
	attr := binary.NativeEndian.AppendUint32(nil, size)
	attr = binary.NativeEndian.AppendUint32(attr, policy)
	attr = binary.NativeEndian.AppendUint64(attr, flags)
	attr = binary.NativeEndian.AppendUint32(attr, uint32(s.Nice))
	attr = binary.NativeEndian.AppendUint32(attr, uint32(s.Priority))
	for _, v := range []uint64{s.Runtime, s.Deadline, s.Period} {
		attr = binary.NativeEndian.AppendUint64(attr, v)
	}
	return attr, nil
}

// setMemoryPolicy says from which nodes memory comes; execve keeps it.
func setMemoryPolicy(b *program.Builder, m *specs.LinuxMemoryPolicy) error {
	mode, ok := memoryPolicies[m.Mode]
	if !ok {
		return fmt.Errorf("linux.memoryPolicy.mode: unknown %q", m.Mode)
	}
	for _, f := range m.Flags {
		flag, ok := memoryPolicyFlags[f]
		if !ok {
			return fmt.Errorf("linux.memoryPolicy.flags: unknown %q", f)
		}
		mode |= flag
	}
	what := fmt.Sprintf("set memory policy %s %s", m.Mode, m.Nodes)
	if m.Nodes == "" {
		b.Call(what, unix.SYS_SET_MEMPOLICY, mode, nil, 0)
		return nil
	}
	mask, err := nodeMask(m.Nodes)
	if err != nil {
		return fmt.Errorf("linux.memoryPolicy.nodes: %w", err)
	}
	b.Call(what, unix.SYS_SET_MEMPOLICY, mode, program.Bytes(mask), 8*len(mask)+1) // the kernel counts from one
	return nil
}

// mostNodes is what a kernel can be built for.
const mostNodes = 1024

// nodeMask is a list such as 0-3,6 as bits.
func nodeMask(list string) ([]byte, error) {
	words := make([]uint64, mostNodes/64)
	last := 0
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			to = from
		}
		first, err := strconv.ParseUint(from, 10, 16)
		end, err2 := strconv.ParseUint(to, 10, 16)
		if err != nil || err2 != nil || first > end || end >= mostNodes {
			return nil, fmt.Errorf("%q is not a list of nodes such as 0-3,6", list)
		}
		for n := first; n <= end; n++ {
			words[n/64] |= 1 << (n % 64)
		}
		last = max(last, int(end)/64)
	}
	var mask []byte
	for _, w := range words[:last+1] {
		mask = binary.NativeEndian.AppendUint64(mask, w)
	}
	return mask, nil
}

// setPersonality chooses what uname and the like tell the process.
func setPersonality(b *program.Builder, per *specs.LinuxPersonality) error {
	domain, ok := personalities[per.Domain]
	if !ok || len(per.Flags) > 0 {
		return fmt.Errorf("linux.personality: unknown domain %q or flags %q", per.Domain, per.Flags)
	}
	b.Call("set personality "+string(per.Domain), unix.SYS_PERSONALITY, domain)
	return nil
}
