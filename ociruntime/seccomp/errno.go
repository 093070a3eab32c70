package seccomp

import (
	"reflect"

	"golang.org/x/sys/unix"
)

var errnoType = reflect.TypeFor[number]()

// errnoByName translates "EPERM" and the like.
func errnoByName(name string) (uint, bool) {
	if name == "" {
		return 0, false
	}
	for e := unix.Errno(1); e < maxNamedErrno; e++ {
		if unix.ErrnoName(e) == name {
			return uint(e), true
		}
	}
	return 0, false
}

const maxNamedErrno = 134 // after EHWPOISON
