package imageservice

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/imageservice/remote"
	"github.com/criserver/criserver/imageservice/trust"
	"github.com/criserver/criserver/test/registry"
)

// policyFile writes a policy that rejects all but what one scope's requirements let in.
func policyFile(t testing.TB, scope, requirements string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "policy.json")
	text := fmt.Sprintf(`{"default":[{"type":"reject"}],"transports":{"docker":{%q:[%s]}}}`, scope, requirements)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func policyOf(t testing.TB, scope, requirements string) Verification {
	t.Helper()
	p, err := trust.Load(policyFile(t, scope, requirements))
	if err != nil {
		t.Fatal(err)
	}
	return Verification{Policy: p}
}

func sigstoreSigned(t testing.TB, s registry.Signature, identity string) string {
	t.Helper()
	if identity != "" {
		identity = `,"signedIdentity":` + identity
	}
	return fmt.Sprintf(`{"type":"sigstoreSigned","keyData":%q%s}`, base64.StdEncoding.EncodeToString(registry.PublicKey(t, s.Key)), identity)
}

// A refused image leaves nothing, and nothing but manifests and signatures was asked for. A present one goes on.
func TestVerification(t *testing.T) {
	reg := registry.Start(t, registry.Options{Basic: true})
	img := hello(t, "signed")
	reg.PushImage(t, "team/app", "v1", img)
	ref := reg.Addr + "/team/app:v1"
	ours, theirs := registry.Signature{Key: registry.NewKey(t), Name: ref}, registry.Signature{Key: registry.NewKey(t), Name: ref}
	n := newNode(t, func(c *Config) { c.Verify = policyOf(t, reg.Addr, sigstoreSigned(t, ours, "")) })
	pull := func() (string, error) {
		return n.Pull(t.Context(), PullRequest{Ref: ref, Auth: remote.Auth{Username: registry.User, Password: registry.Password}})
	}
	refused := func(name string, texts ...string) {
		t.Helper()
		_, err := pull()
		if !errors.Is(err, ErrRefused) || errors.Is(err, ErrNotFound) || !strings.HasPrefix(err.Error(), "SignatureValidationFailed: pull image "+ref+": ") {
			t.Errorf("%s: got %v", name, err)
			return
		}
		for _, text := range texts {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %v has no %q", name, err, text)
			}
		}
	}
	refused("unsigned", fmt.Sprintf("transports.docker[%q]", reg.Addr), "sigstoreSigned", "it has no signature")
	reg.PushSignatures(t, "team/app", img.Desc.Digest, theirs)
	refused("by another key", "not by a key of the policy")
	replayed := ours
	replayed.Of = hello(t, "another").Desc.Digest
	reg.PushSignatures(t, "team/app", img.Desc.Digest, replayed)
	refused("replayed", "it is for manifest "+replayed.Of.String())
	n.mustBeEmpty(t)

	reg.PushSignatures(t, "team/app", img.Desc.Digest, theirs, ours)
	id, err := pull()
	if err != nil || id != img.ID.String() {
		t.Fatalf("signed: %s, %v", id, err)
	}
	n.SetVerification(policyOf(t, reg.Addr, sigstoreSigned(t, theirs, "")+`,{"type":"reject"}`))
	refused("present, under another policy", "requirement 2, reject")
	if _, err := n.Find(ref); err != nil {
		t.Error("what is present is gone")
	}
	n.SetVerification(Verification{})
	if _, err := pull(); err != nil {
		t.Errorf("without verification: %v", err)
	}
}

// Nothing of a refused image is fetched but its manifests.
func TestVerifiedBeforeFetched(t *testing.T) {
	l := newLiar(t, hello(t, "refused"))
	n := newNode(t, impatient, func(c *Config) { c.Verify = policyOf(t, "", `{"type":"reject"}`) })
	if _, err := n.Pull(t.Context(), PullRequest{Ref: l.Listener.Addr().String() + "/x:v1"}); !errors.Is(err, ErrRefused) {
		t.Fatalf("got %v", err)
	}
	for path := range l.hits {
		if strings.Contains(path, "/blobs/") {
			t.Errorf("asked for %s", path)
		}
	}
	if len(l.hits) == 0 {
		t.Error("asked for nothing")
	}
}

// A registry that does not say whether there are signatures is unavailable; that is no refusal.
func TestSignaturesOutOfReach(t *testing.T) {
	l := newLiar(t, hello(t, "out of reach"))
	l.manifest = func(w http.ResponseWriter, r *http.Request, _ int) {
		if strings.HasSuffix(r.URL.Path, ".sig") {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		l.serveManifest(w, l.img.Manifest, l.img.Desc.MediaType)
	}
	key := registry.Signature{Key: registry.NewKey(t)}
	n := newNode(t, impatient, func(c *Config) { c.Verify = policyOf(t, "", sigstoreSigned(t, key, "")) })
	_, err := n.Pull(t.Context(), PullRequest{Ref: l.Listener.Addr().String() + "/x:v1"})
	if !errors.Is(err, ErrRegistryUnavailable) || errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "look for signatures of "+l.img.Desc.Digest.String()) {
		t.Errorf("got %v", err)
	}
	n.mustBeEmpty(t)
}

func TestVerifiersOfPull(t *testing.T) {
	reg := registry.Start(t, registry.Options{})
	native := hello(t, "native")
	foreign := registry.Build(t, registry.Spec{Config: ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "s390x"}}})
	top := reg.PushIndex(t, "multi", "v1", false, foreign, native)
	ref := reg.Addr + "/multi:v1"
	dir := t.TempDir()
	script := func(text string) {
		if err := os.WriteFile(filepath.Join(dir, "10-check"), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n := newNode(t, func(c *Config) { c.Verify.Verifiers = &trust.Verifiers{Dir: dir, Max: 1, Timeout: time.Minute} })
	script("echo $2 $4 is not on the list; exit 1")
	_, err := n.Pull(t.Context(), PullRequest{Ref: ref})
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "image verifier 10-check: exit status 1: \""+ref+" "+top.String()+" is not on the list") {
		t.Errorf("got %v", err)
	}
	n.mustBeEmpty(t)
	script(`grep -q '"mediaType":"` + ocispec.MediaTypeImageIndex + `","digest":"` + top.String() + `"'`)
	n.pull(t, ref)
}
