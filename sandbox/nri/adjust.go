package nri

import (
	"github.com/containerd/nri/pkg/api"
)

// Adjustment is what plugins want changed of a container that is being made.
type Adjustment struct{ asked *api.ContainerAdjustment }
