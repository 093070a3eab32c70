package sandbox

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/criserver/criserver/ociruntime/rlimit"
	"github.com/criserver/criserver/ociruntime/specgen"
	"github.com/criserver/criserver/store/record"
)

// SetHandlers replaces the runtime handlers. Pods that are there keep what theirs was when they were made. handlers must
// have one with the empty name, and belongs to the Service from now on.
func (s *Service) SetHandlers(handlers map[string]*specgen.Handler) {
	for name, h := range handlers {
		if _, lowered := rlimit.Clamp(h.Rlimits, s.host.Ceiling); len(lowered) > 0 {
			s.log.Warn("containers get lower limits than configured: criserver lacks CAP_SYS_RESOURCE", "handler", name, "configured", lowered)
		}
	}
	s.handlers.Store(&handlers)
}

// handler is a runtime handler as it is now.
func (s *Service) handler(name string) (*specgen.Handler, error) {
	if h := (*s.handlers.Load())[name]; h != nil {
		return h, nil
	}
	return nil, fmt.Errorf("%w: runtime handler %q is not configured", ErrInvalid, name)
}

// storedHandler is the handler of a record. One without it is of a criserver that had no configuration of handlers.
func (s *Service) storedHandler(name string, stored json.RawMessage) (*specgen.Handler, error) {
	if now, err := s.handler(name); err == nil {
		if same, err := json.Marshal(now); err == nil && bytes.Equal(same, stored) {
			return now, nil // pods share it
		}
	}
	h := specgen.DefaultHandler() // for the fields that the record does not have yet
	if len(stored) == 0 {
		return &h, nil
	}
	if err := json.Unmarshal(stored, &h); err != nil {
		return nil, fmt.Errorf("%w: runtime handler: %w", record.ErrCorrupt, err)
	}
	return &h, nil
}
