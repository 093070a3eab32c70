package trust

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/distribution/reference"
)

// identity says whether a signature that is for signed is one for the image asked for. nil wants only that it is for the digest.
type identity func(asked, signed reference.Named) error

// matchDigest is not in containers/image: there every signature has a name.
const matchDigest = "matchDigest"

// holds says whether a signature is for the image; either may have no name.
func (match identity) holds(asked, signed reference.Named) error {
	switch {
	case match == nil:
		return nil
	case signed == nil:
		return fmt.Errorf("it says nothing of a name, as cosign 3 signs; signedIdentity %s accepts that", matchDigest)
	case asked == nil:
		return errors.New("the image has no name that it could be for")
	}
	return match(asked, signed)
}

// parseIdentity reads signedIdentity; data is nil if there is none.
func parseIdentity(data json.RawMessage) (identity, error) {
	if data == nil {
		return repoDigestOrExact, nil
	}
	fields, err := object(data)
	if err != nil {
		return nil, err
	}
	kind, err := text(fields["type"])
	if err != nil {
		return nil, errors.New("type: not a string")
	}
	var match identity
	var known []string
	switch kind {
	case "matchRepoDigestOrExact":
		match = repoDigestOrExact
	case "matchExact":
		match = exact
	case "matchRepository":
		match = sameRepository
	case matchDigest:
		match = nil
	case "exactReference":
		known = []string{"dockerReference"}
		match, err = exactReference(fields["dockerReference"])
	case "exactRepository":
		known = []string{"dockerRepository"}
		match, err = exactRepository(fields["dockerRepository"])
	case "remapIdentity":
		known = []string{"prefix", "signedPrefix"}
		match, err = remapped(fields["prefix"], fields["signedPrefix"])
	default:
		return nil, fmt.Errorf("type %q is unknown; known are matchExact, matchRepoDigestOrExact, matchRepository, exactReference, exactRepository, remapIdentity and matchDigest", clip(kind))
	}
	if err == nil {
		err = onlyKeys(fields, append(known, "type")...)
	}
	if err != nil {
		return nil, fmt.Errorf("type %q: %w", kind, err)
	}
	return match, nil
}

func mismatch(wanted, signed reference.Named) error {
	return fmt.Errorf("it is for %q, not for %q", clip(signed.String()), wanted.String())
}

// nameOnly is what cosign leaves a default policy with.
func nameOnly(signed reference.Named) error {
	return fmt.Errorf("it is for repository %q without a tag, as cosign signs; signedIdentity matchRepository accepts that", clip(signed.String()))
}

func exact(asked, signed reference.Named) error {
	if reference.IsNameOnly(signed) && signed.Name() == asked.Name() {
		return nameOnly(signed)
	}
	return same(asked, signed)
}

// same wants a tag or digest on both.
func same(asked, signed reference.Named) error {
	if reference.IsNameOnly(asked) || signed.String() != asked.String() {
		return mismatch(asked, signed)
	}
	return nil
}

func repoDigestOrExact(asked, signed reference.Named) error {
	_, tagged := asked.(reference.Tagged)
	_, digested := asked.(reference.Digested)
	if digested && !tagged && !reference.IsNameOnly(signed) && signed.Name() == asked.Name() {
		return nil // that it is this digest was verified
	}
	return exact(asked, signed)
}

func sameRepository(asked, signed reference.Named) error {
	if signed.Name() != asked.Name() {
		return mismatch(reference.TrimNamed(asked), signed)
	}
	return nil
}

func exactReference(data json.RawMessage) (identity, error) {
	want, err := parseName(data)
	if err != nil {
		return nil, fmt.Errorf("dockerReference: %w", err)
	}
	if reference.IsNameOnly(want) {
		return nil, errors.New("dockerReference: has neither tag nor digest")
	}
	return func(_, signed reference.Named) error { return same(want, signed) }, nil
}

func exactRepository(data json.RawMessage) (identity, error) {
	want, err := parseName(data)
	if err != nil {
		return nil, fmt.Errorf("dockerRepository: %w", err)
	}
	if !reference.IsNameOnly(want) {
		return nil, errors.New("dockerRepository: has a tag or digest")
	}
	return func(_, signed reference.Named) error { return sameRepository(want, signed) }, nil
}

func parseName(data json.RawMessage) (reference.Named, error) {
	s, err := text(data)
	if err != nil {
		return nil, err
	}
	return reference.ParseNormalizedNamed(s)
}

// remapped holds a signature against the image's name with another begin: that of the registry that it was mirrored from.
func remapped(prefix, signedPrefix json.RawMessage) (identity, error) {
	from, err := parsePrefix(prefix)
	if err != nil {
		return nil, fmt.Errorf("prefix: %w", err)
	}
	to, err := parsePrefix(signedPrefix)
	if err != nil {
		return nil, fmt.Errorf("signedPrefix: %w", err)
	}
	return func(asked, signed reference.Named) error {
		rest, found := strings.CutPrefix(asked.Name(), from)
		if !found || rest != "" && rest[0] != '/' {
			return repoDigestOrExact(asked, signed)
		}
		origin, err := reference.ParseNamed(to + strings.TrimPrefix(asked.String(), from))
		if err != nil {
			return fmt.Errorf("remap %q: %w", asked.String(), err)
		}
		return repoDigestOrExact(origin, signed)
	}, nil
}

// parsePrefix reads a host, or a repository or what it lies in, in full.
func parsePrefix(data json.RawMessage) (string, error) {
	s, err := text(data)
	if err != nil {
		return "", err
	}
	whole := s
	if !strings.Contains(s, "/") {
		whole += "/x" // a host alone
	}
	if named, err := reference.ParseNamed(whole); err != nil || named.String() != whole || !reference.IsNameOnly(named) {
		return "", fmt.Errorf("%q is not a host, or a repository in full without a tag", clip(s))
	}
	return s, nil
}
