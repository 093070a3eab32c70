package stream

import (
	"errors"
	"io"
	"os"
	"sync"
)

// spoolLimit is how far an attached client may be behind, in bytes, besides what its pipe holds.
const spoolLimit = 16 << 20

// spool is what was read of a container's output and its client has not taken yet. When it is full nothing more is read, and the
// client's pipe fills.
type spool struct {
	mu     sync.Mutex
	change sync.Cond
	data   []byte // not handed over yet
	held   int    // handed over and not taken yet
	ended  bool   // no more will be put in, or nobody takes any more
}

func newSpool() *spool {
	s := &spool{}
	s.change.L = &s.mu
	return s
}

// fill reads until from ends or the spool is ended.
func (s *spool) fill(from *os.File) {
	defer s.end()
	buffer := make([]byte, bufferSize)
	for {
		n, err := from.Read(buffer)
		if !s.put(buffer[:n]) {
			return
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			rest(from, buffer, s.put)
		}
		if err != nil {
			return
		}
	}
}

func (s *spool) put(data []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.data)+s.held > spoolLimit && !s.ended {
		s.change.Wait()
	}
	if s.ended {
		return false
	}
	s.data = append(s.data, data...)
	s.change.Broadcast()
	return true
}

func (s *spool) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.change.Broadcast()
}

var errEmpty = errors.New("spool has ended")

// take hands over what there is; the client has taken what was handed over before.
func (s *spool) take() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = 0
	s.change.Broadcast()
	for len(s.data) == 0 {
		if s.ended {
			return nil, errEmpty
		}
		s.change.Wait()
	}
	data := s.data
	s.data, s.held = nil, len(data)
	return data, nil
}

// drain writes everything to the client, in pieces as the other streams have.
func (s *spool) drain(to io.Writer) error {
	defer s.end()
	for {
		data, err := s.take()
		if err != nil {
			return nil
		}
		for len(data) > 0 {
			n := min(len(data), bufferSize)
			if _, err := to.Write(data[:n]); err != nil {
				return err
			}
			data = data[n:]
		}
	}
}
