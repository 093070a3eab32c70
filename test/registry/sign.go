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

// PushSignatures attaches signatures to a manifest, in place of those that it has, as cosign does.
func (r *Registry) PushSignatures(t testing.TB, repo string, d digest.Digest, all ...Signature) {
	t.Helper()
	config := []byte("{}")
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))}}
	r.pushBlob(t, repo, m.Config.Digest, config)
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
		layer := ocispec.Descriptor{MediaType: "application/vnd.dev.cosign.simplesigning.v1+json", Digest: digest.FromBytes(payload), Size: int64(len(payload)),
			Annotations: map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(sig)}}
		r.pushBlob(t, repo, layer.Digest, payload)
		m.Layers = append(m.Layers, layer)
	}
	r.PushManifest(t, repo, strings.Replace(d.String(), ":", "-", 1)+".sig", encode(t, m), m.MediaType)
}
