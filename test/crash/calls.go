package crash

import "golang.org/x/sys/unix"

// call is a system call that may change a directory.
type call struct {
	name string
	fd   int // index of the argument with the file; -1: none
	path int // index of the argument with the path; -1: none
	sync syncing
}

type syncing int

const (
	syncNothing syncing = iota
	syncFile            // the file or directory of fd
	syncAll             // its file system
)

// calls has those that Go's library makes and, for programs that use others, their relatives. Those with a path are looked at
// wherever it leads.
var calls = map[uint64]call{
	unix.SYS_OPENAT:          {"open", 0, 1, syncNothing}, // only with O_CREAT or O_TRUNC
	unix.SYS_OPENAT2:         {"open", 0, 1, syncNothing},
	unix.SYS_MKDIRAT:         {"mkdir", 0, 1, syncNothing},
	unix.SYS_MKNODAT:         {"mknod", 0, 1, syncNothing},
	unix.SYS_SYMLINKAT:       {"symlink", 1, 2, syncNothing},
	unix.SYS_LINKAT:          {"link", 2, 3, syncNothing},
	unix.SYS_RENAMEAT:        {"rename", 2, 3, syncNothing},
	unix.SYS_RENAMEAT2:       {"rename", 2, 3, syncNothing},
	unix.SYS_UNLINKAT:        {"unlink", 0, 1, syncNothing},
	unix.SYS_FCHMODAT:        {"chmod", 0, 1, syncNothing},
	unix.SYS_FCHOWNAT:        {"chown", 0, 1, syncNothing},
	unix.SYS_UTIMENSAT:       {"utimens", 0, 1, syncNothing},
	unix.SYS_TRUNCATE:        {"truncate", -1, 0, syncNothing},
	unix.SYS_SETXATTR:        {"setxattr", -1, 0, syncNothing},
	unix.SYS_LSETXATTR:       {"setxattr", -1, 0, syncNothing},
	unix.SYS_REMOVEXATTR:     {"removexattr", -1, 0, syncNothing},
	unix.SYS_LREMOVEXATTR:    {"removexattr", -1, 0, syncNothing},
	unix.SYS_WRITE:           {"write", 0, -1, syncNothing},
	unix.SYS_PWRITE64:        {"write", 0, -1, syncNothing},
	unix.SYS_WRITEV:          {"write", 0, -1, syncNothing},
	unix.SYS_PWRITEV:         {"write", 0, -1, syncNothing},
	unix.SYS_PWRITEV2:        {"write", 0, -1, syncNothing},
	unix.SYS_SENDFILE:        {"write", 0, -1, syncNothing},
	unix.SYS_SPLICE:          {"write", 2, -1, syncNothing},
	unix.SYS_COPY_FILE_RANGE: {"write", 2, -1, syncNothing},
	unix.SYS_FTRUNCATE:       {"truncate", 0, -1, syncNothing},
	unix.SYS_FALLOCATE:       {"fallocate", 0, -1, syncNothing},
	unix.SYS_FCHMOD:          {"chmod", 0, -1, syncNothing},
	unix.SYS_FCHOWN:          {"chown", 0, -1, syncNothing},
	unix.SYS_FSETXATTR:       {"setxattr", 0, -1, syncNothing},
	unix.SYS_FREMOVEXATTR:    {"removexattr", 0, -1, syncNothing},
	unix.SYS_FSYNC:           {"fsync", 0, -1, syncFile},
	unix.SYS_FDATASYNC:       {"fdatasync", 0, -1, syncFile},
	unix.SYS_SYNCFS:          {"syncfs", 0, -1, syncAll},
	unix.SYS_SYNC:            {"sync", -1, -1, syncAll},
}

// lookCalls ask for metadata, as programs do to put up a mark.
var lookCalls = map[uint64]int{unix.SYS_FACCESSAT: 1, unix.SYS_NEWFSTATAT: 1} // index of the argument with the path
