package sandbox

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/criserver/criserver/ociruntime/rlimit"
	"github.com/criserver/criserver/ociruntime/specgen"
	"github.com/criserver/criserver/store/record"
)

// Settings are what can change while a Service works; see Configure.
type Settings struct {
	Handlers     map[string]*specgen.Handler // runtime handlers by name, the empty one among them. nil: that one, as specgen.DefaultHandler
	BlockIO      string                      // file of classes of block I/O; "": there are none
	RejectAbsent []string                    // sources of mounts that are not made where they are missing
	LineMax      int                         // bytes of content in a log record; 0: 16 KiB
}

// settled fills in what settings leave open.
func (c Settings) settled() *Settings {
	if c.Handlers == nil {
		h := specgen.DefaultHandler()
		c.Handlers = map[string]*specgen.Handler{"": &h}
	}
	return &c
}

// Configure replaces the settings; they belong to the Service from now on. Pods that are there keep what their handler
// was when they were made.
func (s *Service) Configure(settings Settings) {
	now := settings.settled()
	warned := make(map[*specgen.Handler]bool)
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(now.Handlers))) { // the empty name last, if it is another's too
		h := now.Handlers[name]
		if warned[h] {
			continue
		}
		warned[h] = true
		if _, lowered := rlimit.Clamp(h.Rlimits, s.host.Ceiling); len(lowered) > 0 {
			s.log.Warn("containers get lower limits than configured: criserver may not give them more", "handler", name, "configured", lowered)
		}
		if h.CgroupWritable && !s.host.CgroupV2 {
			s.log.Warn("containers may not make groups in theirs: that needs cgroup v2", "handler", name)
		}
	}
	s.settings.Store(now)
}

// handler is a runtime handler as it is now.
func (s *Service) handler(name string) (*specgen.Handler, error) {
	if h := s.settings.Load().Handlers[name]; h != nil {
		return h, nil
	}
	return nil, fmt.Errorf("%w: runtime handler %q is not configured", ErrInvalid, name)
}

// storedHandler is the handler of a record.
func (s *Service) storedHandler(name string, stored json.RawMessage) (*specgen.Handler, error) {
	if now, err := s.handler(name); err == nil {
		if same, err := json.Marshal(now); err == nil && bytes.Equal(same, stored) {
			return now, nil // pods share it
		}
	}
	h := specgen.DefaultHandler() // for the fields that the record does not have yet
	if err := json.Unmarshal(stored, &h); err != nil {
		return nil, fmt.Errorf("%w: runtime handler: %w", record.ErrCorrupt, err)
	}
	return &h, nil
}
