package sandbox

import (
	"context"
	"fmt"
	"time"

	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/sandbox/nri"
)

// updateBound is how long one update that a plugin wants may take, turns of its container included.
const updateBound = 10 * time.Second

// Update does what a plugin wants by itself.
func (s source) Update(ctx context.Context, updates []nri.Update) []nri.Update {
	return s.updateFor(ctx, updates)
}

// updateFor changes the limits of containers as plugins want, one after the other, and returns those that failed and
// should not have. Nobody who calls it has a turn.
func (s *Service) updateFor(ctx context.Context, updates []nri.Update) (failed []nri.Update) {
	for _, u := range updates {
		err := s.updateOne(ctx, u)
		if err == nil {
			continue
		}
		s.log.Warn("cannot update a container as a plugin wants", "container", u.Container, "ignored", u.IgnoreFailure, "error", err)
		if !u.IgnoreFailure {
			failed = append(failed, u)
		}
	}
	return failed
}

func (s *Service) updateOne(ctx context.Context, u nri.Update) error {
	c, err := s.container(ContainerID(u.Container))
	if err != nil {
		return err
	}
	if err := u.Check(); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), updateBound)
	defer cancel()
	_, err = c.update(ctx, ociruntime.Limits{Resources: u.Resources})
	return err
}
