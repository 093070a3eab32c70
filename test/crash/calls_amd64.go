package crash

import "golang.org/x/sys/unix"

func init() { // calls that younger architectures do not have
	for nr, c := range map[uint64]call{
		unix.SYS_OPEN:    {"open", -1, 0, syncNothing},
		unix.SYS_CREAT:   {"open", -1, 0, syncNothing},
		unix.SYS_MKDIR:   {"mkdir", -1, 0, syncNothing},
		unix.SYS_MKNOD:   {"mknod", -1, 0, syncNothing},
		unix.SYS_SYMLINK: {"symlink", -1, 1, syncNothing},
		unix.SYS_LINK:    {"link", -1, 1, syncNothing},
		unix.SYS_RENAME:  {"rename", -1, 1, syncNothing},
		unix.SYS_UNLINK:  {"unlink", -1, 0, syncNothing},
		unix.SYS_RMDIR:   {"unlink", -1, 0, syncNothing},
		unix.SYS_CHMOD:   {"chmod", -1, 0, syncNothing},
		unix.SYS_CHOWN:   {"chown", -1, 0, syncNothing},
		unix.SYS_LCHOWN:  {"chown", -1, 0, syncNothing},
	} {
		calls[nr] = c
	}
}
