package main

import (
	"encoding/json"

	"github.com/criserver/criserver/cni"
)

// rpcNetwork is the network as package cri wants it.
type rpcNetwork struct{ *cni.Network }

func (n rpcNetwork) Ready() (ready bool, reason, message string) {
	s := n.Status()
	return s.Ready, s.Reason, s.Message
}

func (n rpcNetwork) Inspect() (config any, load string) { return n.Network.Inspect() }

func (rpcNetwork) InspectResult(raw json.RawMessage) (any, error) { return cni.InspectResult(raw) }
