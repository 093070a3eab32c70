package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"
)

// sourceBound is how long a file system may take to say whether a mount's source is there.
const sourceBound = 20 * time.Second

// Sources makes directories where the host has nothing to mount, as the peers do. A file system that does not answer
// costs one thread however often it is asked: who asks for the same path waits for the same answer. The zero value is
// ready for use.
type Sources struct {
	look func(path string) error // replaced by tests

	mu     sync.Mutex
	asking map[string]*answer
}

// answer is that of a file system.
type answer struct {
	done chan struct{} // closed when err is set
	err  error
}

// Make sees to one source. It gives up with ctx or after sourceBound.
func (s *Sources) Make(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, sourceBound, fmt.Errorf("its file system has not answered for %s", sourceBound))
	defer cancel()
	a := s.ask(path)
	select {
	case <-a.done:
		return a.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ask begins to make a path unless that is under way.
func (s *Sources) ask(path string) *answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.asking[path]; a != nil {
		return a
	}
	if s.asking == nil {
		s.asking = map[string]*answer{}
	}
	look := s.look
	if look == nil {
		look = makeSource
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
