package remote

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// The reasons why a registry did not give what was asked for. The last attempt decides, which is the one that went to
// the registry itself after its mirrors.
var (
	ErrNotFound     = errors.New("not found at the registry")
	ErrUnauthorized = errors.New("the registry denies access")
	ErrUnavailable  = errors.New("the registry is unavailable")
	ErrInvalid      = errors.New("the registry sent something invalid")
)

// maxErrorBody bounds what is read of an error response, in bytes.
const maxErrorBody = 8 << 10

// Attempt is one request that failed.
type Attempt struct {
	URL  string // without query and user
	Err  error
	Took time.Duration
}

// FetchError says that something could not be fetched from any endpoint and what happened at each.
type FetchError struct {
	What     string // "manifest latest", "blob sha256:..."
	Attempts []Attempt
}

func (e *FetchError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "fetch %s", e.What)
	if len(e.Attempts) == 0 {
		b.WriteString(": hosts.toml has no endpoint with the capability")
	}
	for i, a := range e.Attempts {
		sep := ": "
		if i > 0 {
			sep = "; "
		}
		b.WriteString(sep)
		if len(e.Attempts) > 1 {
			fmt.Fprintf(&b, "attempt %d: ", i+1)
		}
		fmt.Fprintf(&b, "%s: after %v: %v", a.URL, a.Took.Round(time.Millisecond), a.Err)
	}
	return b.String()
}

// Unwrap returns the error of the last attempt.
func (e *FetchError) Unwrap() error {
	if len(e.Attempts) == 0 {
		return ErrNotFound
	}
	return e.Attempts[len(e.Attempts)-1].Err
}

// statusError is an answer other than the one wanted.
type statusError struct {
	code       int
	detail     string        // what the registry says about it, may be empty
	retryAfter time.Duration // as told by the registry, 0 if it was not
}

func (e *statusError) Error() string {
	text := fmt.Sprintf("%d %s", e.code, http.StatusText(e.code))
	if e.detail != "" {
		text += " (" + e.detail + ")"
	}
	return text
}

func (e *statusError) Unwrap() error {
	switch {
	case e.code == http.StatusNotFound:
		return ErrNotFound
	case e.code == http.StatusUnauthorized || e.code == http.StatusForbidden:
		return ErrUnauthorized
	case e.transient():
		return ErrUnavailable
	}
	return ErrInvalid
}

func (e *statusError) transient() bool {
	return e.code >= 500 || e.code == http.StatusTooManyRequests || e.code == http.StatusRequestTimeout
}

// newStatusError reads what it needs of the response and leaves closing it to the caller.
func newStatusError(resp *http.Response) *statusError {
	e := &statusError{code: resp.StatusCode}
	e.retryAfter = parseRetryAfter(resp.Header.Get("Retry-After"), time.Now())
	var body struct {
		Errors []struct{ Code, Message string }
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err == nil && json.Unmarshal(data, &body) == nil && len(body.Errors) > 0 {
		e.detail = printable(body.Errors[0].Code + ": " + body.Errors[0].Message)
	}
	return e
}

// printable makes a stranger's text fit for one line of a log.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return ' '
		}
		return r
	}, s)
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "") + "..."
	}
	return strings.TrimSpace(s)
}

// retryable says whether the same endpoint may answer better the next time, within longestWait.
func retryable(err error, longestWait time.Duration) bool {
	var status *statusError
	if errors.As(err, &status) {
		return status.transient() && status.retryAfter <= longestWait
	}
	var u unavailable
	return errors.As(err, &u) && !u.final
}
