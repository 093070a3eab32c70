package cri

import (
	"bytes"
	"context"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Names and versions that clients are told. kubeAPIVersion is the version of the answer of Version itself.
const (
	runtimeName    = "criserver"
	kubeAPIVersion = "0.1.0"
	criVersion     = "v1"
)

func (h *runtimeHandlers) Version(context.Context, *runtimev1.VersionRequest) (*runtimev1.VersionResponse, error) {
	return &runtimev1.VersionResponse{
		Version: kubeAPIVersion, RuntimeName: runtimeName, RuntimeVersion: h.config.Version, RuntimeApiVersion: criVersion,
	}, nil
}

func (h *runtimeHandlers) Status(_ context.Context, r *runtimev1.StatusRequest) (*runtimev1.StatusResponse, error) {
	response := &runtimev1.StatusResponse{
		Status: &runtimev1.RuntimeStatus{Conditions: h.conditions()},
		Features: &runtimev1.RuntimeFeatures{
			SupplementalGroupsPolicy:  h.config.Features.SupplementalGroupsPolicy,
			UserNamespacesHostNetwork: h.config.Features.UserNamespacesHostNetwork,
			MountOptions:              h.config.Features.MountOptions,
		},
	}
	settings := h.settings.Load()
	for _, handler := range settings.Handlers {
		response.RuntimeHandlers = append(response.RuntimeHandlers, &runtimev1.RuntimeHandler{
			Name: handler.Name,
			Features: &runtimev1.RuntimeHandlerFeatures{
				RecursiveReadOnlyMounts: handler.RecursiveReadOnly, UserNamespaces: handler.UserNamespaces,
			},
		})
	}
	if !r.GetVerbose() {
		return response, nil
	}
	response.Info = map[string]string{}
	if settings.Effective != nil {
		response.Info["config"] = string(settings.Effective)
	}
	if h.config.Recorder != nil {
		var operations bytes.Buffer
		if err := h.config.Recorder.WriteJSON(&operations); err != nil {
			return nil, err
		}
		response.Info["operations"] = operations.String()
	}
	return response, nil
}

// conditions are the two that every client wants to see.
func (s *Server) conditions() []*runtimev1.RuntimeCondition {
	runtime := &runtimev1.RuntimeCondition{Type: runtimev1.RuntimeReady, Status: true}
	network := &runtimev1.RuntimeCondition{Type: runtimev1.NetworkReady}
	if services := s.serving(); services != nil {
		network.Status, network.Reason, network.Message = services.Network()
	} else {
		for _, c := range []*runtimev1.RuntimeCondition{runtime, network} {
			c.Status, c.Reason, c.Message = false, "Starting", errStarting.Error()
		}
	}
	return []*runtimev1.RuntimeCondition{runtime, network}
}

func (h *runtimeHandlers) RuntimeConfig(context.Context, *runtimev1.RuntimeConfigRequest) (*runtimev1.RuntimeConfigResponse, error) {
	return &runtimev1.RuntimeConfigResponse{Linux: &runtimev1.LinuxRuntimeConfiguration{CgroupDriver: h.config.CgroupDriver}}, nil
}

// UpdateRuntimeConfig takes the pod CIDR, which nothing here needs: networks are configured by CNI.
func (h *runtimeHandlers) UpdateRuntimeConfig(context.Context, *runtimev1.UpdateRuntimeConfigRequest) (*runtimev1.UpdateRuntimeConfigResponse, error) {
	return &runtimev1.UpdateRuntimeConfigResponse{}, nil
}
