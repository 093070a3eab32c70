package sandbox

import (
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/ociruntime/blockio"
)

// blockIO is what the class of block I/O of a new container stands for; nil: it has none.
func (s *Service) blockIO(config *runtimev1.ContainerConfig, pod map[string]string) (*specs.LinuxBlockIO, error) {
	return s.blockIOOf(blockio.Class(config.Metadata.Name, config.Annotations, pod))
}

// blockIOOf is what a class stands for; "" is none.
func (s *Service) blockIOOf(class string) (*specs.LinuxBlockIO, error) {
	if class == "" {
		return nil, nil
	}
	path := s.settings.Load().BlockIO
	if path == "" {
		return nil, fmt.Errorf("%w: annotations: class of block I/O %q asked for, but none is configured", ErrInvalid, class)
	}
	classes, err := blockio.Read(path)
	if err != nil {
		return nil, err
	}
	limits, unmatched, err := classes.Limits(class)
	if err != nil {
		return nil, fmt.Errorf("%w: annotations: %w", ErrInvalid, err)
	}
	if len(unmatched) > 0 {
		s.log.Warn("devices of a class of block I/O are not there", "class", class, "devices", unmatched)
	}
	return limits, nil
}
