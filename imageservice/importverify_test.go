package imageservice

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/imageservice/trust"
	"github.com/criserver/criserver/test/registry"
)

// An import must stand what a pull of the same names must. Signatures are looked for in the archive.
func TestImportVerification(t *testing.T) {
	const name = "example.com/team/app:1"
	img, plain := twoLayers(t, "verified", registry.Spec{})
	ours, theirs := registry.Signature{Key: registry.NewKey(t), Name: name}, registry.Signature{Key: registry.NewKey(t), Name: name}
	with := func(entry ocispec.Descriptor, more ...*registry.Image) []byte {
		manifests := []ocispec.Descriptor{entry}
		for _, m := range more {
			manifests = append(manifests, m.Desc)
		}
		return tarOf(t, layout(t, manifests, append(more, img)...)...)
	}
	tagged := func(s registry.Signature) *registry.Image {
		signatures := registry.Signatures(t, img.Desc.Digest, s)
		signatures.Desc = named(signatures.Desc, "", registry.SignatureTag(img.Desc.Digest))
		return signatures
	}
	saved := registry.Signatures(t, img.Desc.Digest, ours)
	saved.Desc.Annotations = map[string]string{annotationKind: kindSignatures}
	bundle := registry.Bundle(t, img.Desc, ours)
	listed := registry.Bundle(t, img.Desc, ours)
	list := &registry.Image{Manifest: encoded(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{listed.Desc}})}
	list.SetManifest(list.Manifest, ocispec.MediaTypeImageIndex)
	list.Desc = named(list.Desc, "", referrersTag(img.Desc.Digest))
	underTag := tarOf(t, append(layout(t, []ocispec.Descriptor{named(img.Desc, name, ""), list.Desc}, img, listed), member{blobPath(list.Desc.Digest), list.Manifest})...)

	app := named(img.Desc, name, "")
	byName, byDigest := sigstoreSigned(t, ours, ""), sigstoreSigned(t, ours, `{"type":"matchDigest"}`)
	for row, c := range map[string]struct {
		data         []byte
		requirements string
		request      ImportRequest
		want         string // of the refusal
	}{
		"unsigned":                            {with(app), byName, ImportRequest{}, `as ` + name + `: stage verify: policy `},
		"unsigned, rule":                      {with(app), byName, ImportRequest{}, `transports.docker["example.com/team"]: requirement 1, sigstoreSigned: image refused: it has no signature`},
		"Docker's archive":                    {tarOf(t, docker(t, img, plain, name)...), byName, ImportRequest{}, "it has no signature"},
		"of another name":                     {with(named(img.Desc, "example.com/other:1", "")), byName, ImportRequest{}, "default: requirement 1, reject"},
		"without a name":                      {with(img.Desc), byName, ImportRequest{}, "without a name: stage verify: policy "},
		"under another name":                  {with(app, tagged(ours)), byName, ImportRequest{Names: []string{"example.com/team/new:1"}}, `not for "example.com/team/new:1"`},
		"by another key":                      {with(app, tagged(theirs)), byName, ImportRequest{}, "not by a key of the policy"},
		"bundle without a name":               {with(app, bundle), byName, ImportRequest{}, "signedIdentity matchDigest accepts that"},
		"bundle of another":                   {with(app, registry.Bundle(t, img.Desc, registry.Signature{Key: ours.Key, Of: saved.Desc.Digest})), byDigest, ImportRequest{}, "it is for " + saved.Desc.Digest.String()},
		"signed, by tag":                      {with(app, tagged(ours)), byName, ImportRequest{}, ""},
		"signed, as cosign saves":             {with(app, saved), byName, ImportRequest{}, ""},
		"bundle that refers":                  {with(app, bundle), byDigest, ImportRequest{}, ""},
		"bundle in a list of referrers":       {underTag, byDigest, ImportRequest{}, ""},
		"bundle, under whatever name of ours": {with(app, bundle), byDigest, ImportRequest{Names: []string{"example.com/team/new:1"}}, ""},
	} {
		t.Run(row, func(t *testing.T) {
			n := newNode(t, func(cfg *Config) { cfg.Verify = policyOf(t, "example.com/team", c.requirements) })
			list, err := n.imported(t, c.data, c.request)
			if c.want == "" {
				if err != nil || len(list) != 1 || list[0].ID != img.ID.String() {
					t.Errorf("%+v, %v", list, err)
				}
				return
			}
			if !errors.Is(err, trust.ErrRefused) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), `images.verify.imports = "verify"`) {
				t.Errorf("%v instead of %q", err, c.want)
			}
			n.mustBeEmpty(t)
			n.SetVerification(Verification{Policy: n.verification.Load().Policy, AnyImport: true})
			if _, err := n.imported(t, c.data, c.request); err != nil {
				t.Errorf("where imports are allowed: %v", err)
			}
		})
	}
}

// A name is not added to a present image by an import that is refused, and verifiers are asked too.
func TestImportVerificationOfPresentImages(t *testing.T) {
	img, _ := twoLayers(t, "present", registry.Spec{})
	n := newNode(t)
	if _, err := n.imported(t, tarOf(t, layout(t, []ocispec.Descriptor{named(img.Desc, "example.com/old:1", "")}, img)...), ImportRequest{}); err != nil {
		t.Fatal(err)
	}
	data := tarOf(t, layout(t, []ocispec.Descriptor{named(img.Desc, "example.com/new:1", "")}, img)...)
	n.SetVerification(policyOf(t, "example.com/old", `{"type":"insecureAcceptAnything"}`))
	if _, err := n.imported(t, data, ImportRequest{}); !errors.Is(err, trust.ErrRefused) {
		t.Errorf("a new name: %v", err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "check"), []byte("#!/bin/sh\necho $2; exit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	n.SetVerification(Verification{Verifiers: &trust.Verifiers{Dir: dir, Max: 1, Timeout: verifyBound, Log: slog.New(slog.DiscardHandler)}})
	if _, err := n.imported(t, data, ImportRequest{}); !errors.Is(err, trust.ErrRefused) || !strings.Contains(err.Error(), `image verifier check: exit status 1: "example.com/new:1`) {
		t.Errorf("verifiers: %v", err)
	}
	if got, _ := n.Find("example.com/old:1"); got == nil || len(got.RepoTags) != 1 {
		t.Errorf("the present image is %+v", got)
	}
}

// What is refused in the preload directory is named in the log with the rule, at each start.
func TestPreloadVerification(t *testing.T) {
	log, from := &lines{}, t.TempDir()
	n := newNode(t, func(c *Config) {
		c.Log, c.Verify = slog.New(slog.NewTextHandler(log, nil)), policyOf(t, "example.com/good", `{"type":"insecureAcceptAnything"}`)
	})
	img, _ := twoLayers(t, "preloaded", registry.Spec{})
	for file, name := range map[string]string{"a.tar": "example.com/bad:1", "b.tar": "example.com/good:1"} {
		if err := os.WriteFile(filepath.Join(from, file), tarOf(t, layout(t, []ocispec.Descriptor{named(img.Desc, name, "")}, img)...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		n.Preload(t.Context(), from)
		if text := log.take(); !strings.Contains(text, "a.tar") || !strings.Contains(text, "as example.com/bad:1: ") || !strings.Contains(text, "default: requirement 1, reject") {
			t.Errorf("log has %s", text)
		}
		if got, _ := n.Find("example.com/good:1"); got == nil || len(got.RepoTags) != 1 {
			t.Errorf("the image is %+v", got)
		}
	}
}

// Bundles of cosign 3 count for a pull, by the tag that stands in for the API of referrers.
func TestPullWithBundle(t *testing.T) {
	reg := registry.Start(t, registry.Options{Basic: true})
	img := hello(t, "bundle")
	reg.PushImage(t, "team/app", "v1", img)
	key := registry.Signature{Key: registry.NewKey(t)}
	n := newNode(t, func(c *Config) { c.Verify = policyOf(t, reg.Addr, sigstoreSigned(t, key, `{"type":"matchDigest"}`)) })
	request := PullRequest{Ref: reg.Addr + "/team/app:v1"}
	request.Auth.Username, request.Auth.Password = registry.User, registry.Password
	if _, err := n.Pull(t.Context(), request); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "it has no signature") {
		t.Errorf("without a bundle: %v", err)
	}
	reg.PushReferrers(t, "team/app", img.Desc.Digest, registry.Bundle(t, img.Desc, registry.Signature{Key: registry.NewKey(t)}))
	if _, err := n.Pull(t.Context(), request); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "not by a key of the policy") {
		t.Errorf("with a bundle by another key: %v", err)
	}
	reg.PushReferrers(t, "team/app", img.Desc.Digest, registry.Bundle(t, img.Desc, registry.Signature{Key: registry.NewKey(t)}), registry.Bundle(t, img.Desc, key))
	if _, err := n.Pull(t.Context(), request); err != nil {
		t.Errorf("with a bundle: %v", err)
	}
}

// An artifact may have the config of a signed image, which says nothing of what the artifact has: it cannot come in by the image's
// manifest, and an image not by an artifact's.
func TestImportOfAnotherManifest(t *testing.T) {
	const name = "example.com/team/app:1"
	img, _ := twoLayers(t, "trusted", registry.Spec{})
	key := registry.Signature{Key: registry.NewKey(t)}
	evil := registry.Artifact(t, weights, "", registry.Part{MediaType: ocispec.MediaTypeImageLayer, Data: registry.Tar(t, registry.File{Header: tar.Header{Name: "evil"}})})
	var m ocispec.Manifest
	if err := json.Unmarshal(evil.Manifest, &m); err != nil {
		t.Fatal(err)
	}
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: img.ID, Size: int64(len(img.Config))}
	evil.SetManifest(encoded(t, m), m.MediaType)
	for row, c := range map[string]struct {
		entry, signed *registry.Image
		want          error
	}{
		"an artifact by an image's": {evil, img, trust.ErrRefused},
		"an image by an artifact's": {img, evil, ErrInvalidImage},
	} {
		t.Run(row, func(t *testing.T) {
			entry := named(c.entry.Desc, name, "")
			entry.Annotations[annotationManifest] = c.signed.Desc.Digest.String()
			bundle := registry.Bundle(t, c.signed.Desc, key)
			n := newNode(t, func(cfg *Config) {
				cfg.Verify = policyOf(t, "example.com/team", sigstoreSigned(t, key, `{"type":"matchDigest"}`))
			})
			list, err := n.imported(t, tarOf(t, layout(t, []ocispec.Descriptor{entry, bundle.Desc}, img, evil, bundle)...), ImportRequest{})
			if !errors.Is(err, c.want) {
				t.Errorf("%+v, %v", list, err)
			}
			n.mustBeEmpty(t)
		})
	}
}

// What an archive has beside its images is read once, however many names an image gets.
func TestImportVerificationReadsOnce(t *testing.T) {
	const names, referrers = 50, 20
	img, _ := twoLayers(t, "names", registry.Spec{})
	key := registry.Signature{Key: registry.NewKey(t)}
	beside := []*registry.Image{registry.Bundle(t, img.Desc, key)}
	for i := range referrers {
		large := &registry.Image{}
		large.SetManifest(encoded(t, ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "text/plain",
			Config: ocispec.DescriptorEmptyJSON, Subject: &img.Desc, Annotations: map[string]string{"n": strings.Repeat(fmt.Sprint(i%10), 256<<10)}}), ocispec.MediaTypeImageManifest)
		beside = append(beside, large)
	}
	var manifests []ocispec.Descriptor
	for i := range names {
		manifests = append(manifests, named(img.Desc, fmt.Sprintf("example.com/app%d:1", i), ""))
	}
	for _, b := range beside {
		manifests = append(manifests, b.Desc)
	}
	data := tarOf(t, layout(t, manifests, append(beside, img)...)...)
	n := newNode(t, func(c *Config) {
		c.Verify = policyOf(t, "example.com", sigstoreSigned(t, key, `{"type":"matchDigest"}`))
	})
	before := bytesRead(t)
	list, err := n.imported(t, data, ImportRequest{})
	if err != nil || len(list) != 1 || len(list[0].Names) != names {
		t.Fatalf("%+v, %v", list, err)
	}
	if got := bytesRead(t) - before; got > 3*len(data) {
		t.Errorf("%d bytes were read of an archive of %d", got, len(data))
	}
}

// bytesRead is what this process has read by system calls.
func bytesRead(t *testing.T) (sum int) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/io")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(string(text), "rchar: %d", &sum); err != nil {
		t.Fatal(err)
	}
	return sum
}
