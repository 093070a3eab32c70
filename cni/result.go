package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
)

// Result is what Add reached.
type Result struct {
	IPs []netip.Addr    // of the pod, the primary one first; at least one
	Raw json.RawMessage // the last plugin's result, for Debt.Result and for those who inspect a pod
}

// errNoAddress: a pod without an address is of no use to Kubernetes, which would create its sandbox again for ever.
var errNoAddress = errors.New("the plugins gave the pod no address")

// resultOf picks the addresses of the pod's device, or, if the plugins do not say whose they are, all of them.
func resultOf(result types.Result, ifName string, preferIPv6 bool) (*Result, error) {
	if result == nil {
		return nil, errNoAddress
	}
	raw, err := json.Marshal(result)
	if err != nil {
		return nil, fmt.Errorf("keep the result: %w", err)
	}
	r, err := current.NewResultFromResult(result)
	if err != nil {
		return nil, fmt.Errorf("read the result: %w", err)
	}
	var ips []netip.Addr
	for _, c := range r.IPs {
		addr, ok := netip.AddrFromSlice(c.Address.IP)
		if ok && ofDevice(r, c, ifName) {
			ips = append(ips, addr.Unmap())
		}
	}
	if len(ips) == 0 {
		return nil, errNoAddress
	}
	slices.SortStableFunc(ips, func(a, b netip.Addr) int { return rank(a, preferIPv6) - rank(b, preferIPv6) })
	return &Result{IPs: ips, Raw: raw}, nil
}

// checkNoNull refuses answers in which an interface or an address is null: libcni takes them and panics later.
func checkNoNull(answer []byte) error {
	var lists struct {
		Interfaces []*json.RawMessage `json:"interfaces"`
		IPs        []*json.RawMessage `json:"ips"`
	}
	if json.Unmarshal(answer, &lists) != nil {
		return nil // whoever reads it whole says it better
	}
	if slices.Contains(lists.Interfaces, nil) || slices.Contains(lists.IPs, nil) {
		return errors.New("null in the list of interfaces or addresses")
	}
	return nil
}

func ofDevice(r *current.Result, c *current.IPConfig, ifName string) bool {
	if c.Interface == nil || *c.Interface < 0 || *c.Interface >= len(r.Interfaces) {
		return true
	}
	dev := r.Interfaces[*c.Interface]
	return dev.Sandbox != "" && dev.Name == ifName
}

func rank(a netip.Addr, preferIPv6 bool) int {
	if a.Is6() == preferIPv6 {
		return 0
	}
	return 1
}
