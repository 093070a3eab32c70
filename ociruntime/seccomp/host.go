package seccomp

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// host is what includes and excludes of a profile ask for.
type host struct {
	arch         string // as Go names it
	kernel       version
	capabilities []string
}

func thisHost(capabilities []string) host {
	return host{arch: runtime.GOARCH, kernel: runningKernel(), capabilities: capabilities}
}

// version is the beginning of a kernel's: 6, 18.
type version struct{ major, minor int }

func (v version) less(w version) bool {
	return v.major < w.major || v.major == w.major && v.minor < w.minor
}

var versionText = regexp.MustCompile(`^(\d{1,4})\.(\d{1,4})`)

func parseVersion(s string) (version, error) {
	m := versionText.FindStringSubmatch(s)
	if m == nil {
		return version{}, fmt.Errorf("%q is not a kernel version", s)
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	return version{major, minor}, nil
}

// runningKernel is the version of this kernel; 0.0, which satisfies no minimum, if it has an unusual one.
var runningKernel = sync.OnceValue(func() version {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return version{}
	}
	v, err := parseVersion(unix.ByteSliceToString(u.Release[:]))
	if err != nil {
		return version{}
	}
	return v
})

// number is an unsigned integer that some profiles write as a string.
type number uint

func (n *number) UnmarshalJSON(data []byte) error {
	text := string(bytes.Trim(data, `"`))
	v, err := strconv.ParseUint(text, 10, 32)
	if err == nil {
		*n = number(v)
		return nil
	}
	named, ok := errnoByName(text)
	if !ok {
		return &json.UnmarshalTypeError{Value: string(data), Type: errnoType, Field: "errnoRet"}
	}
	*n = number(named)
	return nil
}
