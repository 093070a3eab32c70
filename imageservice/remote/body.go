package remote

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"
)

// body is a response body that must keep up a rate. Only the time spent waiting for the network counts: a reader that is
// slow itself does not make the sender look slow.
type body struct {
	ctx    context.Context // of the caller; a field because io.Reader has no parameter for it
	io     context.Context // of the request
	cancel context.CancelCauseFunc
	from   *endpoint
	rc     io.ReadCloser
	watch  *time.Timer // fires when a read makes the window too long
	window time.Duration
	want   int64 // bytes in a window

	waited time.Duration // in this window
	got    int64         // in this window
}

// stream sends one request and returns its response, the body of which is to be read through the returned *body. A window
// is also the time in which the response must begin, with all challenges and redirects before it.
func (s *Session) stream(ctx context.Context, e *endpoint, address string, header http.Header, accept ...int) (*http.Response, *body, error) {
	io, cancel := context.WithCancelCause(ctx)
	window := s.cfg.Window
	answer := time.AfterFunc(window, func() { cancel(unavailable{err: fmt.Errorf("stalled: no answer in %v", window)}) })
	resp, err := s.get(io, e, address, header, accept...)
	answer.Stop()
	if err != nil {
		cancel(err)
		return nil, nil, err
	}
	b := &body{ctx: ctx, io: io, cancel: cancel, from: e, rc: resp.Body, window: window}
	b.want = int64(float64(s.cfg.MinThroughput) * window.Seconds())
	b.watch = time.AfterFunc(time.Hour, func() {
		cancel(unavailable{err: fmt.Errorf("stalled: less than %d bytes in %v", b.want, window)})
	})
	b.watch.Stop()
	return resp, b, nil
}

func (b *body) Read(p []byte) (int, error) {
	start := time.Now()
	b.watch.Reset(b.window - b.waited)
	n, err := b.rc.Read(p)
	b.watch.Stop()
	b.waited += time.Since(start)
	b.got += int64(n)
	if b.got >= b.want {
		b.waited, b.got = 0, 0
	} else if b.waited >= b.window {
		b.cancel(unavailable{err: fmt.Errorf("stalled: %d of %d bytes in %v", b.got, b.want, b.window)})
		if n > 0 {
			return n, nil
		}
		return 0, context.Cause(b.io)
	}
	if err != nil && err != io.EOF {
		err = b.from.transportError(b.io, err)
	}
	return n, err
}

func (b *body) Close() error {
	b.watch.Stop()
	b.cancel(nil)
	return b.rc.Close()
}
