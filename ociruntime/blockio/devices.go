package blockio

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/bits"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// match finds the disks of a pattern.
func match(pattern string) ([]specs.LinuxBlockIODevice, error) {
	paths, err := filepath.Glob(pattern)
	if err != nil {
		return nil, fmt.Errorf("devices %q: %w", pattern, err)
	}
	var disks []specs.LinuxBlockIODevice
	for _, path := range paths {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); errors.Is(err, fs.ErrNotExist) { // a link to nothing, or just unplugged
			continue
		} else if err != nil {
			return nil, &fs.PathError{Op: "stat", Path: path, Err: err}
		}
		d := specs.LinuxBlockIODevice{Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev))}
		if st.Mode&unix.S_IFMT == unix.S_IFBLK && !partition(d) {
			disks = append(disks, d)
		}
	}
	return disks, nil
}

func partition(d specs.LinuxBlockIODevice) bool {
	_, err := os.Stat(fmt.Sprintf("/sys/dev/block/%d:%d/partition", d.Major, d.Minor))
	return err == nil
}

// quantity reads "50M", "1.5k", "64Mi"; "" is 0. What is not whole is rounded up.
func quantity(text string) (uint64, error) {
	if text == "" {
		return 0, nil
	}
	number := strings.TrimRight(text, "kKMGTPEi")
	times, ok := multiple(text[len(number):])
	if strings.Trim(number, "0123456789.") != "" || !ok {
		return 0, fmt.Errorf("%q is not a quantity such as 50M", text)
	}
	if n, err := strconv.ParseUint(number, 10, 64); err == nil {
		over, n := bits.Mul64(n, times)
		if over != 0 {
			return 0, fmt.Errorf("%q is too large", text)
		}
		return n, nil
	}
	f, err := strconv.ParseFloat(number, 64)
	f = math.Ceil(f * float64(times))
	if err != nil || f >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is not a quantity such as 50M", text)
	}
	return uint64(f), nil
}

// multiple is what a suffix of Kubernetes' quantities stands for.
func multiple(suffix string) (uint64, bool) {
	units, base := "kMGTPE", uint64(1000)
	if binary, ok := strings.CutSuffix(suffix, "i"); ok {
		units, base, suffix = "KMGTPE", 1024, binary
		if suffix == "" {
			return 0, false
		}
	}
	if suffix == "" {
		return 1, true
	}
	power := strings.Index(units, suffix) + 1
	times := uint64(1)
	for range power {
		times *= base
	}
	return times, power > 0 && len(suffix) == 1
}
