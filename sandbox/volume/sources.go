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
	look func(path string, absent bool) (file bool, err error) // replaced by tests

	mu     sync.Mutex
	asking map[question]*answer
}

// question is about one source; absent: it is made if it is not there.
type question struct {
	path   string
	absent bool
}

// answer is that of a file system.
type answer struct {
	done chan struct{} // closed when the rest is set
	file bool          // and no directory
	err  error
}

// Make sees to one source, and says whether it is a file. It gives up with ctx or after sourceBound.
func (s *Sources) Make(ctx context.Context, path string) (file bool, err error) {
	return s.see(ctx, question{path, true})
}

// Find wants a source to be there already; the error is fs.ErrNotExist if it is not.
func (s *Sources) Find(ctx context.Context, path string) (file bool, err error) {
	return s.see(ctx, question{path, false})
}

func (s *Sources) see(ctx context.Context, q question) (file bool, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, sourceBound, fmt.Errorf("its file system has not answered for %s", sourceBound))
	defer cancel()
	a := s.ask(q)
	select {
	case <-a.done:
		return a.file, a.err
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}

// ask begins to see to a source unless that is under way.
func (s *Sources) ask(q question) *answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.asking[q]; a != nil {
		return a
	}
	if s.asking == nil {
		s.asking = map[question]*answer{}
	}
	look := s.look
	if look == nil {
		look = makeSource
	}
	a := &answer{done: make(chan struct{})}
	s.asking[q] = a
	go func() {
		a.file, a.err = look(q.path, q.absent)
		s.mu.Lock()
		delete(s.asking, q)
		s.mu.Unlock()
		close(a.done)
	}()
	return a
}

// makeSource makes a directory at path if nothing is there and it may be absent.
func makeSource(path string, absent bool) (file bool, err error) {
	info, err := os.Stat(path)
	if absent && errors.Is(err, fs.ErrNotExist) {
		return false, os.MkdirAll(path, 0o755)
	}
	return err == nil && !info.IsDir(), err
}
