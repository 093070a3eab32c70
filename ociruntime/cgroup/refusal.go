package cgroup

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"
)

var (
	// ErrUnfit says that this host, or a group above, cannot have a limit, whatever goes on in the group.
	ErrUnfit = errors.New("limit does not fit this host")
	// ErrInUse says that what is in the group is in the way of a limit.
	ErrInUse = errors.New("limit is in conflict with what is in use")
)

// refusal is an error of one of these classes, which are not part of its text.
type refusal struct {
	error
	class error
}

func (r refusal) Unwrap() []error { return []error{r.error, r.class} }

// unfit gives an error its class; nil stays nil.
func unfit(err error) error {
	if err == nil {
		return nil
	}
	return refusal{err, ErrUnfit}
}

// Errors with which the kernel refuses to write a limit.
var (
	unfitErrors = []error{unix.EINVAL, unix.ERANGE, unix.EOPNOTSUPP, unix.ENODEV, unix.ENOSPC}
	inUseErrors = []error{unix.EBUSY, unix.EAGAIN}
)

// refused gives an error of a write its class, if it has one.
func refused(err error) error {
	is := func(class error) bool { return errors.Is(err, class) }
	switch {
	case slices.ContainsFunc(unfitErrors, is):
		return refusal{err, ErrUnfit}
	case slices.ContainsFunc(inUseErrors, is):
		return refusal{err, ErrInUse}
	}
	return err
}

// computed gives an error of the computing of settings its class: but for files that cannot be read, it is the limit that
// does not fit.
func computed(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) || errors.Is(err, ErrInUse) {
		return err
	}
	return unfit(err)
}
