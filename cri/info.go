package cri

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	goruntime "runtime"
	"strings"

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
	if err := h.describe(response.Info); err != nil {
		return nil, err
	}
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

// describe adds to the status of the runtime what containerd's has, under its names, and how many goroutines there are.
func (s *Server) describe(info map[string]string) error {
	texts := map[string]any{"golang": goruntime.Version(), "goroutines": goruntime.NumGoroutine()}
	if services := s.serving(); services != nil {
		texts["cniconfig"], info["lastCNILoadStatus"] = services.Network.Inspect()
	}
	for key, value := range texts {
		text, err := json.Marshal(value)
		if err != nil {
			return fmt.Errorf("encode %s: %w", key, err)
		}
		info[key] = string(text)
	}
	return nil
}

// conditions are the two that every client wants to see.
func (s *Server) conditions() []*runtimev1.RuntimeCondition {
	runtime := &runtimev1.RuntimeCondition{Type: runtimev1.RuntimeReady, Status: true}
	network := &runtimev1.RuntimeCondition{Type: runtimev1.NetworkReady}
	if services := s.serving(); services != nil {
		network.Status, network.Reason, network.Message = services.Network.Ready()
		network.Message = valid(network.Message) // in the words of a plugin
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

// UpdateRuntimeConfig takes the addresses of the node's pods, separated by commas; none is no news.
func (h *runtimeHandlers) UpdateRuntimeConfig(_ context.Context, r *runtimev1.UpdateRuntimeConfigRequest) (*runtimev1.UpdateRuntimeConfigResponse, error) {
	cidrs, err := podCIDRs(r.GetRuntimeConfig().GetNetworkConfig().GetPodCidr())
	if err == nil && len(cidrs) > 0 {
		err = h.serving().Network.UsePodCIDRs(cidrs)
	}
	return &runtimev1.UpdateRuntimeConfigResponse{}, err
}

func podCIDRs(list string) ([]netip.Prefix, error) {
	if list == "" {
		return nil, nil
	}
	var faults faults
	var cidrs []netip.Prefix
	for text := range strings.SplitSeq(list, ",") {
		cidr, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			faults.add("runtime_config.network_config.pod_cidr", "%q is no subnet", text)
		}
		cidrs = append(cidrs, cidr.Masked())
	}
	return cidrs, faults.err()
}
