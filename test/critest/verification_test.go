package critest

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/criserver/criserver/test/registry"
)

// onlySigned is a policy that accepts what is signed by key of one registry, and everything else.
func onlySigned(t *testing.T, r *registry.Registry, key registry.Signature) string {
	t.Helper()
	return fmt.Sprintf(`{"default":[{"type":"insecureAcceptAnything"}],"transports":{"docker":{%q:[{"type":"sigstoreSigned","keyData":%q}],"":[{"type":"insecureAcceptAnything"}]}}}`,
		r.Addr, base64.StdEncoding.EncodeToString(registry.PublicKey(t, key.Key)))
}

// refusedImage says that err is one that the kubelet knows as a refusal, with code Unknown.
func refusedImage(t *testing.T, err error, texts ...string) {
	t.Helper()
	refused(t, err, codes.Unknown, texts...)
	if text := status.Convert(err).Message(); !strings.HasPrefix(text, crierrors.ErrSignatureValidationFailed.Error()+": ") {
		t.Errorf("%q does not begin as the kubelet expects", text)
	}
}

func tryPull(t *testing.T, d *daemon, ref string, auth *cri.AuthConfig) error {
	t.Helper()
	_, err := d.images.PullImage(bounded(t), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}, Auth: auth})
	return err
}

// A policy with a key, in a registry that wants credentials for signatures too.
func TestImagePolicy(t *testing.T) {
	r := registry.Start(t, registry.Options{Token: true})
	d := use(t)
	auth := &cri.AuthConfig{Username: registry.User, Password: registry.Password}
	img := small(t, "policy", "gzip")
	r.PushImage(t, "team/app", "v1", img)
	ref := r.Addr + "/team/app:v1"
	ours, theirs := registry.Signature{Key: registry.NewKey(t), Name: ref}, registry.Signature{Key: registry.NewKey(t), Name: ref}
	policy := filepath.Join(t.TempDir(), "policy.json")
	write(t, policy, onlySigned(t, r, ours))
	if text := d.reload(t, fmt.Sprintf("[images.verify]\npolicy = %q\n", policy)); !strings.Contains(text, "configuration reloaded") {
		t.Fatalf("not reloaded: %s", text)
	}
	refusedImage(t, tryPull(t, d, ref, auth), ref, policy, fmt.Sprintf("transports.docker[%q]", r.Addr), "sigstoreSigned", "it has no signature")
	r.PushSignatures(t, "team/app", img.Desc.Digest, theirs)
	refusedImage(t, tryPull(t, d, ref, auth), "not by a key of the policy")
	other := small(t, "another", "gzip").Desc.Digest
	r.PushSignatures(t, "team/app", img.Desc.Digest, registry.Signature{Key: ours.Key, Name: ref, Of: other})
	refusedImage(t, tryPull(t, d, ref, auth), "it is for manifest "+other.String())
	r.PushSignatures(t, "team/app", img.Desc.Digest, registry.Signature{Key: ours.Key, Name: r.Addr + "/team/other:v1"})
	refusedImage(t, tryPull(t, d, ref, auth), "/team/other:v1")
	if s := imageStatus(t, d, ref); s != nil {
		t.Errorf("a refused image is there: %v", s)
	}
	if err := tryPull(t, d, suite.busybox, nil); err != nil { // of another registry, which the policy lets in
		t.Error(err)
	}

	r.PushSignatures(t, "team/app", img.Desc.Digest, theirs, ours)
	if err := tryPull(t, d, ref, auth); err != nil {
		t.Fatalf("signed: %v", err)
	}
	t.Cleanup(func() { removeImage(t, d, ref) })

	// The policy file alone changes. What is present stays, containers can be made of it, and a pull is refused.
	write(t, policy, `{"default":[{"type":"insecureAcceptAnything"}],"transports":{"docker":{"`+ref+`":[{"type":"reject"}]}}}`)
	config, err := os.ReadFile(d.config())
	if err != nil {
		t.Fatal(err)
	}
	if text := d.rewrite(t, string(config)); !strings.Contains(text, "configuration reloaded") {
		t.Fatalf("not reloaded: %s", text)
	}
	refusedImage(t, tryPull(t, d, ref, auth), fmt.Sprintf("transports.docker[%q]: requirement 1, reject", ref))
	if s := imageStatus(t, d, ref); s.GetId() != img.ID.String() {
		t.Errorf("what was present is %v", s)
	}

	// A policy that cannot be understood changes nothing.
	write(t, policy, `{"default":[{"type":"signedBy","keyPath":"/x"}]}`)
	if text := d.rewrite(t, string(config)); !strings.Contains(text, "configuration not reloaded") || !strings.Contains(text, "images.verify.policy") || !strings.Contains(text, "GPG signatures are not supported") {
		t.Errorf("a broken policy: %s", text)
	}
	refusedImage(t, tryPull(t, d, ref, auth), "requirement 1, reject")
	write(t, policy, onlySigned(t, r, ours)) // for the reload at the end
}

// A criserver with a policy that cannot be read does not start.
func TestImagePolicyAtStart(t *testing.T) {
	d := use(t)
	for name, row := range map[string]struct{ config, want string }{
		"missing":      {"[images.verify]\npolicy = '/no/such/policy.json'\n", "no such file"},
		"no directory": {"[images.verify]\nbin_dir = '/no/such/dir'\n", "images.verify.bin_dir"},
	} {
		t.Run(name, func(t *testing.T) {
			said, runs := d.reconfigure(t, row.config)
			if runs || !strings.Contains(said, row.want) || !strings.Contains(said, "images.verify.") {
				t.Errorf("runs: %v; said %s", runs, said)
			}
		})
	}
}

func TestImageVerifiers(t *testing.T) {
	d := use(t)
	img := small(t, "verifiers", "gzip")
	suite.registry.PushImage(t, "verifiers", "v1", img)
	ref := suite.registry.Addr + "/verifiers:v1"
	dir := t.TempDir()
	script := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	d.reload(t, fmt.Sprintf("[images.verify]\nbin_dir = %q\nper_verifier_timeout = '5s'\nmax_verifiers = 2\n", dir))
	script("a", "exit 0")
	script("b", `echo "$2 is not on the list"; exit 1`)
	refusedImage(t, tryPull(t, d, ref, nil), ref, "image verifier b", "exit status 1", ref+" is not on the list")
	script("b", "grep -q "+img.Desc.Digest.String())
	pull(t, d, ref)
	script("c", "exit 0")
	refusedImage(t, tryPull(t, d, ref, nil), "has 3 files, 2 verifiers are allowed")
}

// Bundles of cosign 3 count for pulls. Imports must stand the same policy, unless the configuration lets them in; what is refused names
// the rule.
func TestImagePolicyForBundlesAndImports(t *testing.T) {
	d := use(t)
	img := small(t, "bundles", "gzip")
	suite.registry.PushImage(t, "team/bundled", "v1", img)
	ref := suite.registry.Addr + "/team/bundled:v1"
	key := registry.Signature{Key: registry.NewKey(t)}
	archive := filepath.Join(t.TempDir(), "archive.tar")
	pull(t, d, ref)
	d.imagesCommand(t, nil, "export", "-o", archive, ref)
	removeImage(t, d, ref)

	policy := filepath.Join(t.TempDir(), "policy.json")
	write(t, policy, fmt.Sprintf(`{"default":[{"type":"insecureAcceptAnything"}],"transports":{"docker":{%q:[{"type":"sigstoreSigned","keyData":%q,"signedIdentity":{"type":"matchDigest"}}]}}}`,
		suite.registry.Addr+"/team", base64.StdEncoding.EncodeToString(registry.PublicKey(t, key.Key))))
	stanza := fmt.Sprintf("[images.verify]\npolicy = %q\n", policy)
	before := string(readFile(t, d.config()))
	d.reload(t, stanza)
	refusedImage(t, tryPull(t, d, ref, nil), "it has no signature")
	suite.registry.PushReferrers(t, "team/bundled", img.Desc.Digest, registry.Bundle(t, img.Desc, key))
	pull(t, d, ref)
	removeImage(t, d, ref)

	rule := fmt.Sprintf("as %s: stage verify: policy %s: transports.docker[%q]: requirement 1, sigstoreSigned: image refused: it has no signature", ref, policy, suite.registry.Addr+"/team")
	if out, code := d.tryImages(t, nil, "import", archive); code != 1 || !strings.Contains(out, rule) {
		t.Errorf("import: exit code %d: %s", code, out)
	}
	if s := imageStatus(t, d, ref); s != nil {
		t.Errorf("a refused image is there: %v", s)
	}
	d.imagesCommand(t, nil, "import", "--name", "example.com/other:1", archive) // of a name that the policy lets in
	removeImage(t, d, "example.com/other:1")
	d.rewrite(t, before+stanza+"imports = 'allow'\n")
	d.imagesCommand(t, nil, "import", archive)
	t.Cleanup(func() { removeImage(t, d, ref) })
	if s := imageStatus(t, d, ref); s.GetId() != img.ID.String() {
		t.Errorf("where imports are allowed the image is %v", s)
	}
}
