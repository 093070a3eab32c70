package ociruntime

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/ociruntime/compile"
)

// checkFields refuses what a spec asks for and this runtime would leave out: a container that runs without it would not be
// what somebody meant.
func checkFields(spec *specs.Spec) error {
	linux := spec.Linux
	switch {
	case len(linux.NetDevices) > 0:
		return fmt.Errorf("linux.netDevices: %s: moving network devices into containers is not what this runtime does", slices.Sorted(maps.Keys(linux.NetDevices))[0])
	case linux.IntelRdt != nil:
		return fmt.Errorf("linux.intelRdt: class %q: this runtime does not set Intel RDT", linux.IntelRdt.ClosID)
	case len(linux.TimeOffsets) > 0:
		return errors.New("linux.timeOffsets: this runtime makes no time namespaces")
	case spec.Process.ExecCPUAffinity != nil:
		return errors.New("process.execCPUAffinity: this runtime sets no affinity but the cpuset")
	}
	return compile.Check(spec)
}
