package cri

import (
	"encoding/base64"
	"strings"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/imageservice"
	"github.com/criserver/criserver/imageservice/remote"
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

// pullRequest validates and translates a pull.
func pullRequest(r *runtimev1.PullImageRequest, handlers []string) (imageservice.PullRequest, error) {
	var f faults
	f.image("image", r.GetImage(), handlers)
	a := r.GetAuth()
	f.printable("auth.server_address", a.GetServerAddress())
	if a.GetAuth() != "" && a.GetUsername() == "" && a.GetIdentityToken() == "" { // which win over it
		if _, ok := basicPassword(a.GetAuth()); !ok {
			f.add("auth.auth", "is not base64 of user:password")
		}
	}
	return imageservice.PullRequest{Ref: r.GetImage().GetImage(), Auth: remote.Auth{
		Username: a.GetUsername(), Password: a.GetPassword(), Auth: a.GetAuth(), ServerAddress: a.GetServerAddress(),
		IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken(),
	}}, f.err()
}

// basicPassword takes the password out of base64 of user:password; some clients pad the text with NUL bytes.
func basicPassword(encoded string) (password string, ok bool) {
	text, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return "", false
	}
	_, password, ok = strings.Cut(string(text), ":")
	return strings.Trim(password, "\x00"), ok
}

// secretsOf returns the texts that must not leave the request r: those of an AuthConfig, and what is inside them.
func secretsOf(r any) []string {
	pull, ok := r.(*runtimev1.PullImageRequest)
	if !ok {
		return nil
	}
	a := pull.GetAuth()
	password, _ := basicPassword(a.GetAuth())
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
