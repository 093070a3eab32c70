package seccomp

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// abis are those of this build; the first is the native one. The private calls of arm start at 0xf0000.
var abis = []*abi{
	{name: specs.ArchAARCH64, audit: unix.AUDIT_ARCH_AARCH64, calls: callsAarch64},
	{name: specs.ArchARM, audit: unix.AUDIT_ARCH_ARM, narrow: true, calls: callsArm, legacy: [2]uint32{0xf0000, 0xf0800}},
}

// ofThisBuild are calls that only these architectures have.
const ofThisBuild = "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls"
