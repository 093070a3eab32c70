package seccomp

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// abis are those of this build; the first is the native one. Those with the same audit number follow each other by offset.
var abis = []*abi{
	{name: specs.ArchX86_64, audit: unix.AUDIT_ARCH_X86_64, calls: callsX86_64},
	{name: specs.ArchX32, audit: unix.AUDIT_ARCH_X86_64, offset: 0x40000000, narrow: true, calls: callsX32, legacy: [2]uint32{512, 548}},
	{name: specs.ArchX86, audit: unix.AUDIT_ARCH_I386, narrow: true, calls: callsX86, multiplexed: multiplexedX86},
}

// ofThisBuild are calls that only these architectures have.
const ofThisBuild = "arch_prctl modify_ldt"

// multiplexedX86 is how i386 programs reached these calls before Linux 4.3 (sockets) and 5.1 (System V IPC), and may today.
var multiplexedX86 = map[string]hidden{
	"socket": {"socketcall", 1}, "bind": {"socketcall", 2}, "connect": {"socketcall", 3}, "listen": {"socketcall", 4},
	"accept": {"socketcall", 5}, "getsockname": {"socketcall", 6}, "getpeername": {"socketcall", 7}, "socketpair": {"socketcall", 8},
	"send": {"socketcall", 9}, "recv": {"socketcall", 10}, "sendto": {"socketcall", 11}, "recvfrom": {"socketcall", 12},
	"shutdown": {"socketcall", 13}, "setsockopt": {"socketcall", 14}, "getsockopt": {"socketcall", 15}, "sendmsg": {"socketcall", 16},
	"recvmsg": {"socketcall", 17}, "accept4": {"socketcall", 18}, "recvmmsg": {"socketcall", 19}, "sendmmsg": {"socketcall", 20},
	"semop": {"ipc", 1}, "semget": {"ipc", 2}, "semctl": {"ipc", 3}, "semtimedop": {"ipc", 4},
	"msgsnd": {"ipc", 11}, "msgrcv": {"ipc", 12}, "msgget": {"ipc", 13}, "msgctl": {"ipc", 14},
	"shmat": {"ipc", 21}, "shmdt": {"ipc", 22}, "shmget": {"ipc", 23}, "shmctl": {"ipc", 24},
}
