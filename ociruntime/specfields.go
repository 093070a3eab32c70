package ociruntime

import (
	"fmt"
	"maps"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
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
	}
	return nil
}
