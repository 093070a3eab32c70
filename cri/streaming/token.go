package streaming

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"
)

const (
	tokenLife  = time.Minute
	maxPending = 1000
	tokenBytes = 16
)

// ErrTooMany says that too many streams were asked for and not opened yet.
var ErrTooMany = errors.New("too many streams wait to be opened")

// pending is a stream that was asked for.
type pending struct {
	request any // of ExecRequest, AttachRequest, PortForwardRequest
	until   time.Time
}

// tokens are the streams that were asked for and not opened yet.
type tokens struct {
	mu  sync.Mutex
	all map[string]pending
}

// add returns a token that opens request once, for a while.
func (t *tokens) add(request any) (string, error) {
	random := make([]byte, tokenBytes)
	_, _ = rand.Read(random) // never fails
	token := base64.RawURLEncoding.EncodeToString(random)
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.all, func(_ string, p pending) bool { return now.After(p.until) })
	if len(t.all) >= maxPending {
		return "", fmt.Errorf("%w: %d, of which each is kept for %s", ErrTooMany, len(t.all), tokenLife)
	}
	t.all[token] = pending{request, now.Add(tokenLife)}
	return token, nil
}

// take returns what a token opens, and forgets it.
func (t *tokens) take(token string) (request any, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, ok := t.all[token]
	delete(t.all, token)
	if !ok || time.Now().After(p.until) {
		return nil, false
	}
	return p.request, true
}
