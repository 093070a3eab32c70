package cni

import (
	"encoding/json"
	"fmt"
	"net"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
)

// Inspection is the configuration in force in the form, and under the names, that containerd shows it in.
type Inspection struct {
	PluginDirs    []string
	PluginConfDir string
	Networks      []InspectedNetwork // none or one
}

// InspectedNetwork is one network of an Inspection.
type InspectedNetwork struct {
	Config InspectedList
	IFName string
}

// InspectedList is a configuration list with its text.
type InspectedList struct {
	Name       string
	CNIVersion string
	Plugins    []InspectedPlugin
	Source     string
}

// InspectedPlugin is the configuration of a plugin with its text.
type InspectedPlugin struct {
	Network *types.PluginConf
	Source  string
}

// Inspect tells what is configured, and whether that could be loaded: "OK" or why not.
func (n *Network) Inspect() (_ Inspection, load string) {
	s := n.current.Load()
	load = "OK"
	if s.problem != "" {
		load = s.problem
	}
	in := Inspection{PluginDirs: n.conf.BinDirs, PluginConfDir: n.conf.ConfDir}
	if s.list == nil {
		return in, load
	}
	list := InspectedList{Name: s.list.Name, CNIVersion: s.list.CNIVersion, Source: string(s.list.Bytes)}
	for _, p := range s.list.Plugins {
		list.Plugins = append(list.Plugins, InspectedPlugin{Network: p.Network, Source: string(p.Bytes)})
	}
	in.Networks = []InspectedNetwork{{Config: list, IFName: DefaultIfName}}
	return in, load
}

// InspectedResult is what the plugins answered for a pod, in the form, and under the names, that containerd shows it in.
type InspectedResult struct {
	Interfaces map[string]*InspectedInterface
	DNS        []types.DNS
	Routes     []*types.Route
}

// InspectedInterface is a network device of a pod or of the host.
type InspectedInterface struct {
	IPConfigs []InspectedIP
	Mac       string
	Sandbox   string // path of the network namespace; empty: the host's
}

// InspectedIP is an address of a device.
type InspectedIP struct{ IP, Gateway net.IP }

// InspectResult puts the result of a pod's ADD into that form.
func InspectResult(raw json.RawMessage) (*InspectedResult, error) {
	if err := checkNoNull(raw); err != nil {
		return nil, fmt.Errorf("result of ADD: %w", err)
	}
	some, err := create.CreateFromBytes(raw)
	if err != nil {
		return nil, fmt.Errorf("result of ADD: %w", err)
	}
	r, err := current.NewResultFromResult(some)
	if err != nil {
		return nil, fmt.Errorf("result of ADD: %w", err)
	}
	in := &InspectedResult{Interfaces: map[string]*InspectedInterface{}, DNS: []types.DNS{r.DNS}, Routes: r.Routes}
	for _, device := range r.Interfaces {
		in.Interfaces[device.Name] = &InspectedInterface{Mac: device.Mac, Sandbox: device.Sandbox}
	}
	for _, ip := range r.IPs {
		name := DefaultIfName
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(r.Interfaces) {
			name = r.Interfaces[*i].Name
		}
		if in.Interfaces[name] == nil {
			in.Interfaces[name] = &InspectedInterface{}
		}
		in.Interfaces[name].IPConfigs = append(in.Interfaces[name].IPConfigs, InspectedIP{IP: ip.Address.IP, Gateway: ip.Gateway})
	}
	return in, nil
}
