package trust

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// What cosign attaches to an image.
const (
	signatureLayer      = "application/vnd.dev.cosign.simplesigning.v1+json"
	signatureAnnotation = "dev.cosignproject.cosign/signature"
)

const (
	maxSignatures = 64       // of one manifest that are looked at, the newest, which cosign appends
	maxPayload    = 64 << 10 // bytes
	maxCauses     = 3        // told of signatures that do not count
)

// signed is the requirement sigstoreSigned.
type signed struct {
	keys  []publicKey
	match identity
}

func parseSigned(fields map[string]json.RawMessage) (*signed, error) {
	for _, key := range []string{"fulcio", "pki", "rekorPublicKeyPath", "rekorPublicKeyPaths", "rekorPublicKeyData", "rekorPublicKeyDatas"} {
		if fields[key] != nil {
			return nil, fmt.Errorf("%s: certificates and transparency logs are not supported, public keys are", key)
		}
	}
	if err := onlyKeys(fields, append(slices.Clone(keySources), "type", "signedIdentity")...); err != nil {
		return nil, err
	}
	keys, err := parseKeys(fields)
	if err != nil {
		return nil, err
	}
	match, err := parseIdentity(fields["signedIdentity"])
	if err != nil {
		return nil, fmt.Errorf("signedIdentity: %w", err)
	}
	return &signed{keys: keys, match: match}, nil
}

// meet wants one signature that counts, for any digest of the image's chain.
func (s *signed) meet(ctx context.Context, img Image, e *Evidence) error {
	var r reasons
	for _, d := range img.digests() {
		all, err := e.of(ctx, d)
		if err != nil {
			return err
		}
		for i, sig := range slices.Backward(all) {
			err := sig.err
			if err == nil {
				err = s.accept(ctx, img, e, d, sig)
			}
			if err == nil {
				return nil
			}
			r.add(err, "signature %d of %s", i+1, d)
		}
	}
	for _, d := range img.digests() {
		all, err := e.bundlesOf(ctx, d)
		if err != nil {
			return err
		}
		for _, b := range all {
			err := s.acceptBundle(ctx, img, e, d, b)
			if err == nil {
				return nil
			}
			r.add(err, "bundle %s of %s", b.desc.Digest, d)
		}
	}
	return r.refusal()
}

// reasons are why signatures do not count.
type reasons struct {
	causes  []string
	unknown error // why something could not be looked at
}

func (r *reasons) add(err error, format string, args ...any) {
	if !errors.Is(err, errDoesNotCount) && !errors.Is(err, ErrAbsent) {
		r.unknown = errors.Join(r.unknown, err)
	}
	r.causes = append(r.causes, fmt.Sprintf(format, args...)+": "+err.Error())
}

func (r *reasons) refusal() error {
	switch {
	case r.unknown != nil:
		return r.unknown
	case len(r.causes) == 0:
		return fmt.Errorf("%w: it has no signature", ErrRefused)
	case len(r.causes) > maxCauses:
		r.causes = append(r.causes[:maxCauses], fmt.Sprintf("and %d more", len(r.causes)-maxCauses))
	}
	return fmt.Errorf("%w: no signature counts: %s", ErrRefused, strings.Join(r.causes, "; "))
}

// errDoesNotCount is in errors about a signature that was looked at.
var errDoesNotCount = errors.New("does not count")

// accept says whether a signature found for d counts.
func (s *signed) accept(ctx context.Context, img Image, e *Evidence, d digest.Digest, sig *signature) error {
	data, err := sig.payload(ctx, e.src)
	if err != nil {
		return err
	}
	if err := s.byKey(data, sig.bytes); err != nil {
		return err
	}
	p, err := parsePayload(data)
	if err != nil {
		return fmt.Errorf("%w: payload: %w", errDoesNotCount, err)
	}
	if p.digest != d {
		return fmt.Errorf("%w: it is for manifest %s", errDoesNotCount, p.digest)
	}
	if err := s.match.holds(img.Name, p.name); err != nil {
		return fmt.Errorf("%w: %w", errDoesNotCount, err)
	}
	return nil
}

// byKey says whether a signature is one of message by one of the keys.
func (s *signed) byKey(message, signature []byte) error {
	if !slices.ContainsFunc(s.keys, func(k publicKey) bool { return k.signed(message, signature) }) {
		return fmt.Errorf("%w: it is not by a key of the policy", errDoesNotCount)
	}
	return nil
}

// Evidence is what a source has beside an image, fetched when it is wanted and once, however many names the image is asked
// about under. It is not for several goroutines.
type Evidence struct {
	src       Source
	found     map[digest.Digest][]*signature
	bundles   map[digest.Digest][]*attached
	manifests map[digest.Digest][]byte // that were signed as they are
}

// NewEvidence fetches nothing.
func NewEvidence(src Source) *Evidence {
	return &Evidence{src: src, found: map[digest.Digest][]*signature{}, bundles: map[digest.Digest][]*attached{}, manifests: map[digest.Digest][]byte{}}
}

// signature is one that is attached to a manifest.
type signature struct {
	bytes []byte
	desc  ocispec.Descriptor // of the payload
	data  []byte             // the payload, once it was fetched
	err   error              // it cannot count
}

// of returns the signatures attached to a manifest; none is no error.
func (e *Evidence) of(ctx context.Context, d digest.Digest) ([]*signature, error) {
	if all, known := e.found[d]; known {
		return all, nil
	}
	var all []*signature
	data, err := e.src.Tagged(ctx, strings.Replace(d.String(), ":", "-", 1)+".sig")
	switch {
	case errors.Is(err, ErrAbsent):
	case err != nil:
		return nil, fmt.Errorf("look for signatures of %s: %w", d, err)
	default:
		if all, err = parseSignatures(data); err != nil {
			return nil, fmt.Errorf("%w: signatures of %s: %w", ErrRefused, d, err)
		}
	}
	e.found[d] = all
	return all, nil
}

// parseSignatures reads the manifest that has the signatures as its layers.
func parseSignatures(manifest []byte) ([]*signature, error) {
	var m struct{ Layers []json.RawMessage }
	if err := json.Unmarshal(manifest, &m); err != nil {
		return nil, err
	}
	if n := len(m.Layers); n > maxSignatures {
		m.Layers = m.Layers[n-maxSignatures:]
	}
	var all []*signature
	for _, layer := range m.Layers {
		var desc ocispec.Descriptor
		if err := json.Unmarshal(layer, &desc); err != nil {
			return nil, err
		}
		if desc.MediaType != signatureLayer {
			continue
		}
		sig := &signature{desc: desc}
		text := desc.Annotations[signatureAnnotation]
		if sig.bytes, sig.err = base64.StdEncoding.DecodeString(text); sig.err != nil || text == "" {
			sig.err = fmt.Errorf("%w: annotation %s is not base64", errDoesNotCount, signatureAnnotation)
		}
		if sig.err == nil && (desc.Size < 0 || desc.Size > maxPayload) {
			sig.err = fmt.Errorf("%w: payload of %d bytes, at most %d are read", errDoesNotCount, desc.Size, maxPayload)
		}
		if err := desc.Digest.Validate(); sig.err == nil && err != nil {
			sig.err = fmt.Errorf("%w: payload: %w", errDoesNotCount, err)
		}
		all = append(all, sig)
	}
	return all, nil
}

func (sig *signature) payload(ctx context.Context, src Source) ([]byte, error) {
	if sig.data != nil {
		return sig.data, nil
	}
	data, err := src.Blob(ctx, sig.desc, maxPayload)
	if err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	sig.data = data
	return data, nil
}
