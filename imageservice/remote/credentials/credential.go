package credentials

import "log/slog"

// Credential is what authenticates to one registry; the zero value is anonymous. It prints as where it came from.
type Credential struct {
	Username      string
	Password      string
	IdentityToken string // exchanged for access tokens at the token server
	RegistryToken string // sent as it is, as a bearer token
	Origin        string // where it was found, in words
}

// Anonymous says whether there is nothing to show.
func (c Credential) Anonymous() bool {
	return c.Username == "" && c.Password == "" && c.IdentityToken == "" && c.RegistryToken == ""
}

// String, GoString and LogValue keep secrets out of messages whatever verb prints them.
func (c Credential) String() string {
	if c.Anonymous() {
		return "no credentials"
	}
	return "credentials of " + c.Origin
}

// GoString is String.
func (c Credential) GoString() string { return c.String() }

// LogValue is String.
func (c Credential) LogValue() slog.Value { return slog.StringValue(c.String()) }
