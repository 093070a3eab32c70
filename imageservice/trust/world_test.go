package trust

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// signer is a private key of a test.
type signer struct {
	crypto.Signer
	hash crypto.Hash
}

var signers = sync.OnceValue(func() map[string]signer {
	all := map[string]signer{}
	for name, curve := range map[string]elliptic.Curve{"p256": elliptic.P256(), "p384": elliptic.P384(), "p521": elliptic.P521(), "other": elliptic.P256(), "p224": elliptic.P224()} {
		k, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			panic(err)
		}
		all[name] = signer{k, crypto.SHA256}
	}
	all["p384 with SHA-384"] = signer{all["p384"].Signer, crypto.SHA384}
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	all["rsa"] = signer{r, crypto.SHA256}
	_, e, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	all["ed25519"] = signer{e, 0}
	return all
})

func (s signer) sign(t testing.TB, payload []byte) []byte {
	t.Helper()
	message := payload
	if s.hash != 0 {
		w := s.hash.New()
		w.Write(payload)
		message = w.Sum(nil)
	}
	sig, err := s.Sign(rand.Reader, message, s.hash)
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

func (s signer) pem(t testing.TB) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(s.Public())
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func keyData(t testing.TB, name string) string {
	t.Helper()
	return base64.StdEncoding.EncodeToString(signers()[name].pem(t))
}

// repository is a Source in memory.
type repository struct {
	tags      map[string][]byte
	blobs     map[digest.Digest][]byte
	manifests map[digest.Digest][]byte
	referrers map[digest.Digest][]ocispec.Descriptor
	failed    error // of blobs
	asked     []string
}

func (r *repository) Manifest(_ context.Context, d digest.Digest) ([]byte, error) {
	r.asked = append(r.asked, d.String())
	data, ok := r.manifests[d]
	if !ok {
		return nil, fmt.Errorf("manifest %s: %w", d, ErrAbsent)
	}
	return data, nil
}

func (r *repository) Referrers(_ context.Context, d digest.Digest, _ string) ([]ocispec.Descriptor, error) {
	r.asked = append(r.asked, "referrers of "+d.String())
	return r.referrers[d], r.failed
}

// refer adds a bundle to the manifest d as cosign 3 does.
func (r *repository) refer(t testing.TB, d digest.Digest, bundle []byte) ocispec.Descriptor {
	t.Helper()
	layer := ocispec.Descriptor{MediaType: bundleType, Digest: digest.FromBytes(bundle), Size: int64(len(bundle))}
	data, err := json.Marshal(ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: bundleType, Config: ocispec.DescriptorEmptyJSON,
		Layers: []ocispec.Descriptor{layer}, Subject: &ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Size: 1}})
	if err != nil {
		t.Fatal(err)
	}
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: bundleType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if r.manifests == nil {
		r.manifests, r.referrers = map[digest.Digest][]byte{}, map[digest.Digest][]ocispec.Descriptor{}
	}
	if r.blobs == nil {
		r.blobs = map[digest.Digest][]byte{}
	}
	r.blobs[layer.Digest], r.manifests[desc.Digest] = bundle, data
	r.referrers[d] = append(r.referrers[d], desc)
	return desc
}

// statement is what cosign 3 signs.
func statement(name string, d digest.Digest) string {
	if name != "" {
		name = fmt.Sprintf(`"name":%q,`, name)
	}
	return fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v1","subject":[{%s"digest":{"sha256":%q}}],"predicateType":"https://sigstore.dev/cosign/sign/v1","predicate":{}}`, name, d.Encoded())
}

// envelope is a bundle with a statement that key has signed.
func envelope(t testing.TB, key, statement string) []byte {
	t.Helper()
	const kind = "application/vnd.in-toto+json"
	sig := signers()[key].sign(t, fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(kind), kind, len(statement), statement))
	return fmt.Appendf(nil, `{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{"hint":"x"},"tlogEntries":[{"logIndex":"1"}]},`+
		`"dsseEnvelope":{"payload":%q,"payloadType":%q,"signatures":[{"sig":%q,"keyid":""}]}}`, base64.StdEncoding.EncodeToString([]byte(statement)), kind, base64.StdEncoding.EncodeToString(sig))
}

// messageSignature is a bundle with a signature of the message itself.
func messageSignature(t testing.TB, key string, message []byte) []byte {
	t.Helper()
	sum := sha256.Sum256(message)
	return fmt.Appendf(nil, `{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{"hint":"x"}},`+
		`"messageSignature":{"messageDigest":{"algorithm":"SHA2_256","digest":%q},"signature":%q}}`,
		base64.StdEncoding.EncodeToString(sum[:]), base64.StdEncoding.EncodeToString(signers()[key].sign(t, message)))
}

func (r *repository) Tagged(_ context.Context, tag string) ([]byte, error) {
	r.asked = append(r.asked, tag)
	data, ok := r.tags[tag]
	if !ok {
		return nil, fmt.Errorf("tag %s: %w", tag, ErrAbsent)
	}
	return data, nil
}

func (r *repository) Blob(_ context.Context, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	r.asked = append(r.asked, desc.Digest.String())
	if r.failed != nil {
		return nil, r.failed
	}
	data, ok := r.blobs[desc.Digest]
	if !ok || int64(len(data)) > limit {
		return nil, ErrAbsent
	}
	return data, nil
}

func payloadFor(name string, d digest.Digest) []byte {
	return fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, name, d)
}

// attach adds a signature to the manifest d as cosign does.
func (r *repository) attach(t testing.TB, d digest.Digest, payload, sig []byte) {
	t.Helper()
	if r.tags == nil {
		r.tags, r.blobs = map[string][]byte{}, map[digest.Digest][]byte{}
	}
	tag := strings.Replace(d.String(), ":", "-", 1) + ".sig"
	var m ocispec.Manifest
	if r.tags[tag] != nil {
		if err := json.Unmarshal(r.tags[tag], &m); err != nil {
			t.Fatal(err)
		}
	}
	desc := ocispec.Descriptor{MediaType: signatureLayer, Digest: digest.FromBytes(payload), Size: int64(len(payload)),
		Annotations: map[string]string{signatureAnnotation: base64.StdEncoding.EncodeToString(sig)}}
	r.blobs[desc.Digest] = payload
	m.Layers = append(m.Layers, desc)
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	r.tags[tag] = data
}

func (r *repository) sign(t testing.TB, key, name string, d digest.Digest) {
	t.Helper()
	payload := payloadFor(name, d)
	r.attach(t, d, payload, signers()[key].sign(t, payload))
}

func sum(text string) digest.Digest {
	return digest.NewDigestFromBytes(digest.SHA256, func() []byte { s := sha256.Sum256([]byte(text)); return s[:] }())
}

// imageOf is an image whose chain has the digests of texts.
func imageOf(t testing.TB, name string, texts ...string) Image {
	t.Helper()
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		t.Fatal(err)
	}
	img := Image{Name: named}
	for _, text := range texts {
		img.Chain = append(img.Chain, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: sum(text), Size: int64(len(text))})
	}
	return img
}

func load(t testing.TB, policy string) (*Policy, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "policy.json")
	if err := os.WriteFile(path, []byte(policy), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(path)
}

func mustLoad(t testing.TB, policy string) *Policy {
	t.Helper()
	p, err := load(t, policy)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
