package sandbox

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"strconv"

	"google.golang.org/protobuf/proto"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/ociruntime/specgen"
)

const idLength = 64

// newID makes an id that no object has or had: 256 random bits.
func newID() string {
	var b [idLength / 2]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// isID says whether s is a whole id.
func isID(s string) bool {
	if len(s) != idLength {
		return false
	}
	for _, r := range s {
		if (r < '0' || r > '9') && (r < 'a' || r > 'f') {
			return false
		}
	}
	return true
}

// podKey is the identity of a pod, in the form in which errors show it.
func podKey(m *runtimev1.PodSandboxMetadata) string {
	return url.PathEscape(m.Namespace) + "/" + url.PathEscape(m.Name) + "/" + url.PathEscape(m.Uid) + "/" + attempt(m.Attempt)
}

// containerKey is the identity of a container.
func containerKey(pod ID, m *runtimev1.ContainerMetadata) string {
	return string(pod) + "/" + url.PathEscape(m.Name) + "/" + attempt(m.Attempt)
}

func attempt(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// fingerprint is the same for the same request.
func fingerprint(extra string, m proto.Message) (string, error) {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	sum := sha256.Sum256(append(data, extra...))
	return hex.EncodeToString(sum[:16]), nil
}

// checkPodConfig finds what the rest of this package relies on.
func checkPodConfig(c *runtimev1.PodSandboxConfig) error {
	m := c.GetMetadata()
	switch {
	case m == nil:
		return fmt.Errorf("%w: pod config: metadata is missing", ErrInvalid)
	case m.Name == "":
		return fmt.Errorf("%w: pod config: metadata.name is empty", ErrInvalid)
	case m.Namespace == "":
		return fmt.Errorf("%w: pod config: metadata.namespace is empty", ErrInvalid)
	case m.Uid == "":
		return fmt.Errorf("%w: pod config: metadata.uid is empty", ErrInvalid)
	case len(c.Hostname) > maxHostname:
		return fmt.Errorf("%w: pod config: hostname %q is longer than %d bytes", ErrInvalid, c.Hostname, maxHostname)
	}
	if _, err := specgen.PodSysctls(c, &specgen.Handler{}); err != nil {
		return fmt.Errorf("%w: pod config: %w", ErrInvalid, err)
	}
	return nil
}

// checkContainerConfig finds what the rest of this package relies on.
func checkContainerConfig(c *runtimev1.ContainerConfig) error {
	m := c.GetMetadata()
	switch {
	case m == nil:
		return fmt.Errorf("%w: container config: metadata is missing", ErrInvalid)
	case m.Name == "":
		return fmt.Errorf("%w: container config: metadata.name is empty", ErrInvalid)
	case c.GetImage().GetImage() == "":
		return fmt.Errorf("%w: container config: image.image is empty", ErrInvalid)
	}
	return nil
}
