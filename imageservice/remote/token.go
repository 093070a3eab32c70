package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/criserver/criserver/imageservice/remote/credentials"
)

const (
	maxToken = 1 << 20 // bytes of the answer of a token server

	// defaultLife is that of a token whose server does not say, by the protocol's specification.
	defaultLife = time.Minute
	maxLife     = 24 * time.Hour
)

// token asks the token server. It is asked as docker does: with an identity token by POST, else by GET with what there is.
// life is how long the token is to be used.
func (a *authorizer) token(ctx context.Context, c credentials.Credential) (token string, life time.Duration, err error) {
	realm, err := a.realm()
	if err != nil {
		return "", 0, err
	}
	fail := func(cause error) (string, time.Duration, error) {
		return "", 0, fmt.Errorf("token server %s, asked with %s: %w", realm.Host, c, cause)
	}
	req, err := a.tokenRequest(ctx, realm, c)
	if err != nil {
		return fail(fmt.Errorf("%w: %w", ErrUnauthorized, err))
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return fail(plainTransportError(ctx, err))
	}
	defer func() { _ = resp.Body.Close() }() // read to its end, or abandoned
	if resp.StatusCode != http.StatusOK {
		status := newStatusError(resp)
		if status.transient() {
			return fail(status)
		}
		return fail(fmt.Errorf("%w: %s", ErrUnauthorized, status.Error()))
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxToken+1))
	if err != nil {
		return fail(plainTransportError(ctx, err))
	}
	if token, life, err = parseToken(data); err != nil {
		return fail(fmt.Errorf("%w: %w", ErrInvalid, err))
	}
	return token, life, nil
}

func (a *authorizer) tokenRequest(ctx context.Context, realm *url.URL, c credentials.Credential) (*http.Request, error) {
	values := url.Values{}
	if service := a.answers.params["service"]; service != "" {
		values.Set("service", service)
	}
	scopes := strings.Fields(a.answers.params["scope"])
	if len(scopes) == 0 {
		scopes = []string{a.scope}
	}
	address := *realm
	method, form := http.MethodGet, ""
	if c.IdentityToken != "" {
		values.Set("grant_type", "refresh_token")
		values.Set("client_id", a.userAgent)
		values.Set("refresh_token", c.IdentityToken)
		values.Set("scope", strings.Join(scopes, " "))
		method, form = http.MethodPost, values.Encode()
	} else {
		query := realm.Query()
		for key, value := range values {
			query[key] = value
		}
		query["scope"] = scopes
		if c.Username != "" {
			query.Set("account", c.Username)
		}
		address.RawQuery = query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, address.String(), strings.NewReader(form))
	if err != nil {
		return nil, errors.New("its address cannot be asked")
	}
	if form != "" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	} else if c.Username != "" {
		req.SetBasicAuth(c.Username, c.Password)
	}
	req.Header.Set("User-Agent", a.userAgent)
	return req, nil
}

// parseToken reads the answer of a token server. A token is renewed a tenth of its life before its end.
func parseToken(data []byte) (token string, life time.Duration, err error) {
	if len(data) > maxToken {
		return "", 0, fmt.Errorf("token of more than %d bytes", maxToken)
	}
	var answer struct {
		Token       string  `json:"token"`
		AccessToken string  `json:"access_token"`
		ExpiresIn   float64 `json:"expires_in"` // seconds
	}
	if json.Unmarshal(data, &answer) != nil { // its text may quote a token
		return "", 0, errors.New("answer is not the JSON of a token")
	}
	if token = answer.AccessToken; token == "" {
		token = answer.Token
	}
	if token == "" {
		return "", 0, errors.New("answer has no token")
	}
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", 0, errors.New("token has characters that no header may have")
	}
	life = defaultLife
	if answer.ExpiresIn >= maxLife.Seconds() {
		life = maxLife
	} else if answer.ExpiresIn > 0 {
		life = time.Duration(answer.ExpiresIn * float64(time.Second))
	}
	return token, life - life/10, nil
}

// withinHost follows redirects of a token server only on itself: the credentials are for that host alone, and a token from
// elsewhere would be sent to the registry.
func withinHost(req *http.Request, via []*http.Request) error {
	switch {
	case len(via) > maxRedirects:
		return fmt.Errorf("%w: more than %d redirects", ErrInvalid, maxRedirects)
	case !sameOrigin(req.URL, via[0].URL):
		return fmt.Errorf("%w: %s redirected to another host", ErrInvalid, via[0].Method)
	}
	return nil
}
