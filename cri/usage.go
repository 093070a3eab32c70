package cri

import (
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/sandbox"
	"github.com/criserver/criserver/sandbox/stats"
)

// containerStats translates. Of a container that has ended there are its attributes and its writable layer.
func (s *Server) containerStats(c sandbox.ContainerStats) *runtimev1.ContainerStats {
	st := &runtimev1.ContainerStats{Attributes: &runtimev1.ContainerAttributes{
		Id: string(c.ID), Metadata: c.Metadata, Labels: c.Labels, Annotations: c.Annotations,
	}}
	if c.Layer != nil {
		st.WritableLayer = &runtimev1.FilesystemUsage{
			Timestamp:  c.Layer.At.UnixNano(),
			FsId:       &runtimev1.FilesystemIdentifier{Mountpoint: s.serving().Stats.LayerDir()},
			UsedBytes:  count(c.Layer.Bytes),
			InodesUsed: count(c.Layer.Inodes),
		}
	}
	if c.Usage != nil {
		st.Cpu, st.Memory, st.Swap, st.Io = cpuUsage(c.Usage), memoryUsage(c.Usage), swapUsage(c.Usage), ioUsage(c.Usage)
	}
	return st
}

func (s *Server) podStats(p sandbox.PodStats) *runtimev1.PodSandboxStats {
	linux := &runtimev1.LinuxPodSandboxStats{Network: networkUsage(p.Network)}
	for _, c := range p.Containers {
		linux.Containers = append(linux.Containers, s.containerStats(c))
	}
	if u := p.Usage; u != nil {
		linux.Cpu, linux.Memory, linux.Io = cpuUsage(u), memoryUsage(u), ioUsage(u)
		if u.HasTasks() {
			linux.Process = &runtimev1.ProcessUsage{Timestamp: u.At.UnixNano(), ProcessCount: count(u.Counters.Tasks.Current)}
		}
	}
	return &runtimev1.PodSandboxStats{
		Attributes: &runtimev1.PodSandboxAttributes{Id: string(p.ID), Metadata: p.Metadata, Labels: p.Labels, Annotations: p.Annotations},
		Linux:      linux,
	}
}

func cpuUsage(u *stats.Usage) *runtimev1.CpuUsage {
	if !u.HasCPU() {
		return nil
	}
	c := &runtimev1.CpuUsage{Timestamp: u.At.UnixNano(), UsageCoreNanoSeconds: count(u.Counters.CPU.Usage), Psi: psi(u.Stalls().CPU)}
	if u.HasCores {
		c.UsageNanoCores = count(u.Cores)
	}
	return c
}

func memoryUsage(u *stats.Usage) *runtimev1.MemoryUsage {
	if !u.HasMemory() {
		return nil
	}
	m := &u.Counters.Memory
	return &runtimev1.MemoryUsage{
		Timestamp:       u.At.UnixNano(),
		WorkingSetBytes: count(u.WorkingSet()),
		AvailableBytes:  count(u.Available()),
		UsageBytes:      count(m.Usage),
		RssBytes:        count(m.Anon),
		PageFaults:      count(m.Faults),
		MajorPageFaults: count(m.Major),
		Psi:             psi(u.Stalls().Memory),
	}
}

// swapUsage leaves out what is available where there is no limit.
func swapUsage(u *stats.Usage) *runtimev1.SwapUsage {
	if !u.HasMemory() || !u.Counters.Memory.HasSwap {
		return nil
	}
	s := &runtimev1.SwapUsage{Timestamp: u.At.UnixNano(), SwapUsageBytes: count(u.Counters.Memory.Swap)}
	if available, limited := u.SwapAvailable(); limited {
		s.SwapAvailableBytes = count(available)
	}
	return s
}

func ioUsage(u *stats.Usage) *runtimev1.IoUsage {
	p := psi(u.Stalls().IO)
	if p == nil {
		return nil
	}
	return &runtimev1.IoUsage{Timestamp: u.At.UnixNano(), Psi: p}
}

// psi is nil where the kernel does not count.
func psi(s *stats.Stall) *runtimev1.PsiStats {
	if s == nil {
		return nil
	}
	translate := func(t stats.StallTime) *runtimev1.PsiData {
		return &runtimev1.PsiData{Total: t.Total, Avg10: t.Avg10, Avg60: t.Avg60, Avg300: t.Avg300}
	}
	return &runtimev1.PsiStats{Full: translate(s.Full), Some: translate(s.Some)}
}

func networkUsage(n *stats.Network) *runtimev1.NetworkUsage {
	if n == nil {
		return nil
	}
	usage := &runtimev1.NetworkUsage{Timestamp: n.At.UnixNano()}
	for i := range n.Interfaces {
		d := &n.Interfaces[i]
		one := &runtimev1.NetworkInterfaceUsage{Name: d.Name, RxBytes: count(d.Receive.Bytes), RxErrors: count(d.Receive.Errors),
			TxBytes: count(d.Transmit.Bytes), TxErrors: count(d.Transmit.Errors)}
		if i == n.Main() {
			usage.DefaultInterface = one
		} else {
			usage.Interfaces = append(usage.Interfaces, one)
		}
	}
	return usage
}

func count(n uint64) *runtimev1.UInt64Value { return &runtimev1.UInt64Value{Value: n} }
