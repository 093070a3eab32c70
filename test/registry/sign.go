package registry

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// NewKey makes a key that signs images.
func NewKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// PublicKey is what a policy has of a key, in PEM form.
func PublicKey(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// Signature is what is signed of an image, and in whose place.
type Signature struct {
	Key  crypto.Signer
	Name string        // that the image is signed as
	Of   digest.Digest // that is signed, if not that of the manifest that the signature is attached to
}

// Signatures makes the manifest that has signatures of another, as cosign 2 does. In a registry its tag is SignatureTag.
func Signatures(t testing.TB, d digest.Digest, all ...Signature) *Image {
	t.Helper()
	img := &Image{Blobs: map[digest.Digest][]byte{}, Config: []byte("{}")}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: img.add(ocispec.MediaTypeImageConfig, img.Config)}
	for _, s := range all {
		of := d
		if s.Of != "" {
			of = s.Of
		}
		payload := fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, s.Name, of)
		sum := sha256.Sum256(payload)
		sig, err := s.Key.Sign(rand.Reader, sum[:], crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		layer := img.add("application/vnd.dev.cosign.simplesigning.v1+json", payload)
		layer.Annotations = map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(sig)}
		m.Layers = append(m.Layers, layer)
	}
	img.SetManifest(encode(t, m), m.MediaType)
	return img
}

// SignatureTag is where signatures of a manifest are.
func SignatureTag(d digest.Digest) string { return strings.Replace(d.String(), ":", "-", 1) + ".sig" }

// PushSignatures attaches signatures to a manifest, in place of those that it has, as cosign does.
func (r *Registry) PushSignatures(t testing.TB, repo string, d digest.Digest, all ...Signature) {
	t.Helper()
	r.PushImage(t, repo, SignatureTag(d), Signatures(t, d, all...))
}

// BundleType is the artifact type of a bundle, as cosign 3 makes it.
const BundleType = "application/vnd.dev.sigstore.bundle.v0.3+json"

// Bundle makes what refers to a manifest with a signature of it in an envelope, as cosign 3 does: a statement that has no name. Its
// manifest is an image's without a config.
func Bundle(t testing.TB, subject ocispec.Descriptor, s Signature) *Image {
	t.Helper()
	const kind = "application/vnd.in-toto+json"
	of := subject.Digest
	if s.Of != "" {
		of = s.Of
	}
	statement := fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":%q},"annotations":{}}],"predicateType":"https://sigstore.dev/cosign/sign/v1","predicate":{}}`, of.Encoded())
	sum := sha256.Sum256(fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(kind), kind, len(statement), statement))
	sig, err := s.Key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	bundle := fmt.Appendf(nil, `{"mediaType":%q,"verificationMaterial":{"publicKey":{"hint":"key"}},"dsseEnvelope":{"payload":%q,"payloadType":%q,"signatures":[{"sig":%q}]}}`,
		BundleType, base64.StdEncoding.EncodeToString([]byte(statement)), kind, base64.StdEncoding.EncodeToString(sig))
	img := &Image{Blobs: map[digest.Digest][]byte{}, Config: []byte("{}")}
	config := img.add(ocispec.MediaTypeEmptyJSON, img.Config)
	img.Layers = []ocispec.Descriptor{img.add(BundleType, bundle)}
	img.SetManifest(encode(t, ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		ArtifactType: BundleType, Config: config, Layers: img.Layers, Subject: &subject}), ocispec.MediaTypeImageManifest)
	img.Desc.ArtifactType = BundleType
	img.ID = img.Desc.Digest
	return img
}

// PushReferrers pushes bundles and the list of them under the tag that stands in for the API of referrers.
func (r *Registry) PushReferrers(t testing.TB, repo string, d digest.Digest, all ...*Image) {
	t.Helper()
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	for i, img := range all {
		r.PushImage(t, repo, fmt.Sprintf("bundle-%d", i), img)
		index.Manifests = append(index.Manifests, img.Desc)
	}
	r.PushManifest(t, repo, strings.Replace(d.String(), ":", "-", 1), encode(t, index), index.MediaType)
}
