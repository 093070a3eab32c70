package cni

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/version"
)

// ReasonNotReady is the reason that the kubelet knows for a NetworkReady condition that is false.
const ReasonNotReady = "NetworkPluginNotReady"

// Status is the answer to "could a pod be attached now".
type Status struct {
	Ready   bool
	Reason  string // empty if Ready, else ReasonNotReady
	Message string // why not; if Ready, empty or a warning
	Network string // name of the network in force, if any
	File    string // where its configuration is from; empty: the embedded default network, or none
}

// Status answers from memory: it waits for no plugin, no disk and no lock that is held over either. Plugins of CNI 1.1
// are asked for their own status in the background, at most every statusAge; until the first answer to a new
// configuration the network is not ready.
func (n *Network) Status() Status {
	s := n.current.Load()
	st := s.status()
	if !st.Ready {
		return st
	}
	if err := n.probe.verdict(s.list, n.askStatus); err != nil {
		st.Ready, st.Reason, st.Message = false, ReasonNotReady, err.Error()
	}
	return st
}

// status is what the configuration alone tells.
func (s *snapshot) status() Status {
	if s.list == nil {
		return Status{Reason: ReasonNotReady, Message: s.problem}
	}
	st := Status{Network: s.list.Name, File: s.source}
	if s.missing != "" {
		st.Reason, st.Message = ReasonNotReady, s.missing
	} else {
		st.Ready, st.Message = true, s.problem
	}
	return st
}

// ConfList returns the configuration list in force as JSON, for an operator to look at; nil if there is none.
func (n *Network) ConfList() []byte { return confBytes(n.current.Load()) }

// statusAge is how old a plugin's answer may be before it is asked again.
const statusAge = 5 * time.Second

// statusBound is the time for all plugins of a list to answer STATUS.
const statusBound = 10 * time.Second

// prober asks plugins for their status, one asking at a time.
type prober struct {
	mu      sync.Mutex
	asking  context.CancelFunc // nil: nobody is asked
	round   int                // of the configuration: an answer about an older one does not count
	known   bool
	answer  error
	at      time.Time
	closed  bool
	running sync.WaitGroup
}

// forget makes the next verdict wait for a new answer, because the configuration changed.
func (p *prober) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.round++
	p.known = false
	if p.asking != nil {
		p.asking()
		p.asking = nil
	}
}

func (p *prober) close() {
	p.forget()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.running.Wait()
}

// verdict returns the last answer at once and has a new one fetched if it is old.
func (p *prober) verdict(list *libcni.NetworkConfigList, ask func(context.Context, *libcni.NetworkConfigList) error) error {
	if can, err := version.GreaterThanOrEqualTo(list.CNIVersion, "1.1.0"); err != nil || !can {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.asking == nil && !p.closed && (!p.known || time.Since(p.at) > statusAge) {
		ctx, cancel := context.WithTimeout(context.Background(), statusBound)
		p.asking = cancel
		p.running.Add(1)
		go p.fetch(ctx, cancel, p.round, func() error { return ask(ctx, list) })
	}
	if !p.known {
		return errAwaited
	}
	return p.answer
}

var errAwaited = errors.New("the network plugins have not answered STATUS yet")

func (p *prober) fetch(ctx context.Context, cancel context.CancelFunc, round int, ask func() error) {
	defer p.running.Done()
	defer cancel()
	err := ask()
	p.mu.Lock()
	defer p.mu.Unlock()
	if round != p.round {
		return
	}
	p.asking, p.known, p.answer, p.at = nil, true, err, time.Now()
}
