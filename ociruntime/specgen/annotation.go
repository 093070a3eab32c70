package specgen

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// PeerAnnotation is an annotation of pods by which users of CRI-O ask for what the CRI has no field for.
type PeerAnnotation struct {
	Name, Older string // the one wins
}

var (
	annotationShmSize = PeerAnnotation{"shm-size.crio.io", "io.kubernetes.cri-o.ShmSize"}
	annotationUmask   = PeerAnnotation{"umask.crio.io", "io.kubernetes.cri-o.umask"}
	annotationUnified = PeerAnnotation{"unified-cgroup.crio.io", "io.kubernetes.cri-o.UnifiedCgroup"} // with the name of a container
	annotationDevices = PeerAnnotation{"devices.crio.io", "io.kubernetes.cri-o.Devices"}
	annotationCgroup  = PeerAnnotation{"cgroup2-mount-hierarchy-rw.crio.io", "io.kubernetes.cri-o.cgroup2-mount-hierarchy-rw"}
)

// PeerAnnotations are all that a handler may allow.
var PeerAnnotations = []PeerAnnotation{annotationShmSize, annotationUmask, annotationUnified, annotationDevices, annotationCgroup}

// of finds the value of an annotation that the handler allows, and the key under which it stands.
func (a PeerAnnotation) of(pod *runtimev1.PodSandboxConfig, h *Handler) (key, value string, ok bool) {
	if !a.allowed(h) {
		return "", "", false
	}
	return first(pod.GetAnnotations(), a.Name, a.Older)
}

// ofContainer does the same for an annotation that names a container, behind a slash or, as it was once, a dot.
func (a PeerAnnotation) ofContainer(pod *runtimev1.PodSandboxConfig, container string, h *Handler) (key, value string, ok bool) {
	if !a.allowed(h) {
		return "", "", false
	}
	return first(pod.GetAnnotations(), a.Name+"/"+container, a.Name+"."+container, a.Older+"/"+container, a.Older+"."+container)
}

func (a PeerAnnotation) allowed(h *Handler) bool {
	return slices.Contains(h.AllowedAnnotations, a.Name) || slices.Contains(h.AllowedAnnotations, a.Older)
}

func first(annotations map[string]string, keys ...string) (key, value string, ok bool) {
	for _, key := range keys {
		if value, ok := annotations[key]; ok {
			return key, value, true
		}
	}
	return "", "", false
}

func badAnnotation(key, format string, args ...any) error {
	return invalid(fmt.Sprintf("annotations[%q]", key), format, args...)
}

// ShmSize is how large the /dev/shm of a pod is to be, in bytes; 0 leaves it to the runtime.
func ShmSize(pod *runtimev1.PodSandboxConfig, h *Handler) (int64, error) {
	key, value, ok := annotationShmSize.of(pod, h)
	if !ok {
		return h.ShmSize, nil
	}
	size, err := ParseSize(value)
	switch {
	case err != nil:
		return 0, badAnnotation(key, "%v", err)
	case podNamespaces(pod).GetIpc() == runtimev1.NamespaceMode_NODE:
		return 0, badAnnotation(key, "the pod shares the host's /dev/shm")
	}
	return size, nil
}

var sizeUnits = []struct {
	suffix string
	bytes  int64
}{
	{"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30}, {"Ti", 1 << 40}, {"k", 1e3}, {"M", 1e6}, {"G", 1e9}, {"T", 1e12}, {"", 1},
}

// ParseSize reads a size as Kubernetes writes it: 67108864, 64Mi, 1G.
func ParseSize(text string) (int64, error) {
	for _, u := range sizeUnits {
		digits, ok := strings.CutSuffix(text, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || n <= 0 || n > (1<<62)/u.bytes {
			break
		}
		return n * u.bytes, nil
	}
	return 0, fmt.Errorf("%q is not a size such as 64Mi", text)
}

// umaskAnnotation sets the umask of the container, and so that of its execs.
func (g *generator) umaskAnnotation() error {
	key, value, ok := annotationUmask.of(g.Pod, g.Handler)
	if !ok {
		return nil
	}
	mask, err := strconv.ParseUint(value, 8, 32)
	if err != nil || mask > 0o777 {
		return badAnnotation(key, "%q is not an octal number from 0 to 777", value)
	}
	g.spec.Process.User.Umask = new(uint32(mask))
	return nil
}

// unifiedAnnotation are cgroup files as "memory.high=7000000;memory.low=2000".
func (g *generator) unifiedAnnotation() (map[string]string, error) {
	key, value, ok := annotationUnified.ofContainer(g.Pod, g.Container.GetMetadata().GetName(), g.Handler)
	if !ok {
		return nil, nil
	}
	if !g.Host.CgroupV2 {
		return nil, badAnnotation(key, "this host has no cgroup v2")
	}
	files := make(map[string]string)
	for part := range strings.SplitSeq(value, ";") {
		if strings.TrimSpace(part) == "" {
			continue
		}
		file, content, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok || !isCgroupFile(file) || strings.ContainsRune(content, 0) {
			return nil, badAnnotation(key, "%q is not of the form memory.high=1000000", part)
		}
		files[file] = content
	}
	return files, nil
}

// annotationDevice is a device that a pod asks for by annotation.
type annotationDevice struct {
	field string
	*runtimev1.Device
}

// devicesAnnotation are devices as "/dev/fuse,/dev/net/tun:/dev/tun:rw", of those that the handler lets pods have.
func (g *generator) devicesAnnotation() ([]annotationDevice, error) {
	key, value, ok := annotationDevices.of(g.Pod, g.Handler)
	if !ok {
		return nil, nil
	}
	var all []annotationDevice
	for one := range strings.SplitSeq(value, ",") {
		parts := strings.Split(strings.TrimSpace(one), ":")
		if len(parts) > 3 {
			return nil, badAnnotation(key, "%q is not of the form /dev/fuse:/dev/fuse:rwm", one)
		}
		if !slices.Contains(g.Handler.AnnotationDevices, parts[0]) {
			return nil, badAnnotation(key, "device %q is not one that pods may ask for", parts[0])
		}
		d := annotationDevice{fmt.Sprintf("annotations[%q]", key), &runtimev1.Device{HostPath: parts[0]}}
		switch {
		case len(parts) == 3:
			d.ContainerPath, d.Permissions = parts[1], parts[2]
		case len(parts) == 2 && strings.Trim(parts[1], "rwm") == "":
			d.Permissions = parts[1]
		case len(parts) == 2:
			d.ContainerPath = parts[1]
		}
		all = append(all, d)
	}
	return all, nil
}

// cgroupWritable says whether a container may make groups in its own. On v1 nobody but privileged containers may: it
// could change its own limits there.
func (g *generator) cgroupWritable() bool {
	if g.privileged {
		return true
	}
	_, value, ok := annotationCgroup.of(g.Pod, g.Handler)
	return g.Host.CgroupV2 && (g.Handler.CgroupWritable || ok && value == "true")
}

// isCgroupFile accepts the names of files of a controller, "memory.high".
func isCgroupFile(name string) bool {
	return !strings.ContainsAny(name, "/\x00") && strings.Contains(strings.Trim(name, "."), ".")
}
