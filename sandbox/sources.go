package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// sourceBound is how long a file system may take to say whether a mount's source is there.
const sourceBound = 20 * time.Second

// sources makes directories where the host has nothing to mount, as the peers do. A file system that does not answer
// costs one thread however often it is asked: who asks for the same path waits for the same answer.
type sources struct {
	mu     sync.Mutex
	asking map[string]*answer
}

// answer is that of a file system.
type answer struct {
	done chan struct{} // closed when err is set
	err  error
}

// make sees to the sources of all mounts. It gives up with ctx or after sourceBound.
func (s *sources) make(ctx context.Context, mounts []*runtimev1.Mount, look func(path string) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, sourceBound, fmt.Errorf("its file system has not answered for %s", sourceBound))
	defer cancel()
	for _, m := range mounts {
		if m.HostPath == "" { // an image
			continue
		}
		a := s.ask(m.HostPath, look)
		select {
		case <-a.done:
		case <-ctx.Done():
			return fmt.Errorf("host_path %s of the mount on %s: %w", m.HostPath, m.ContainerPath, context.Cause(ctx))
		}
		if a.err != nil {
			return fmt.Errorf("host_path %s of the mount on %s: %w", m.HostPath, m.ContainerPath, a.err)
		}
	}
	return nil
}

// ask has look called for a path unless that is under way.
func (s *sources) ask(path string, look func(string) error) *answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.asking[path]; a != nil {
		return a
	}
	if s.asking == nil {
		s.asking = map[string]*answer{}
	}
	a := &answer{done: make(chan struct{})}
	s.asking[path] = a
	go func() {
		a.err = look(path)
		s.mu.Lock()
		delete(s.asking, path)
		s.mu.Unlock()
		close(a.done)
	}()
	return a
}

// makeSource makes a directory at path if nothing is there.
func makeSource(path string) error {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = os.MkdirAll(path, 0o755)
	}
	return err
}
