package remote

import (
	"fmt"
	"log/slog"
	"net/url"
	"strings"

	"github.com/criserver/criserver/imageservice/remote/credentials"
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

const redacted = "[redacted]"

// String, GoString and LogValue keep secrets out of messages whatever verb prints them.
func (Auth) String() string       { return redacted }
func (Auth) GoString() string     { return redacted }
func (Auth) LogValue() slog.Value { return slog.StringValue(redacted) }

// credential is what the fields say, of which a user wins over an identity token, that over the encoded form, and a token of
// the registry comes last.
func (a Auth) credential() (credentials.Credential, error) {
	c := credentials.Credential{Origin: "the pull request"}
	switch {
	case a.Username != "":
		c.Username, c.Password = a.Username, a.Password
	case a.IdentityToken != "":
		c.IdentityToken = a.IdentityToken
	case a.Auth != "":
		var err error
		if c.Username, c.Password, err = credentials.Decode(a.Auth); err != nil {
			return c, fmt.Errorf("auth of %s: %w", c.Origin, err)
		}
	default:
		c.RegistryToken = a.RegistryToken
	}
	return c, nil
}

// belongsTo says whether the credentials may be sent to endpoint when an image of registry is pulled. Both are
// host[:port].
func (a Auth) belongsTo(registry, endpoint string) (bool, error) {
	if a.ServerAddress == "" {
		return credentials.SameRegistry(registry, endpoint), nil
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
	return credentials.SameRegistry(host, endpoint), nil
}
