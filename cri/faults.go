package cri

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// errInvalid is wrapped by every refusal of a request for what it says.
var errInvalid = errors.New("invalid request")

// faults collects what is wrong with a request; each fault names its field.
type faults struct {
	list []string
}

func (f *faults) add(field, format string, args ...any) {
	f.list = append(f.list, field+": "+fmt.Sprintf(format, args...))
}

// err returns nil or one error that names every fault.
func (f *faults) err() error {
	if len(f.list) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", errInvalid, strings.Join(f.list, "; "))
}

// required reports an empty value.
func (f *faults) required(field, value string) {
	if value == "" {
		f.add(field, "must not be empty")
	}
}

// name reports a value that is empty or not fit for a name in logs, files and environment.
func (f *faults) name(field, value string) {
	switch {
	case value == "":
		f.add(field, "must not be empty")
	case len(value) > 253:
		f.add(field, "is longer than 253 bytes")
	default:
		f.printable(field, value)
	}
}

// printable reports control characters, NUL and line ends among them.
func (f *faults) printable(field, value string) {
	if strings.ContainsFunc(value, unicode.IsControl) {
		f.add(field, "%q has a control character", value)
	}
}

// word reports an empty value and one that white space would break in a file of lines and words.
func (f *faults) word(field, value string) {
	if value == "" {
		f.add(field, "must not be empty")
	} else if strings.ContainsFunc(value, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		f.add(field, "%q has white space or a control character", value)
	}
}

// noNUL reports what cannot be an argument of a system call.
func (f *faults) noNUL(field, value string) {
	if strings.ContainsRune(value, 0) {
		f.add(field, "has a NUL byte")
	}
}

// absolute reports a path that is not absolute or has a NUL byte or line end.
func (f *faults) absolute(field, path string) {
	switch {
	case path == "":
		f.add(field, "must not be empty")
	case !strings.HasPrefix(path, "/"):
		f.add(field, "%q is not an absolute path", path)
	default:
		f.printable(field, path)
	}
}

// inside reports a path that is absolute or leaves the directory that it is relative to.
func (f *faults) inside(field, path string) {
	if strings.HasPrefix(path, "/") {
		f.add(field, "%q must be relative", path)
	}
	f.noDotDot(field, path)
	f.printable(field, path)
}

// noDotDot reports a path with a ".." component.
func (f *faults) noDotDot(field, path string) {
	for part := range strings.SplitSeq(path, "/") {
		if part == ".." {
			f.add(field, "%q must not have \"..\"", path)
			return
		}
	}
}

// in reports an enum value that the API does not know.
func (f *faults) in(field string, value int32, names map[int32]string) {
	if _, ok := names[value]; !ok {
		f.add(field, "%d is not a known value", value)
	}
}

// index names an element of a repeated field.
func index(field string, i int) string { return fmt.Sprintf("%s[%d]", field, i) }
