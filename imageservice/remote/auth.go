package remote

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
)

// Auth is what the CRI gives to authenticate a pull. The zero value is anonymous. It prints as [redacted].
type Auth struct {
	Username      string
	Password      string
	Auth          string // base64 of username:password
	ServerAddress string // URL or host that the credentials are for; empty: the registry of the reference
	IdentityToken string // exchanged for access tokens at the token server
	RegistryToken string // sent as it is, as a bearer token
}

// maxToken bounds the response of a token server, in bytes.
const maxToken = 1 << 20

// tokenTransport is for a library that reads what a token server sends whole, however long it is.
type tokenTransport struct{ http.RoundTripper }

func (t tokenTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.RoundTripper.RoundTrip(req)
	if err == nil {
		resp.Body = &tokenBody{resp.Body, maxToken}
	}
	return resp, err
}

type tokenBody struct {
	io.ReadCloser
	left int
}

func (b *tokenBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= n; b.left < 0 {
		return 0, fmt.Errorf("%w: token of more than %d bytes", ErrInvalid, maxToken)
	}
	return n, err
}

const redacted = "[redacted]"

// String, GoString and LogValue keep secrets out of messages whatever verb prints them.
func (Auth) String() string       { return redacted }
func (Auth) GoString() string     { return redacted }
func (Auth) LogValue() slog.Value { return slog.StringValue(redacted) }

// errAuth carries no part of the field that it is about.
var errAuth = errors.New("auth field is not base64 of username:password")

// secret is what the token protocol wants: a user and password, or an empty user and an identity token.
func (a Auth) secret() (user, password string, err error) {
	switch {
	case a.Username != "":
		return a.Username, a.Password, nil
	case a.IdentityToken != "":
		return "", a.IdentityToken, nil
	case a.Auth != "":
		decoded, err := base64.StdEncoding.DecodeString(a.Auth)
		if err != nil {
			return "", "", errAuth
		}
		user, password, found := strings.Cut(string(decoded), ":")
		if !found {
			return "", "", errAuth
		}
		return user, strings.Trim(password, "\x00"), nil
	}
	return "", "", nil
}

// dockerHub are the names under which users and tools know one registry.
var dockerHub = map[string]bool{"docker.io": true, "index.docker.io": true, "registry-1.docker.io": true}

func sameRegistry(a, b string) bool {
	return strings.EqualFold(a, b) || dockerHub[strings.ToLower(a)] && dockerHub[strings.ToLower(b)]
}

// belongsTo says whether the credentials may be sent to endpoint when an image of registry is pulled. Both are
// host[:port].
func (a Auth) belongsTo(registry, endpoint string) (bool, error) {
	if a.ServerAddress == "" {
		return sameRegistry(registry, endpoint), nil
	}
	host := a.ServerAddress
	if strings.Contains(host, "://") {
		u, err := url.Parse(host)
		if err != nil || u.Host == "" {
			return false, fmt.Errorf("auth server address is not a URL or host")
		}
		host = u.Host
	}
	host, _, _ = strings.Cut(host, "/")
	return sameRegistry(host, endpoint), nil
}
