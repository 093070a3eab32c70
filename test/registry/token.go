package registry

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const (
	tokenIssuer  = "test issuer"
	tokenService = "test registry"

	// IdentityToken is what the token server takes instead of User and Password.
	IdentityToken = "identity-token-of-alice"
)

// tokenServer gives pull tokens to those who show the right credentials.
type tokenServer struct {
	*httptest.Server
	identity *identity
	given    atomic.Int32
}

func startTokenServer(t testing.TB, id *identity) *tokenServer {
	s := &tokenServer{identity: id}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.serve(t, w, r) }))
	t.Cleanup(s.Close)
	return s
}

func (s *tokenServer) serve(t testing.TB, w http.ResponseWriter, r *http.Request) {
	user, password, _ := r.BasicAuth()
	if r.Method == http.MethodPost {
		user, password = r.PostFormValue("username"), r.PostFormValue("password")
		if r.PostFormValue("grant_type") == "refresh_token" && r.PostFormValue("refresh_token") == IdentityToken {
			user, password = User, Password
		}
	}
	if user != User || password != Password {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	scope := r.FormValue("scope")
	repo, _ := strings.CutPrefix(scope, "repository:")
	repo, _, _ = strings.Cut(repo, ":")
	token := s.sign(t, repo, "pull")
	s.given.Add(1)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": token, "expires_in": 300}) // the client may be gone
}

// sign makes a token as docker-registry wants it: a JWT with the certificate in its header.
func (s *tokenServer) sign(t testing.TB, repo string, actions ...string) string {
	encode := func(v any) string {
		data, err := json.Marshal(v)
		if err != nil {
			t.Error(err)
		}
		return base64.RawURLEncoding.EncodeToString(data)
	}
	now := time.Now().Unix()
	text := encode(map[string]any{
		"typ": "JWT", "alg": "RS256", "x5c": []string{base64.StdEncoding.EncodeToString(s.identity.cert.Raw)},
	}) + "." + encode(map[string]any{
		"iss": tokenIssuer, "sub": User, "aud": tokenService, "exp": now + 300, "nbf": now - 60, "iat": now, "jti": "1",
		"access": []any{map[string]any{"type": "repository", "name": repo, "actions": actions}},
	})
	sum := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPKCS1v15(rand.Reader, s.identity.key, crypto.SHA256, sum[:])
	if err != nil {
		t.Error(err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// BearerToken is a token with which repo can be pulled, for a registry started with Options.Token.
func (r *Registry) BearerToken(t testing.TB, repo string) string {
	return r.tokens.sign(t, repo, "pull")
}

// TokensGiven is how many tokens the token server has given.
func (r *Registry) TokensGiven() int { return int(r.tokens.given.Load()) }
