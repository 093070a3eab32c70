package limits

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// toBlockIO is what makes of the limits old the limits next: what next does not name goes. A rate of 0 is none, a
// weight of 0 the kernel's.
func toBlockIO(old, next *specs.LinuxBlockIO) *specs.LinuxBlockIO {
	if old == nil || next == nil {
		return next
	}
	do := *next
	if next.Weight == nil && old.Weight != nil {
		do.Weight = new(uint16)
	}
	for _, d := range old.WeightDevice {
		if !slices.ContainsFunc(next.WeightDevice, func(n specs.LinuxWeightDevice) bool { return n.LinuxBlockIODevice == d.LinuxBlockIODevice }) {
			do.WeightDevice = append(slices.Clip(do.WeightDevice), specs.LinuxWeightDevice{LinuxBlockIODevice: d.LinuxBlockIODevice, Weight: new(uint16)})
		}
	}
	for of, to := range map[*[]specs.LinuxThrottleDevice]*[]specs.LinuxThrottleDevice{
		&old.ThrottleReadBpsDevice:   &do.ThrottleReadBpsDevice,
		&old.ThrottleWriteBpsDevice:  &do.ThrottleWriteBpsDevice,
		&old.ThrottleReadIOPSDevice:  &do.ThrottleReadIOPSDevice,
		&old.ThrottleWriteIOPSDevice: &do.ThrottleWriteIOPSDevice,
	} {
		for _, d := range *of {
			if !slices.ContainsFunc(*to, func(n specs.LinuxThrottleDevice) bool { return n.LinuxBlockIODevice == d.LinuxBlockIODevice }) {
				*to = append(slices.Clip(*to), specs.LinuxThrottleDevice{LinuxBlockIODevice: d.LinuxBlockIODevice})
			}
		}
	}
	return &do
}
