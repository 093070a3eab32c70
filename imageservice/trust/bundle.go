package trust

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// What is in a bundle, and in what a bundle vouches for.
const (
	bundleType       = "application/vnd.dev.sigstore.bundle.v0.3+json"
	statementPayload = "application/vnd.in-toto+json"
	statementType    = "https://in-toto.io/Statement/v1"
	signPredicate    = "https://sigstore.dev/cosign/sign/v1"
	bundleHash       = "SHA2_256"
)

const maxSubjects = 64 // of a statement

// bundle is a signature and what it is of: an envelope's payload, or the manifest itself.
type bundle struct {
	signature []byte
	envelope  bool
	payload   []byte // of the envelope
	sum       []byte // SHA-256 that the message has; nil if the bundle does not say it
}

// parseBundle reads a bundle as sigstore's tools write it. What certificates, logs and timestamps it has is not looked at: keys
// are the policy's.
func parseBundle(data []byte) (b bundle, err error) {
	fields, err := object(data)
	if err == nil {
		err = onlyKeys(fields, "mediaType", "verificationMaterial", "messageSignature", "dsseEnvelope")
	}
	if err != nil {
		return b, err
	}
	if kind, err := text(fields["mediaType"]); err != nil || kind != bundleType {
		return b, fmt.Errorf("mediaType: %q instead of %q", clip(kind), bundleType)
	}
	if _, err := object(fields["verificationMaterial"]); err != nil {
		return b, fmt.Errorf("verificationMaterial: %w", err)
	}
	message, envelope := fields["messageSignature"], fields["dsseEnvelope"]
	switch {
	case message != nil && envelope != nil:
		return b, errors.New("both messageSignature and dsseEnvelope are there")
	case message != nil:
		if err = b.parseMessage(message); err != nil {
			err = fmt.Errorf("messageSignature: %w", err)
		}
	case envelope != nil:
		if err = b.parseEnvelope(envelope); err != nil {
			err = fmt.Errorf("dsseEnvelope: %w", err)
		}
	default:
		err = errors.New("neither messageSignature nor dsseEnvelope is there")
	}
	return b, err
}

func (b *bundle) parseMessage(data []byte) error {
	fields, err := object(data)
	if err == nil {
		err = onlyKeys(fields, "messageDigest", "signature")
	}
	if err != nil {
		return err
	}
	if b.signature, err = bytesOf(fields, "signature"); err != nil || fields["messageDigest"] == nil {
		return err
	}
	sum, err := exactly(fields["messageDigest"], "algorithm", "digest")
	if err != nil {
		return fmt.Errorf("messageDigest: %w", err)
	}
	if name, err := text(sum["algorithm"]); err != nil || name != bundleHash {
		return nil // it is only a hint, which the signature does not cover
	}
	if b.sum, err = bytesOf(sum, "digest"); err != nil {
		return fmt.Errorf("messageDigest: %w", err)
	}
	return nil
}

func (b *bundle) parseEnvelope(data []byte) error {
	b.envelope = true
	fields, err := exactly(data, "payload", "payloadType", "signatures")
	if err != nil {
		return err
	}
	if kind, err := text(fields["payloadType"]); err != nil || kind != statementPayload {
		return fmt.Errorf("payloadType: %q instead of %q", clip(kind), statementPayload)
	}
	if b.payload, err = bytesOf(fields, "payload"); err != nil {
		return err
	}
	var all []json.RawMessage
	if err := json.Unmarshal(fields["signatures"], &all); err != nil || len(all) != 1 {
		return errors.New("signatures: not a list of one")
	}
	sig, err := object(all[0])
	if err == nil {
		err = onlyKeys(sig, "sig", "keyid")
	}
	if err == nil {
		b.signature, err = bytesOf(sig, "sig")
	}
	if err != nil {
		return fmt.Errorf("signatures: %w", err)
	}
	return nil
}

// bytesOf reads a field of base64, which must not be empty.
func bytesOf(fields map[string]json.RawMessage, key string) ([]byte, error) {
	s, err := text(fields[key])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	data, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(data) == 0 {
		return nil, fmt.Errorf("%s: not base64", key)
	}
	return data, nil
}

// signedBytes are what an envelope's signature is of: type and payload, each with its length, so that no other signature of the
// key can pass for this one.
func (b *bundle) signedBytes() []byte {
	return append(fmt.Appendf(nil, "DSSEv1 %d %s %d ", len(statementPayload), statementPayload, len(b.payload)), b.payload...)
}

// matches says whether the message can be the one that the bundle speaks of.
func (b *bundle) matches(message []byte) bool {
	if b.sum == nil {
		return true
	}
	h := digest.SHA256.Hash()
	h.Write(message) // never fails
	return bytes.Equal(h.Sum(nil), b.sum)
}

// parseStatement reads the payload of an envelope of which the signature is right, and says what name it gives the manifest d; nil
// if it gives none.
func parseStatement(data []byte, d digest.Digest) (reference.Named, error) {
	fields, err := object(data)
	if err == nil {
		err = onlyKeys(fields, "_type", "subject", "predicateType", "predicate")
	}
	if err != nil {
		return nil, err
	}
	for _, row := range []struct{ key, want string }{{"_type", statementType}, {"predicateType", signPredicate}} {
		if got, err := text(fields[row.key]); err != nil || got != row.want {
			return nil, fmt.Errorf("%s: %q instead of %q", row.key, clip(got), row.want)
		}
	}
	var subjects []json.RawMessage
	if err := json.Unmarshal(fields["subject"], &subjects); err != nil {
		return nil, errors.New("subject: not a list")
	}
	if len(subjects) > maxSubjects {
		return nil, fmt.Errorf("subject: more than %d", maxSubjects)
	}
	other := digest.Digest("nothing")
	for i, one := range subjects {
		name, sum, err := parseSubject(one, d.Algorithm())
		if err != nil {
			return nil, fmt.Errorf("subject %d: %w", i+1, err)
		}
		if sum == d {
			return name, nil
		}
		other = sum
	}
	return nil, fmt.Errorf("it is for %s", other)
}

// parseSubject reads what a statement is about; sum is empty if that has none by this algorithm.
func parseSubject(data []byte, algorithm digest.Algorithm) (name reference.Named, sum digest.Digest, err error) {
	fields, err := object(data)
	if err != nil {
		return nil, "", err
	}
	sums, err := object(fields["digest"])
	if err != nil {
		return nil, "", fmt.Errorf("digest: %w", err)
	}
	if sums[algorithm.String()] != nil {
		hex, err := text(sums[algorithm.String()])
		if err == nil {
			sum, err = digest.Parse(algorithm.String() + ":" + hex)
		}
		if err != nil {
			return nil, "", fmt.Errorf("digest: %w", err)
		}
	}
	if fields["name"] == nil {
		return nil, sum, nil
	}
	if s, err := text(fields["name"]); err != nil || s == "" {
		return nil, sum, err
	}
	if name, err = parseName(fields["name"]); err != nil {
		return nil, "", fmt.Errorf("name: %w", err)
	}
	return name, sum, nil
}
