package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// errPatience is why a request is cancelled in the middle of a body; what the reader is told is pace's.
var errPatience = unavailable{err: errors.New("the body comes too slowly")}

// body is a response body that must keep up a pace.
type body struct {
	io     context.Context // of the request; a field because io.Reader has no parameter for it
	cancel context.CancelCauseFunc
	from   *endpoint
	rc     io.ReadCloser
	leave  func() // gives its place at the gate back
	pace   *pace
	watch  *time.Timer // fires when a read takes longer than pace has patience
}

// stream sends one request and returns its response, the body of which is to be read through the returned *body. A window
// is also the time in which the response must begin, with all redirects, and with a token before it.
func (s *Session) stream(ctx context.Context, e *endpoint, address string, header http.Header, accept ...int) (*http.Response, *body, error) {
	leave, err := e.gate.enter(ctx)
	if err != nil {
		return nil, nil, err
	}
	io, cancel := context.WithCancelCause(ctx)
	window := s.cfg.Window
	answer := time.AfterFunc(window, func() { cancel(unavailable{err: fmt.Errorf("stalled: no answer in %v", window)}) })
	resp, err := s.get(io, e, answer, address, header, accept...)
	answer.Stop()
	if err != nil {
		leave()
		cancel(err)
		return nil, nil, err
	}
	b := &body{io: io, cancel: cancel, from: e, rc: resp.Body, leave: sync.OnceFunc(leave), pace: newPace(s.cfg.MinThroughput, window)}
	b.watch = time.AfterFunc(time.Hour, func() { cancel(errPatience) })
	b.watch.Stop()
	return resp, b, nil
}

func (b *body) Read(p []byte) (int, error) {
	start := time.Now()
	b.watch.Reset(b.pace.patience())
	n, err := b.rc.Read(p)
	b.watch.Stop()
	if slow := b.pace.brought(n, time.Since(start)); slow != nil && err != io.EOF {
		b.cancel(errPatience)
		return n, slow
	}
	if err != nil && err != io.EOF {
		err = b.from.transportError(b.io, err)
	}
	return n, err
}

func (b *body) Close() error {
	b.watch.Stop()
	b.cancel(nil)
	b.leave()
	return b.rc.Close()
}
