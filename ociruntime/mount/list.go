package mount

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What of listmount(2) and statmount(2), both of Linux 6.8, golang.org/x/sys/unix does not have.
const (
	listOfRoot    = ^uint64(0) // LSMT_ROOT: all mounts below the caller's root
	statPoint     = 0x10       // STATMOUNT_MNT_POINT
	statType      = 0x20       // STATMOUNT_FS_TYPE
	statHeader    = 512        // size of struct statmount; the strings follow
	statOfMask    = 8          // offsets in it
	statOfType    = 36
	statOfPoint   = 108
	statRoom      = statHeader + 2*unix.PathMax
	mountsPerCall = 1024
)

// mountRequest is struct mnt_id_req in its first version.
type mountRequest struct {
	size, spare uint32
	id, param   uint64
}

// listMounts returns the identities of all mounts of the caller's namespace, ascending; none is ever used again.
func listMounts() (ids []uint64, err error) {
	request := mountRequest{size: uint32(unsafe.Sizeof(mountRequest{})), id: listOfRoot}
	for {
		ids = append(ids, make([]uint64, mountsPerCall)...)
		page := ids[len(ids)-mountsPerCall:]
		n, _, errno := unix.Syscall6(unix.SYS_LISTMOUNT, uintptr(unsafe.Pointer(&request)), uintptr(unsafe.Pointer(&page[0])), mountsPerCall, 0, 0, 0)
		if errno != 0 {
			return nil, fmt.Errorf("listmount: %w", errno)
		}
		ids = ids[:len(ids)-mountsPerCall+int(n)]
		if n < mountsPerCall {
			return ids, nil
		}
		request.param = ids[len(ids)-1]
	}
}

// statMount returns a mount's type of file system, without a subtype, and its mount point; "" is out of reach. It asks no
// file system. The error is ENOENT if the mount is gone.
func statMount(id uint64) (kind, point string, err error) {
	request := mountRequest{size: uint32(unsafe.Sizeof(mountRequest{})), id: id, param: statPoint | statType}
	var buffer [statRoom]byte
	_, _, errno := unix.Syscall6(unix.SYS_STATMOUNT, uintptr(unsafe.Pointer(&request)), uintptr(unsafe.Pointer(&buffer[0])), statRoom, 0, 0, 0)
	if errno != 0 {
		return "", "", fmt.Errorf("statmount %d: %w", id, errno)
	}
	mask := binary.NativeEndian.Uint64(buffer[statOfMask:])
	text := func(bit uint64, field int) string {
		if mask&bit == 0 {
			return ""
		}
		s, _, _ := bytes.Cut(buffer[statHeader+binary.NativeEndian.Uint32(buffer[field:]):], []byte{0})
		return string(s)
	}
	return text(statType, statOfType), text(statPoint, statOfPoint), nil
}
