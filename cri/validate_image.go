package cri

import (
	"encoding/base64"
	"strings"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// image reports a missing or malformed image spec. Whether the reference is one is for imageservice to say.
func (f *faults) image(field string, s *runtimev1.ImageSpec, handlers []string) {
	f.word(field+".image", s.GetImage())
	f.handler(field+".runtime_handler", s.GetRuntimeHandler(), handlers)
}

func validateImage(s *runtimev1.ImageSpec, handlers []string) error {
	var f faults
	f.image("image", s, handlers)
	return f.err()
}

// pullRequest validates and translates a pull. Username and password win over auth, which is base64 of both.
func pullRequest(r *runtimev1.PullImageRequest, handlers []string) (PullRequest, error) {
	var f faults
	f.image("image", r.GetImage(), handlers)
	a := r.GetAuth()
	out := PullRequest{Ref: r.GetImage().GetImage(), Auth: Auth{
		Username: a.GetUsername(), Password: a.GetPassword(), ServerAddress: a.GetServerAddress(),
		IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken(),
	}}
	f.printable("auth.server_address", a.GetServerAddress())
	if a.GetAuth() != "" && a.GetUsername() == "" && a.GetIdentityToken() == "" {
		user, password, ok := basicAuth(a.GetAuth())
		if !ok {
			f.add("auth.auth", "is not base64 of user:password")
		}
		out.Auth.Username, out.Auth.Password = user, password
	}
	return out, f.err()
}

// basicAuth takes apart base64 of user:password; some clients pad the text with NUL bytes.
func basicAuth(encoded string) (user, password string, ok bool) {
	text, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return "", "", false
	}
	user, password, ok = strings.Cut(string(text), ":")
	return user, strings.TrimRight(password, "\x00"), ok
}

// secretsOf returns the texts that must not leave the request r: those of an AuthConfig, and what is inside them.
func secretsOf(r any) []string {
	pull, ok := r.(*runtimev1.PullImageRequest)
	if !ok {
		return nil
	}
	a := pull.GetAuth()
	_, password, _ := basicAuth(a.GetAuth())
	both := base64.StdEncoding.EncodeToString([]byte(a.GetUsername() + ":" + a.GetPassword()))
	var secrets []string
	for _, s := range []string{a.GetPassword(), a.GetAuth(), password, a.GetIdentityToken(), a.GetRegistryToken(), both} {
		if len(s) > 2 { // a shorter one cannot be told from the text around it
			secrets = append(secrets, s)
		}
	}
	return secrets
}

// redact replaces the secrets in text.
func redact(text string, secrets []string) string {
	for _, s := range secrets {
		text = strings.ReplaceAll(text, s, "[redacted]")
	}
	return text
}
