package cni

import (
	"fmt"
	"math"
	"math/big"
	"strings"
)

// Annotations of a pod that limit its traffic, in bits a second as a Kubernetes quantity, for example "10M".
const (
	IngressBandwidth = "kubernetes.io/ingress-bandwidth"
	EgressBandwidth  = "kubernetes.io/egress-bandwidth"
)

// bandwidth is the value of the capability of that name: bits a second and bits.
type bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"`
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

// bandwidthOf returns nil if the annotations limit nothing. The burst is the largest that the plugin takes: only the
// rate is wanted, as with every other runtime.
func bandwidthOf(annotations map[string]string) (*bandwidth, error) {
	var b bandwidth
	for _, limit := range []struct {
		annotation  string
		rate, burst *uint64
	}{
		{IngressBandwidth, &b.IngressRate, &b.IngressBurst},
		{EgressBandwidth, &b.EgressRate, &b.EgressBurst},
	} {
		text, ok := annotations[limit.annotation]
		if !ok {
			continue
		}
		rate, err := parseRate(text)
		if err != nil {
			return nil, fmt.Errorf("annotation %s: %w", limit.annotation, err)
		}
		*limit.rate, *limit.burst = rate, math.MaxUint32
	}
	if b == (bandwidth{}) {
		return nil, nil
	}
	return &b, nil
}

// suffixes of Kubernetes quantities, those of two letters first.
var suffixes = []struct {
	name  string
	scale string // a number for big.Rat
}{
	{"Ki", "1024"}, {"Mi", "1048576"}, {"Gi", "1073741824"}, {"Ti", "1099511627776"}, {"Pi", "1125899906842624"},
	{"m", "1/1000"}, {"k", "1000"}, {"M", "1000000"}, {"G", "1000000000"}, {"T", "1000000000000"}, {"P", "1000000000000000"},
}

// parseRate reads a quantity between 1k and 1P, the range that Kubernetes allows, and rounds up.
func parseRate(text string) (uint64, error) {
	number, scale := text, "1"
	for _, s := range suffixes {
		if rest, ok := strings.CutSuffix(text, s.name); ok {
			number, scale = rest, s.scale
			break
		}
	}
	if len(number) > 32 || strings.Trim(number, "0123456789.eE+-") != "" || number == "" {
		return 0, fmt.Errorf("%q is not a quantity", text)
	}
	if at := strings.IndexAny(number, "eE"); at >= 0 && len(strings.TrimLeft(number[at+1:], "+-")) > 2 {
		return 0, fmt.Errorf("%q is not between 1k and 1P", text) // and would be costly to compute
	}
	value, ok := new(big.Rat).SetString(number)
	if !ok {
		return 0, fmt.Errorf("%q is not a quantity", text)
	}
	factor, _ := new(big.Rat).SetString(scale)
	value.Mul(value, factor)
	if value.Cmp(big.NewRat(1000, 1)) < 0 || value.Cmp(big.NewRat(1e15, 1)) > 0 {
		return 0, fmt.Errorf("%q is not between 1k and 1P", text)
	}
	whole, rest := new(big.Int).QuoRem(value.Num(), value.Denom(), new(big.Int))
	if rest.Sign() > 0 {
		whole.Add(whole, big.NewInt(1))
	}
	return whole.Uint64(), nil
}
