package specgen

import (
	"fmt"
	"strconv"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The real-time signals as C libraries number them: the kernel's first two are theirs.
const (
	sigRTMin = 34
	sigRTMax = 64
)

// StopSignal is the signal that asks a container to end: that of the request, of the image, or SIGTERM.
func StopSignal(c *runtimev1.ContainerConfig, image ocispec.Image) (unix.Signal, error) {
	if s := c.GetStopSignal(); s != runtimev1.Signal_SIGNAL_RUNTIME_DEFAULT {
		name, known := runtimev1.Signal_name[int32(s)]
		sig, ok := ParseSignal(name)
		if !known || !ok {
			return 0, invalid("stop_signal", "unknown value %d", s)
		}
		return sig, nil
	}
	if image.Config.StopSignal == "" {
		return unix.SIGTERM, nil
	}
	sig, ok := ParseSignal(image.Config.StopSignal)
	if !ok {
		return 0, fmt.Errorf("image config: StopSignal: %q is not a signal", image.Config.StopSignal)
	}
	return sig, nil
}

var signalAliases = map[string]unix.Signal{"SIGCLD": unix.SIGCHLD, "SIGIOT": unix.SIGABRT, "SIGPOLL": unix.SIGIO}

// ParseSignal understands numbers (15), names in any case, with or without SIG (TERM, SIGTERM), those of the CRI
// (SIGNAL_SIGTERM, SIGNAL_SIGRTMINPLUS3) and real-time signals (SIGRTMIN+3, SIGRTMAX-1).
func ParseSignal(s string) (unix.Signal, bool) {
	if n, err := strconv.Atoi(s); err == nil {
		return unix.Signal(n), n >= 1 && n <= sigRTMax
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIGNAL_")
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	name = strings.NewReplacer("PLUS", "+", "MINUS", "-").Replace(name)
	if rest, ok := strings.CutPrefix(name, "SIGRTMIN"); ok {
		return realTime(rest, '+', sigRTMin, 1)
	}
	if rest, ok := strings.CutPrefix(name, "SIGRTMAX"); ok {
		return realTime(rest, '-', sigRTMax, -1)
	}
	if sig, ok := signalAliases[name]; ok {
		return sig, true
	}
	sig := unix.SignalNum(name)
	return sig, sig != 0
}

func realTime(offset string, sign byte, base, direction int) (unix.Signal, bool) {
	if offset == "" {
		return unix.Signal(base), true
	}
	if offset[0] != sign {
		return 0, false
	}
	n, err := strconv.ParseUint(offset[1:], 10, 8)
	sig := base + direction*int(n)
	return unix.Signal(sig), err == nil && sig >= sigRTMin && sig <= sigRTMax
}
