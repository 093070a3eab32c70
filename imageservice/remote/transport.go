package remote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// unavailable is an error of the transport. Of that only the text is passed on: a registry's timeout would pass for the
// end of the caller's context.
type unavailable struct {
	err   error
	final bool // asking again cannot help
}

func (u unavailable) Error() string { return u.err.Error() }
func (u unavailable) Unwrap() error { return ErrUnavailable }

// transportError tells the end of ctx from a broken connection, and adds what the operator can do about it.
func (e *endpoint) transportError(ctx context.Context, err error) error {
	err = plainTransportError(ctx, err)
	var u unavailable
	if !errors.As(err, &u) {
		return err
	}
	advice, final := e.advice(u.err)
	if advice != "" {
		u.err = fmt.Errorf("%w (%s in %s)", u.err, advice, e.hostsFile)
	}
	u.final = u.final || final
	return u
}

// plainTransportError strips the URL, which may carry a signed query.
func plainTransportError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var urlErr *url.Error
	if errors.As(err, &urlErr) {
		err = urlErr.Err
	}
	if errors.Is(err, ErrInvalid) || errors.Is(err, ErrUnavailable) {
		return err
	}
	var refused *proxyRefusal
	return unavailable{err: err, final: errors.As(err, &refused)}
}

// advice says whether err is there to stay, and, where it is for the operator to mend, what to write into hosts.toml.
func (e *endpoint) advice(err error) (advice string, final bool) {
	var (
		unknown  x509.UnknownAuthorityError
		verify   *tls.CertificateVerificationError
		noTLS    tls.RecordHeaderError
		alert    *net.OpError
		resolver *net.DNSError
	)
	switch {
	case errors.As(err, &unknown):
		return fmt.Sprintf("to trust it, set ca for https://%s", e.Host), true
	case errors.As(err, &verify): // expired, or of another host
		return "", true
	case errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Sprintf("to allow that, name it http://%s", e.Host), true
	case errors.As(err, &noTLS):
		return "", true
	case errors.As(err, &alert) && alert.Op == "remote error" && strings.Contains(alert.Err.Error(), "certificate"):
		return fmt.Sprintf("to show one, set client for https://%s", e.Host), true
	case errors.As(err, &resolver):
		return "", resolver.IsNotFound
	}
	return "", false
}
