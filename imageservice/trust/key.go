package trust

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	_ "crypto/sha256" // both are for crypto.Hash
	_ "crypto/sha512"
)

// minRSA is the shortest RSA key that is taken, in bits.
const minRSA = 2048

// publicKey is one key of a policy.
type publicKey struct {
	crypto.PublicKey
	hashes []crypto.Hash // with which signatures of the key may have been made
}

// parseKey reads one public key in PEM form.
func parseKey(data []byte) (publicKey, error) {
	block, rest := pem.Decode(data)
	switch {
	case block == nil:
		return publicKey{}, errors.New("not PEM")
	case block.Type != "PUBLIC KEY":
		return publicKey{}, fmt.Errorf("PEM block %q instead of PUBLIC KEY", clip(block.Type))
	}
	if next, _ := pem.Decode(rest); next != nil {
		return publicKey{}, errors.New("more than one PEM block; list the keys one by one")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return publicKey{}, err
	}
	k := publicKey{PublicKey: key}
	switch key := key.(type) {
	case *ecdsa.PublicKey: // cosign has signed with SHA-256 whatever the curve, and newer tools use the curve's
		switch key.Curve {
		case elliptic.P256():
			k.hashes = []crypto.Hash{crypto.SHA256}
		case elliptic.P384():
			k.hashes = []crypto.Hash{crypto.SHA256, crypto.SHA384}
		case elliptic.P521():
			k.hashes = []crypto.Hash{crypto.SHA256, crypto.SHA512}
		default:
			return k, errors.New("ECDSA with another curve than P-256, P-384 and P-521")
		}
	case *rsa.PublicKey:
		if key.N.BitLen() < minRSA {
			return k, fmt.Errorf("RSA with %d bits, at least %d are needed", key.N.BitLen(), minRSA)
		}
		k.hashes = []crypto.Hash{crypto.SHA256}
	case ed25519.PublicKey:
	default:
		return k, fmt.Errorf("a key of type %T; ECDSA, RSA and Ed25519 are supported", key)
	}
	return k, nil
}

// signed says whether signature is one of payload by this key.
func (k publicKey) signed(payload, signature []byte) bool {
	if key, ok := k.PublicKey.(ed25519.PublicKey); ok {
		return ed25519.Verify(key, payload, signature)
	}
	return slices.ContainsFunc(k.hashes, func(h crypto.Hash) bool {
		w := h.New()
		w.Write(payload) // never fails
		switch key := k.PublicKey.(type) {
		case *ecdsa.PublicKey:
			return ecdsa.VerifyASN1(key, w.Sum(nil), signature)
		case *rsa.PublicKey:
			return rsa.VerifyPKCS1v15(key, h, w.Sum(nil), signature) == nil
		}
		return false
	})
}

// keySources are the keys of a requirement that give public keys; exactly one of them must be there.
var keySources = []string{"keyPath", "keyPaths", "keyData", "keyDatas"}

func parseKeys(fields map[string]json.RawMessage) ([]publicKey, error) {
	var source string
	for _, name := range keySources {
		switch {
		case fields[name] == nil:
		case source != "":
			return nil, fmt.Errorf("both %s and %s are there", source, name)
		default:
			source = name
		}
	}
	if source == "" {
		return nil, errors.New("one of keyPath, keyPaths, keyData and keyDatas is needed")
	}
	var values []string
	switch source {
	case "keyPath", "keyData":
		value, err := text(fields[source])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", source, err)
		}
		values = []string{value}
	default:
		if err := json.Unmarshal(fields[source], &values); err != nil || len(values) == 0 {
			return nil, fmt.Errorf("%s: not a list of strings with at least one", source)
		}
	}
	var keys []publicKey
	for i, value := range values {
		k, err := readKey(source, value)
		if err != nil {
			return nil, fmt.Errorf("%s: key %d: %w", source, i+1, err)
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// readKey takes a path or base64, as the source has them.
func readKey(source, value string) (publicKey, error) {
	var data []byte
	var err error
	switch {
	case source == "keyData" || source == "keyDatas":
		if data, err = base64.StdEncoding.DecodeString(value); err != nil {
			return publicKey{}, errors.New("not base64")
		}
	case !filepath.IsAbs(value):
		return publicKey{}, fmt.Errorf("%q is not an absolute path", clip(value))
	default:
		if data, err = readFile(value); err != nil {
			return publicKey{}, err
		}
	}
	k, err := parseKey(data)
	if err != nil && data != nil && (source == "keyPath" || source == "keyPaths") {
		err = fmt.Errorf("%s: %w", value, err)
	}
	return k, err
}
