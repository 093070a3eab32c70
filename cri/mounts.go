package cri

import (
	"slices"

	"google.golang.org/protobuf/proto"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// statusMounts are mounts as they were asked for; those of images say which image that is. ids has one for each mount, or
// none.
func statusMounts(asked []*runtimev1.Mount, ids []string) []*runtimev1.Mount {
	if ids == nil {
		return asked
	}
	told := slices.Clone(asked)
	for i, m := range asked {
		if ids[i] == "" {
			continue
		}
		told[i] = proto.CloneOf(m)
		told[i].Image.ImageRef = ids[i] // as PullImage answers
	}
	return told
}
