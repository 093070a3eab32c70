package remote

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/criserver/criserver/imageservice/remote/credentials"
)

// authorizer answers the challenges of one endpoint. What it has learned serves all requests until it expires or is refused.
// Credentials are looked for only when the endpoint asks for them, and again for every new token, so that those that live
// shorter than a pull are renewed.
type authorizer struct {
	host      string       // of the endpoint
	client    *http.Client // for token servers; shows nothing of the endpoint's own headers
	userAgent string
	scope     string                                                // of a token that is enough here
	find      func(context.Context) (credentials.Credential, error) // for the endpoint

	turn    chan struct{} // holds one while the following is used
	header  string        // Authorization; empty: none was asked for
	expires time.Time     // of header; zero: never
	answers challenge     // which header answered
	https   bool          // whether it came over TLS
	origin  string        // of the credentials
}

func (a *authorizer) lock(ctx context.Context) error {
	select {
	case a.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("credentials or token server of %s: %w", a.host, context.Cause(ctx))
	}
}

func (a *authorizer) unlock() { <-a.turn }

// authorize returns the Authorization of the next request.
func (a *authorizer) authorize(ctx context.Context) (header string, err error) {
	if err := a.lock(ctx); err != nil {
		return "", err
	}
	defer a.unlock()
	if !a.expires.IsZero() && time.Now().After(a.expires) {
		if err := a.renew(ctx); err != nil {
			return "", err
		}
	}
	return a.header, nil
}

// challenged takes in a 401 to a request that carried sent; nil means that the request is worth repeating.
func (a *authorizer) challenged(ctx context.Context, resp *http.Response, sent string) error {
	if err := a.lock(ctx); err != nil {
		return err
	}
	defer a.unlock()
	if a.header != sent {
		return nil // another request has learned better meanwhile
	}
	c, found := choose(challenges(resp.Header))
	if !found {
		return fmt.Errorf("%w: it names no way to authenticate that is known here", ErrUnauthorized)
	}
	a.answers, a.https = c, resp.Request.URL.Scheme == "https"
	if err := a.renew(ctx); err != nil {
		return err
	}
	if a.header == sent {
		return fmt.Errorf("%w: it refuses %s", ErrUnauthorized, a.origin)
	}
	return nil
}

// renew answers the challenge anew. After an error nothing is left of what was known.
func (a *authorizer) renew(ctx context.Context) error {
	a.header, a.expires = "", time.Time{}
	found, err := a.find(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("%w: %w", ErrUnauthorized, err)
	}
	a.origin = found.String()
	if a.answers.scheme == "basic" {
		if found.Username == "" {
			return fmt.Errorf("%w: it wants a user and password; %s", ErrUnauthorized, found)
		}
		a.header = "Basic " + base64.StdEncoding.EncodeToString([]byte(found.Username+":"+found.Password))
		return nil
	}
	if found.RegistryToken != "" {
		a.header = "Bearer " + found.RegistryToken
		return nil
	}
	token, life, err := a.token(ctx, found)
	if err != nil {
		return err
	}
	a.header, a.expires = "Bearer "+token, time.Now().Add(life)
	return nil
}

// realm is the token server's address. It must not be weaker than the connection on which it was told.
func (a *authorizer) realm() (*url.URL, error) {
	text := a.answers.params["realm"]
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return nil, fmt.Errorf("%w: token server at %q is not a URL of HTTP", ErrUnauthorized, printable(text))
	case a.https && u.Scheme != "https":
		return nil, fmt.Errorf("%w: token server at %q is not asked over plain HTTP, since the registry speaks HTTPS", ErrUnauthorized, printable(text))
	}
	u.User, u.Fragment = nil, ""
	return u, nil
}
